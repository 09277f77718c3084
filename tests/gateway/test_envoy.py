"""What a client and a service see of the gateway, through a real Envoy."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2, status_pb2
from grpc_health.v1 import health_pb2

from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.rpc.contracts import all_contracts
from remit.rpc.errors import RemitError
from tests.gateway.conftest import Context, World, all_healthy
from tests.rest import Client
from tests.waiting import eventually

RESERVE = "/remit.api.cost.v1.CostService/ReserveBudget"
LIST_BUDGETS = "/remit.api.cost.v1.CostReportService/ListBudgets"
CREATE_RUN = "/remit.api.agent.v1.AgentService/CreateRun"
CALL_TOOL = "/remit.api.tools.v1.ToolService/CallTool"
CHECKPOINT = "/remit.api.audit.v1.AuditQueryService/GetCheckpoint"
EXPORT = "/remit.api.audit.v1.AuditQueryService/ExportLog"
APPEND_EVENTS = "/remit.api.audit.v1.AuditService/AppendEvents"
APPEND_OUTCOMES = "/remit.api.audit.v1.AuditService/AppendOutcomes"


async def call(
    channel: grpc.aio.Channel,
    path: str,
    *,
    timeout_s: float | None = 20.0,
    metadata: list[tuple[str, str]] | None = None,
) -> bytes:
    method: Any = channel.unary_unary(path)
    answer = await method(b"body", timeout=timeout_s, metadata=metadata)
    assert isinstance(answer, bytes)
    return answer


async def refusal(channel: grpc.aio.Channel, path: str, **options: Any) -> RemitError:
    """The error of a call; it must carry details, so that no client has to guess."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, path, **options)
    keys = [key for key, _ in caught.value.trailing_metadata() or ()]
    assert "grpc-status-details-bin" in keys
    error = RemitError.from_rpc(caught.value)
    assert error.code == caught.value.code()
    assert error.message == caught.value.details()
    return error


async def hang(_: bytes, __: Context) -> bytes:
    await asyncio.Event().wait()
    raise AssertionError


async def unavailable(_: bytes, context: Context) -> bytes:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
    raise AssertionError


async def test_the_edge_exchanges_the_credential_for_a_remit(world: World) -> None:
    assert (
        await call(world.edge(), LIST_BUDGETS, metadata=[("authorization", "Bearer k")]) == b"body"
    )
    headers = world.checks[0].attributes.request.http.headers
    assert headers["authorization"] == "Bearer k"
    metadata = dict(world.seen[0].metadata)
    assert metadata["remit-token"] == "remit-of-alice"
    assert "authorization" not in metadata
    assert world.seen[0].peer == [b"spiffe://remit.internal/edge"]


async def test_a_client_cannot_say_who_it_is(world: World) -> None:
    forged = [
        ("remit-token", "forged"),
        ("x-forwarded-client-cert", "URI=spiffe://remit.internal/tools"),
        ("x-remit-user", "orgs/acme/users/root"),
        ("x-envoy-max-retries", "9"),
        ("x-envoy-upstream-rq-timeout-ms", "1"),
    ]
    await call(world.edge(), LIST_BUDGETS, metadata=forged)
    for headers in (dict(world.seen[0].metadata), world.checks[0].attributes.request.http.headers):
        assert headers.get("remit-token") in {None, "remit-of-alice"}
        assert not {key for key, _ in forged if key != "remit-token"} & set(headers)
        assert "x-envoy-internal" not in headers


@pytest.mark.parametrize("path", [RESERVE, "/remit.api.cost.v1.CostService/Nope", "/nothing"])
async def test_the_edge_knows_public_methods_only(world: World, path: str) -> None:
    error = await refusal(world.edge(), path)
    assert error.reason == error_reason_pb2.ERROR_REASON_METHOD_UNKNOWN
    assert error.code == grpc.StatusCode.UNIMPLEMENTED
    assert not world.seen
    assert not world.checks


async def test_every_public_method_and_no_other_passes_the_edge(world: World) -> None:
    channel = world.edge()
    for path, contract in all_contracts().items():
        if contract.is_public:
            assert await call(channel, path) == b"body"
            assert world.seen[-1].path == path
            assert world.seen[-1].area == contract.area
        else:
            error = await refusal(channel, path)
            assert error.reason == error_reason_pb2.ERROR_REASON_METHOD_UNKNOWN


