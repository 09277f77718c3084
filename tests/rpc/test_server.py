"""A real server over mTLS on loopback: identity, allow-list, capacity, deadlines, drain."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from remit.api.cost.v1 import cost_service_pb2, cost_service_pb2_grpc, reservation_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from remit.api.options.v1 import options_pb2
from remit.api.policy.v1 import policy_service_pb2, policy_service_pb2_grpc
from remit.api.tools.v1 import tool_service_pb2, tool_service_pb2_grpc
from remit.rpc import host, metrics, server
from remit.rpc.calls import current_call
from remit.rpc.clock import SystemClock
from remit.rpc.contracts import public_services
from remit.rpc.errors import RemitError
from remit.rpc.identity import FORWARDED_KEY, spiffe_id
from remit.rpc.mesh import Mesh, known_contract
from remit.rpc.parties import caller_label
from remit.rpc.remits import RemitVerifier
from remit.settings import ServiceSettings
from tests.monitoring.values import gained
from tests.rpc.conftest import Identities
from tests.waiting import eventually

RESERVE = cost_service_pb2.ReserveBudgetRequest()
RESERVE_BUDGET = "/remit.api.cost.v1.CostService/ReserveBudget"
SETTLE = cost_service_pb2.SettleReservationRequest()


class NoKeys:
    """No remit is known."""

    async def public_key(self, _key_id: str) -> Ed25519PublicKey | None:
        return None


class Cost(cost_service_pb2_grpc.CostServiceServicer):
    """Answers with who called; waits, fails or breaks when told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.failure: Exception | None = None
        self.in_flight = 0
        self.item = ""

    async def ReserveBudget(
        self, _request: cost_service_pb2.ReserveBudgetRequest, _context: Any
    ) -> cost_service_pb2.ReserveBudgetResponse:
        self.in_flight += 1
        try:
            await self.go_on.wait()
        finally:
            self.in_flight -= 1
        if self.failure is not None:
            raise self.failure
        call = current_call()
        reservation = reservation_pb2.Reservation(
            name=caller_label(call.caller), item=self.item or call.trace_id
        )
        return cost_service_pb2.ReserveBudgetResponse(reservation=reservation)

    async def SettleReservation(
        self, _request: cost_service_pb2.SettleReservationRequest, _context: Any
    ) -> cost_service_pb2.SettleReservationResponse:
        return cost_service_pb2.SettleReservationResponse()


class Running:
    """A service that runs, and how to stop it."""

    def __init__(self, servicer: Cost) -> None:
        self.servicer = servicer
        self.stop = asyncio.Event()
        self.port = 0
        self.http_port = 0
        self.faults: list[str] = []

    def started(self, port: int, http_port: int) -> None:
        self.port, self.http_port = port, http_port

    async def fault(self) -> None:
        if self.faults:
            raise RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, self.faults[0])

    def http(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}") as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@contextlib.asynccontextmanager
async def running(tls_folder: Path, **overrides: Any) -> AsyncIterator[Running]:
    servicer = Cost()  # type: ignore[abstract]
    run = Running(servicer)
    service = host.Service(
        area="cost",
        servicers=[(cost_service_pb2_grpc.add_CostServiceServicer_to_server, servicer)],
        verifier=RemitVerifier(NoKeys(), SystemClock()),
        ready=[run.fault],
    )
    settings = ServiceSettings.load(**{"tls_dir": tls_folder / "cost", "drain_s": 5.0} | overrides)
    opening = contextlib.nullcontext(service)
    task = asyncio.create_task(host.run(opening, settings, stop=run.stop, started=run.started))
    try:
        await eventually(lambda: run.port or task.done())
        yield run
    finally:
        run.stop.set()
        await task


@pytest.fixture
async def service(tls_folder: Path) -> AsyncIterator[Running]:
    async with running(tls_folder) as run:
        yield run