async def test_every_method_passes_the_mesh_with_one_forwarded_identity(world: World) -> None:
    channel = world.mesh("tools")
    forged = [("x-forwarded-client-cert", "URI=spiffe://remit.internal/agent")]
    for path, contract in all_contracts().items():
        assert await call(channel, path, metadata=forged) == b"body"
        seen = world.seen[-1]
        assert (seen.path, seen.area) == (path, contract.area)
        assert seen.peer == [b"spiffe://remit.internal/mesh"]
        elements = [str(v) for k, v in seen.metadata if k == "x-forwarded-client-cert"]
        assert len(elements) == 1
        assert elements[0].endswith(";URI=spiffe://remit.internal/tools")
        assert "," not in elements[0]
    error = await refusal(channel, "/remit.api.cost.v1.CostService/Nope")
    assert error.reason == error_reason_pb2.ERROR_REASON_METHOD_UNKNOWN


async def test_the_mesh_listener_wants_a_certificate(world: World) -> None:
    ca = (world.state.tls_folder("agent") / "ca.pem").read_bytes()
    options = [("grpc.ssl_target_name_override", "mesh.remit.internal")]
    credentials = grpc.ssl_channel_credentials(ca)
    async with grpc.aio.secure_channel(str(world.topology.mesh), credentials, options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, RESERVE, timeout_s=5)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert not world.seen


async def test_a_denial_is_policys_own(world: World) -> None:
    details = status_pb2.Status(code=code_pb2.UNAUTHENTICATED, message="no key")
    world.verdict.Clear()
    world.verdict.status.code = code_pb2.UNAUTHENTICATED
    world.verdict.denied_response.status.code = 401
    world.verdict.denied_response.body = "no key"
    header = world.verdict.denied_response.headers.add()
    header.header.key = "grpc-status-details-bin"
    header.header.value = _base64(details.SerializeToString())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(world.edge(), LIST_BUDGETS)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert caught.value.details() == "no key"
    assert not world.seen


def _base64(data: bytes) -> str:
    import base64  # noqa: PLC0415 - one use

    return base64.b64encode(data).decode().rstrip("=")


async def test_without_policy_nothing_passes(world: World) -> None:
    await world.upstreams["policy", 0].stop()
    error = await refusal(world.edge(), LIST_BUDGETS)
    assert error.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert error.retry_after_s
    assert not world.seen


async def test_a_service_that_is_down_is_named_as_unavailable(world: World) -> None:
    await world.upstreams["audit", 0].stop()
    error = await refusal(world.edge(), CHECKPOINT)
    assert error.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    await eventually(lambda: _unhealthy(world, "edge_audit"), timeout_s=15)
    error = await refusal(world.edge(), CHECKPOINT)
    assert error.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE


async def _unhealthy(world: World, cluster: str) -> bool:
    return any(fault.startswith(cluster) for fault in await world.envoy.unhealthy_replicas())


@pytest.mark.parametrize("path", [CREATE_RUN, CALL_TOOL])
async def test_the_callers_deadline_is_kept_and_called_by_its_name(world: World, path: str) -> None:
    world.answers[path] = hang
    # Stated by hand: grpc's own timeout would end the call here before the gateway answers.
    error = await refusal(world.edge(), path, timeout_s=None, metadata=[("grpc-timeout", "200m")])
    assert error.reason == error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    assert len([seen for seen in world.seen if seen.path == path]) == 1


async def test_no_caller_gets_more_time_than_the_contract_gives(world: World) -> None:
    world.answers[RESERVE] = hang
    error = await refusal(
        world.mesh("tools"), RESERVE, timeout_s=None, metadata=[("grpc-timeout", "60S")]
    )
    assert error.reason == error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    # Three attempts of one second each within a deadline of three: it was tried again elsewhere.
    assert {seen.replica for seen in world.seen} == {0, 1}


async def test_a_replica_that_is_not_there_costs_no_call(world: World) -> None:
    await world.upstreams["cost", 0].stop()
    channel = world.mesh("tools")
    answers = await asyncio.gather(*(call(channel, RESERVE) for _ in range(40)))
    assert answers == [b"body"] * 40
    assert {seen.replica for seen in world.seen} == {1}