@contextlib.asynccontextmanager
async def client(
    run: Running, identity: Identities, party: str
) -> AsyncIterator[cost_service_pb2_grpc.CostServiceStub]:
    async with Mesh.connect(f"127.0.0.1:{run.port}", identity(party), party="cost") as mesh:
        yield mesh.stub(cost_service_pb2_grpc.CostServiceStub)


async def test_a_listed_caller_is_served_and_known(service: Running, identity: Identities) -> None:
    async with client(service, identity, "tools") as cost:
        response = await cost.ReserveBudget(RESERVE)
    assert response.reservation.name == "tools"
    assert len(response.reservation.item) == 32


async def test_an_unlisted_caller_is_refused(service: Running, identity: Identities) -> None:
    async with client(service, identity, "agent") as cost:
        with pytest.raises(RemitError, match="agent may not call") as caught:
            await cost.ReserveBudget(RESERVE)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_CALLER_NOT_ALLOWED
    assert caught.value.code is grpc.StatusCode.PERMISSION_DENIED


async def test_the_edge_reaches_no_internal_method(service: Running, identity: Identities) -> None:
    async with client(service, identity, "edge") as cost:
        with pytest.raises(RemitError, match="public may not call"):
            await cost.ReserveBudget(
                RESERVE, metadata=((FORWARDED_KEY, f"URI={spiffe_id('tools')}"),)
            )


async def test_the_mesh_listener_passes_the_caller_on(
    service: Running, identity: Identities
) -> None:
    async with client(service, identity, "mesh") as cost:
        response = await cost.ReserveBudget(
            RESERVE, metadata=((FORWARDED_KEY, f"URI={spiffe_id('inference')}"),)
        )
        assert response.reservation.name == "inference"
        with pytest.raises(RemitError, match="no party"):
            await cost.ReserveBudget(RESERVE)


async def test_without_a_certificate_there_is_no_connection(service: Running) -> None:
    async with Mesh.connect(f"127.0.0.1:{service.port}", None) as mesh:
        with pytest.raises(RemitError) as caught:
            await mesh.stub(cost_service_pb2_grpc.CostServiceStub).ReserveBudget(RESERVE)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE


async def test_a_method_of_another_service_is_unknown_here(
    service: Running, identity: Identities
) -> None:
    address = f"127.0.0.1:{service.port}"
    async with Mesh.connect(address, identity("tools"), party="cost") as mesh:
        with pytest.raises(RemitError, match="not in the contracts") as caught:
            await mesh.stub(policy_service_pb2_grpc.PolicyServiceStub).ListRemitKeys(
                policy_service_pb2.ListRemitKeysRequest()
            )
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_METHOD_UNKNOWN


async def test_a_passed_deadline_is_said(service: Running, identity: Identities) -> None:
    service.servicer.go_on.clear()
    async with client(service, identity, "tools") as cost:
        with pytest.raises(RemitError) as caught:
            await cost.ReserveBudget(RESERVE, timeout=0.2)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    await eventually(lambda: service.servicer.in_flight == 0)


async def test_a_bug_is_an_internal_error_with_an_id(
    service: Running, identity: Identities
) -> None:
    service.servicer.failure = ZeroDivisionError("secret detail")
    async with client(service, identity, "tools") as cost:
        with pytest.raises(RemitError) as caught:
            await cost.ReserveBudget(RESERVE)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_INTERNAL
    assert "secret detail" not in caught.value.message
    assert caught.value.metadata["error_id"] in caught.value.message


async def test_a_request_over_its_bound_is_refused(service: Running, identity: Identities) -> None:
    async with client(service, identity, "tools") as cost:
        with pytest.raises(RemitError, match="takes 16384") as caught:
            await cost.ReserveBudget(cost_service_pb2.ReserveBudgetRequest(item="x" * 20_000))
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_TOO_LARGE


async def test_a_response_over_its_bound_is_refused(service: Running, identity: Identities) -> None:
    service.servicer.item = "x" * 20_000
    async with client(service, identity, "tools") as cost:
        with pytest.raises(RemitError, match="gives at most 16384") as caught:
            await cost.ReserveBudget(RESERVE)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_TOO_LARGE


class Speaks(inference_service_pb2_grpc.InferenceServiceServicer):
    """Says a little and then too much."""

    async def StreamGenerateText(
        self, _request: inference_service_pb2.StreamGenerateTextRequest, _context: Any
    ) -> AsyncIterator[inference_service_pb2.StreamGenerateTextResponse]:
        for length in (1, 100):
            yield inference_service_pb2.StreamGenerateTextResponse(text_delta="x" * length)


async def test_a_message_of_a_stream_over_its_bound_ends_it(
    tls_folder: Path, identity: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/remit.api.inference.v1.InferenceService/StreamGenerateText"
    contract = replace(known_contract(path), max_response_bytes=50, auth=options_pb2.AUTH_SERVICE)
    monkeypatch.setattr(server, "contract_of", lambda _path: contract)
    run = Running(Cost())  # type: ignore[abstract]
    add = inference_service_pb2_grpc.add_InferenceServiceServicer_to_server
    service = host.Service(
        area="inference",
        servicers=[(add, Speaks())],  # type: ignore[abstract]
        verifier=RemitVerifier(NoKeys(), SystemClock()),
    )
    settings = ServiceSettings.load(tls_dir=tls_folder / "inference")
    opening = contextlib.nullcontext(service)
    task = asyncio.create_task(host.run(opening, settings, stop=run.stop, started=run.started))
    await eventually(lambda: run.port)
    address = f"127.0.0.1:{run.port}"
    async with Mesh.connect(address, identity("agent"), party="inference") as mesh:
        stub = mesh.stub(inference_service_pb2_grpc.InferenceServiceStub)
        request = inference_service_pb2.StreamGenerateTextRequest()
        said: Any = stub.StreamGenerateText(request)
        assert (await anext(said)).text_delta == "x"
        with pytest.raises(RemitError, match="gives at most 50") as caught:
            await anext(said)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_TOO_LARGE
    run.stop.set()
    await task


async def test_closing_calls_have_room_when_opening_ones_are_shed(
    tls_folder: Path, identity: Identities
) -> None:
    async with running(tls_folder, max_in_flight=10) as run, client(run, identity, "tools") as cost:
        run.servicer.go_on.clear()
        shed = gained("remit_rpc_overloaded_total", method=RESERVE_BUDGET)
        calls = [asyncio.ensure_future(cost.ReserveBudget(RESERVE)) for _ in range(8)]
        await eventually(lambda: run.servicer.in_flight == 8)
        with pytest.raises(RemitError) as caught:
            await cost.ReserveBudget(RESERVE)
        assert caught.value.reason == error_reason_pb2.ERROR_REASON_OVERLOADED
        assert caught.value.retry_after_s
        assert shed() == 1
        await cost.SettleReservation(SETTLE)
        run.servicer.go_on.set()
        await asyncio.gather(*calls)


async def test_calls_in_flight_end_before_a_drained_service_does(
    tls_folder: Path, identity: Identities
) -> None:
    async with running(tls_folder) as run, client(run, identity, "tools") as cost:
        run.servicer.go_on.clear()
        call = asyncio.ensure_future(cost.ReserveBudget(RESERVE))
        await eventually(lambda: run.servicer.in_flight == 1)
        run.stop.set()
        await eventually(lambda: asyncio.to_thread(lambda: run.http("/ready")[0] == 503))
        run.servicer.go_on.set()
        assert (await call).reservation.name == "tools"


async def test_probes_and_metrics_answer_on_a_plain_port(
    service: Running, identity: Identities
) -> None:
    await eventually(lambda: asyncio.to_thread(lambda: service.http("/ready")[0] == 200))
    async with client(service, identity, "tools") as cost:
        await cost.ReserveBudget(RESERVE)
    assert (await asyncio.to_thread(service.http, "/health"))[0] == 200
    _, metrics = await asyncio.to_thread(service.http, "/metrics")
    assert 'method="/remit.api.cost.v1.CostService/ReserveBudget"' in metrics
    service.faults.append("the database is away")
    status = health_pb2.HealthCheckResponse.NOT_SERVING
    async with _raw(service, identity) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)

        async def not_serving() -> bool:
            answer = await health.Check(health_pb2.HealthCheckRequest())
            return bool(answer.status == status)

        await eventually(not_serving)
    code, reason = await asyncio.to_thread(service.http, "/ready")
    assert (code, "the database is away" in reason) == (503, True)