async def test_a_keyed_call_is_sent_again_elsewhere_when_it_was_refused(world: World) -> None:
    async def one_is_broken(request: bytes, context: Context) -> bytes:
        if world.seen[-1].replica == 0:
            await unavailable(request, context)
        return request

    world.answers[RESERVE] = one_is_broken
    channel = world.mesh("tools")
    for _ in range(8):
        assert await call(channel, RESERVE) == b"body"
    assert {seen.replica for seen in world.seen} == {0, 1}


async def test_a_pause_of_the_only_replica_is_no_outage(world: World) -> None:
    """Its first attempts time out, five in a row and more; it gets the second ones all the same."""
    going_on = asyncio.Event()

    async def stalls(request: bytes, _: Context) -> bytes:
        await going_on.wait()
        return request

    world.answers[APPEND_EVENTS] = stalls
    channel = world.mesh("tools")
    calls = [asyncio.create_task(call(channel, APPEND_EVENTS)) for _ in range(8)]
    # Where it was ejected, no second attempt of all of them arrives.
    await eventually(lambda: len(world.seen) >= 2 * len(calls) or _one_failed(calls), timeout_s=10)
    going_on.set()
    assert await asyncio.gather(*calls) == [b"body"] * len(calls)
    assert await call(channel, APPEND_EVENTS) == b"body"


def _one_failed(calls: list[asyncio.Task[bytes]]) -> bool:
    return any(task.done() and task.exception() for task in calls)


async def test_a_replica_that_drains_gets_no_more_calls(world: World) -> None:
    await world.upstreams["cost", 0].health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    await eventually(lambda: _unhealthy(world, "mesh_cost"), timeout_s=15)
    world.seen.clear()
    channel = world.mesh("tools")
    for _ in range(8):
        await call(channel, RESERVE)
    assert {seen.replica for seen in world.seen} == {1}


async def test_opening_calls_leave_room_for_closing_ones(world: World) -> None:
    world.answers[EXPORT] = hang
    channel = world.mesh("tools")
    room = sum(
        c.max_in_flight
        for c in all_contracts().values()
        if c.area == "audit" and c.phase != options_pb2.PHASE_CLOSE
    )
    hanging = [asyncio.create_task(call(channel, EXPORT, timeout_s=60)) for _ in range(room)]
    await eventually(lambda: len(world.seen) == room, timeout_s=30)
    # So many calls at once may have kept the service, which runs here, from its health checks.
    await eventually(lambda: all_healthy(world), timeout_s=30)
    error = await refusal(channel, APPEND_EVENTS)
    assert error.reason == error_reason_pb2.ERROR_REASON_OVERLOADED
    assert error.retry_after_s
    await eventually(lambda: _overflows(world, "mesh_audit"))
    assert await call(channel, APPEND_OUTCOMES) == b"body"
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)


async def _overflows(world: World, cluster: str) -> bool:
    """Whether Envoy counted a refusal by a breaker of this cluster, as the alert reads it."""
    page = (await Client(str(world.topology.stats)).get("/stats/prometheus")).body.decode()
    counted = f'envoy_cluster_upstream_rq_active_overflow{{envoy_cluster_name="{cluster}"}} 1'
    return counted in page.splitlines()


async def test_health_needs_no_credential(world: World) -> None:
    check = world.edge().unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    answer = await check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert not world.checks


async def test_the_edge_drains_without_losing_a_call(world: World) -> None:
    release = asyncio.Event()

    async def wait(request: bytes, _: Context) -> bytes:
        await release.wait()
        return request

    world.answers[CREATE_RUN] = wait
    channel = world.edge()
    in_flight = asyncio.create_task(call(channel, CREATE_RUN))
    await eventually(lambda: world.seen)
    draining = asyncio.create_task(world.envoy.drain_edge(10))
    async with grpc.aio.insecure_channel(str(world.topology.edge)) as late:
        await eventually(lambda: _refused(late), timeout_s=10)
    release.set()
    assert await in_flight == b"body"
    assert await draining == 0
    # The services still reach each other: they have work to finish.
    assert await call(world.mesh("agent"), RESERVE) == b"body"


async def _refused(channel: grpc.aio.Channel) -> bool:
    try:
        await call(channel, LIST_BUDGETS, timeout_s=1)
    except grpc.aio.AioRpcError as error:
        return error.code() == grpc.StatusCode.UNAVAILABLE
    return False