async def test_reflection_lists_the_public_services(service: Running, identity: Identities) -> None:
    async with _raw(service, identity) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]

        async def asked() -> AsyncIterator[Any]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")

        listed = {
            service.name
            async for answer in stub.ServerReflectionInfo(asked())
            for service in answer.list_services_response.service
        }
    assert set(public_services()) <= listed
    assert "remit.api.cost.v1.CostService" not in listed


async def test_a_port_in_use_is_named_with_its_setting(service: Running, tls_folder: Path) -> None:
    with pytest.raises(RemitError, match=f"{service.port} is in use; set .*PORT"):
        async with running(tls_folder, port=service.port):
            pass


async def test_a_remit_is_asked_for_where_the_contract_says_so(
    tls_folder: Path, identity: Identities
) -> None:
    class Tools(tool_service_pb2_grpc.ToolServiceServicer):
        pass

    run = Running(Cost())  # type: ignore[abstract]
    service = host.Service(
        area="tools",
        servicers=[
            (tool_service_pb2_grpc.add_ToolServiceServicer_to_server, Tools())  # type: ignore[abstract]
        ],
        verifier=RemitVerifier(NoKeys(), SystemClock()),
    )
    settings = ServiceSettings.load(tls_dir=tls_folder / "tools")
    opening = contextlib.nullcontext(service)
    task = asyncio.create_task(host.run(opening, settings, stop=run.stop, started=run.started))
    await eventually(lambda: run.port)
    address = f"127.0.0.1:{run.port}"
    async with Mesh.connect(address, identity("agent"), party="tools") as mesh:
        with pytest.raises(RemitError, match="no remit was presented") as caught:
            await mesh.stub(tool_service_pb2_grpc.ToolServiceStub).ListTools(
                tool_service_pb2.ListToolsRequest()
            )
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    run.stop.set()
    await task


@contextlib.asynccontextmanager
async def _raw(run: Running, identity: Identities) -> AsyncIterator[grpc.aio.Channel]:
    options = (("grpc.ssl_target_name_override", "cost.remit.internal"),)
    async with grpc.aio.secure_channel(
        f"127.0.0.1:{run.port}", identity("mesh").channel_credentials(), options
    ) as channel:
        yield channel


async def test_a_call_that_its_caller_left_is_not_counted_as_served(
    service: Running, identity: Identities
) -> None:
    method = "/remit.api.cost.v1.CostService/ReserveBudget"
    left = metrics.RPC_REQUESTS.labels(method, "CANCELLED")._value
    before = left.get()
    service.servicer.go_on.clear()
    async with client(service, identity, "tools") as cost:
        call = asyncio.ensure_future(cost.ReserveBudget(RESERVE))
        await eventually(lambda: service.servicer.in_flight == 1)
        call.cancel()
        await asyncio.wait({call})
        await eventually(lambda: left.get() == before + 1)


async def test_health_can_be_watched(service: Running, identity: Identities) -> None:
    async with _raw(service, identity) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        watched = health.Watch(health_pb2.HealthCheckRequest(), timeout=20)
        seen = set()
        async for answer in watched:
            seen.add(answer.status)
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                service.faults.append("the database is away")
            elif len(seen) > 1:
                break
    assert health_pb2.HealthCheckResponse.NOT_SERVING in seen
