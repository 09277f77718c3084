"""The edge's access log through a real Envoy: what audit is told of, once, and what it says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc import code_pb2, status_pb2

from remit.access import OPERATOR, UNVERIFIED
from remit.access_recorder import AccessRecorder
from remit.api.agent.v1 import agent_service_pb2_grpc
from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.gateway.v1 import access_log_pb2, authorization_pb2
from remit.audit.edge_log import EdgeLog
from remit.audit.sealing import Pseudonyms
from remit.gateway.access_log import BUFFER_BYTES
from remit.gateway.transcoder import MAX_BODY_BYTES
from remit.rpc.clock import SystemClock
from remit.rpc.envoy import AccessLogStub
from remit.rpc.errors import RemitError
from remit.rpc.identity import dns_name
from remit.rpc.ids import SystemIds
from tests.gateway.conftest import all_healthy
from tests.gateway.services import Services, running_services
from tests.gateway.test_rate_limits import REQUEST, by_rest, create, limited
from tests.monitoring.values import gained
from tests.rest import Client
from tests.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

WRITTEN = "envoy_access_logs_grpc_access_log_logs_written{"
DROPPED = "envoy_access_logs_grpc_access_log_logs_dropped{"
NO_REPLICA = 'envoy_cluster_upstream_cx_none_healthy{envoy_cluster_name="edge_audit"'
KEY = "rmt_" + "a" * 16 + "_" + "b" * 52 + "_" + "c" * 7
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Told:
    """What came of what the edge told."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.events: list[event_pb2.Event] = []
        clock = SystemClock()
        self.recorder = AccessRecorder(
            self._append,
            clock,
            SystemIds(),
            reporter="gateway",
            flush_s=60,
            interval_s=60,
            max_entries=1000,
        )
        self.log = EdgeLog(self.recorder, Pseudonyms(b"p" * 32), clock)
        services.world.access_log = self.log
        self.written_before = 0.0
        self._came = gained("remit_edge_log_entries_total")

    @property
    def client(self) -> Client:
        return self.services.client

    async def forget(self) -> None:
        """As after the start: nothing is on its way any more."""
        self.services.forget()
        await self.everything()
        self.events.clear()
        self.written_before = await self.written()

    async def written(self) -> float:
        """How many entries Envoy has written so far."""
        return await self.statistic(WRITTEN)

    async def statistic(self, series: str) -> float:
        """The value of Envoy's series that begins so."""
        page = await Client(str(self.services.world.topology.stats)).get("/stats/prometheus")
        (line,) = (line for line in page.body.decode().splitlines() if line.startswith(series))
        return float(line.split()[-1])

    async def everything(self) -> None:
        """Waits until all that Envoy wrote has come, and makes entries of it."""

        async def has_come() -> bool:
            return await self.written() == self._came()

        await eventually(has_come)
        await self.recorder.flush(whole=True)

    async def one(self, wrote: int = 1) -> tuple[event_pb2.Event, dict[str, Any]]:
        """The one entry of what was just asked; Envoy wrote it once."""

        async def is_written() -> bool:
            return await self.written() - self.written_before >= wrote

        await eventually(is_written)
        await self.everything()
        assert await self.written() - self.written_before == wrote
        (event,) = self.events
        assert event.kind == event_pb2.EVENT_KIND_ACCESS
        assert event.action == "edge.refuse"
        assert event.outcome == event_pb2.OUTCOME_REFUSED
        detail = json.loads(event.detail_json)
        assert detail["best_effort"] is True
        assert detail["asked_by"] == "edge"
        assert "127.0.0.1" not in str(event)
        return event, detail

    async def _append(self, events: Sequence[event_pb2.Event]) -> Sequence[RemitError | None]:
        self.events.extend(events)
        return [None] * len(events)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Told]:
    async with running_services(tmp_path_factory.mktemp("told")) as made:
        yield Told(made)


@pytest_asyncio.fixture(loop_scope="module")
async def told(running: Told) -> Told:
    await running.forget()
    return running


async def raw(told: Told, data: bytes) -> bytes:
    """What comes back for bytes that need be no HTTP."""
    address = told.services.world.topology.edge
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()


async def test_a_path_of_nothing_is_told_without_its_query(told: Told) -> None:
    path = f"/v1/nothing/{KEY}?api_key={KEY}&token=hidden"
    answer = await told.client.call(
        "GET",
        path,
        headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "cookie": "c=hidden"},
    )
    assert answer.status == 404
    event, detail = await told.one()
    assert (event.org, event.subject) == (OPERATOR, UNVERIFIED)
    assert event.trace_id == TRACE
    assert detail["methods"] == ["GET /v1/nothing/rmt_aaaa..."]
    assert detail["http_status"] == 404
    assert uuid.UUID(detail["request"])
    assert detail["count"] == 1
    for secret in ("hidden", KEY, "api_key", "Bearer"):
        assert secret not in str(event)


async def test_an_rpc_of_nothing_is_told(told: Told) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = told.services.world.edge().unary_unary(
        "/remit.api.agent.v1.AgentService/Nothing"
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await call(b"")
    _, detail = await told.one()
    assert detail["methods"] == ["POST /remit.api.agent.v1.AgentService/Nothing"]
    assert (detail["grpc_status"], detail["flags"]) == ("UNIMPLEMENTED", "NC")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"HELLO\r\n\r\n", "http1.codec_error"),
        (b"GET /v1/\xff\xfe HTTP/1.1\r\nhost: a\r\n\r\n", "http1.codec_error"),
        (b"GET /v1/runs?no=1 HTTP/1.1\r\nhost: a\r\n\r\n", "early_grpc_json_transcode_failure"),
        (b"GET /v1/%2Fruns HTTP/1.1\r\nhost: a\r\n\r\n", "path_normalization_failed"),
        (b"GET /v1/runs HTTP/1.1\r\n\r\n", "missing_host_header"),
    ],
)
async def test_what_is_malformed_is_told(told: Told, data: bytes, reason: str) -> None:
    assert b" 400 " in (await raw(told, data))[:16]
    event, detail = await told.one()
    assert event.subject == UNVERIFIED
    assert (detail["reason"], detail["http_status"]) == (reason, 400)
    assert "no=1" not in str(event)


async def test_a_call_over_a_limit_is_told_as_its_callers(told: Told) -> None:
    limited(told.services, user=1)
    await create(told.services)
    with pytest.raises(RemitError):
        await create(told.services, ("x-secret", "hidden"))
    event, detail = await told.one()
    assert (event.org, event.subject) == ("orgs/acme", "orgs/acme/users/alice")
    assert event.resource == "orgs/acme"
    assert detail["key"] == "orgs/acme/apiKeys/alice"
    assert detail["methods"] == ["remit.api.agent.v1.AgentService/CreateRun"]
    assert (detail["reason"], detail["flags"]) == ("request_rate_limited", "RL")
    assert detail["grpc_status"] == "RESOURCE_EXHAUSTED"
    assert "hidden" not in str(event)


async def test_a_call_over_a_limit_by_rest_has_its_http_status_alone(told: Told) -> None:
    limited(told.services, user=1)
    assert (await by_rest(told.services)).status == 200
    assert (await by_rest(told.services)).status == 429
    event, detail = await told.one()
    assert event.subject == "orgs/acme/users/alice"
    assert detail["http_status"] == 429
    assert "grpc_status" not in detail
    assert detail["methods"] == ["remit.api.agent.v1.AgentService/CreateRun"]


async def test_equal_refusals_share_an_entry(told: Told) -> None:
    limited(told.services, user=1)
    await create(told.services)
    for _ in range(5):
        with pytest.raises(RemitError):
            await create(told.services)
    _, detail = await told.one(wrote=5)
    assert detail["count"] == 5


async def test_what_policy_refuses_is_policys_to_tell(told: Told) -> None:
    status = status_pb2.Status(code=code_pb2.UNAUTHENTICATED)
    denied = authorization_pb2.DeniedHttpResponse(status=authorization_pb2.HttpStatus(code=401))
    told.services.world.verdict = authorization_pb2.CheckResponse(
        status=status, denied_response=denied
    )
    assert (await told.client.get("/v1/runs")).status == 401
    assert (await told.client.get("/v1/nothing")).status == 404
    _, detail = await told.one()
    assert detail["methods"] == ["GET /v1/nothing"]


async def test_that_policy_did_not_answer_is_told(told: Told) -> None:
    async def away(_: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "away")

    told.services.world.judge = away
    assert (await told.client.get("/v1/runs")).status == 503
    _, detail = await told.one()
    assert (detail["reason"], detail["flags"]) == ("ext_authz_error", "UAEX")
    assert detail["methods"] == ["remit.api.agent.v1.AgentService/ListRuns"]


async def test_what_is_too_large_is_told(told: Told) -> None:
    body = b"x" * (MAX_BODY_BYTES + 1)
    assert (await told.client.call("POST", "/v1/runs", body)).status == 413
    _, detail = await told.one()
    assert (detail["http_status"], detail["reason"]) == (413, "grpc_json_transcode_failure")


async def test_headers_that_are_too_large_are_told(told: Told) -> None:
    assert (await told.client.get("/v1/runs", x_long="y" * 14_000)).status == 431
    event, detail = await told.one()
    assert (detail["http_status"], detail["reason"]) == (431, "http1.headers_too_large")
    assert "yyy" not in str(event)


async def test_what_a_service_answers_is_the_services_to_tell(told: Told) -> None:
    async def refuse(*_: Any) -> Any:
        raise RemitError(reasons.ERROR_REASON_INVALID_REQUEST, "no")

    path = "/remit.api.agent.v1.AgentService/CreateRun"
    told.services.methods[path] = refuse
    assert (await told.client.get("/v1/runs")).status == 200
    stub = agent_service_pb2_grpc.AgentServiceStub(told.services.world.edge())
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.CreateRun(REQUEST, metadata=(("authorization", "Bearer k"),))
    assert (await told.client.get("/v1/nothing")).status == 404
    _, detail = await told.one()
    assert detail["methods"] == ["GET /v1/nothing"]


async def test_that_no_service_could_be_reached_is_told(told: Told) -> None:
    upstream = told.services.world.upstreams["agent", 0]
    await upstream.stop()
    try:
        assert (await told.client.get("/v1/runs")).status == 503
        _, detail = await told.one()
        assert detail["methods"] == ["remit.api.agent.v1.AgentService/ListRuns"]
        assert detail["http_status"] == 503
        assert set(detail["flags"].split(",")) & {"UF", "UH"}
    finally:
        await upstream.start()

        async def is_back() -> bool:
            return (await told.client.get("/v1/runs")).status == 200

        await eventually(is_back)


@contextlib.asynccontextmanager
async def without_audit(told: Told) -> AsyncIterator[None]:
    """While it lasts no replica of audit is there, and Envoy knows."""
    world = told.services.world
    await world.upstreams["audit", 0].stop()
    try:
        await eventually(world.envoy.unhealthy_replicas)
        yield
    finally:
        await world.upstreams["audit", 0].start()
        await eventually(lambda: all_healthy(world))


async def test_without_audit_calls_are_answered_and_told_of_when_it_is_back(told: Told) -> None:
    async with without_audit(told):
        given_up = await told.statistic(NO_REPLICA)
        assert (await told.client.get("/v1/runs")).status == 200
        assert (await told.client.get("/v1/nothing")).status == 404

        async def was_sent() -> bool:
            return await told.statistic(NO_REPLICA) > given_up

        await eventually(was_sent)
        assert not told.events
    _, detail = await told.one()
    assert detail["methods"] == ["GET /v1/nothing"]


async def test_what_has_no_room_is_dropped_and_counted_and_no_call_waits(told: Told) -> None:
    long = "/v1/" + "n" * 8000
    async with without_audit(told):
        dropped = await told.statistic(DROPPED)
        answers = [await told.client.get(long) for _ in range(60)]
        assert {answer.status for answer in answers} == {404}
        assert await told.statistic(DROPPED) > dropped
        # Of each thread's buffer, and one entry more.
        kept = await told.written() - told.written_before
        assert 0 < kept * len(long) < (BUFFER_BYTES + 2 * len(long)) * 2
    await told.everything()
    (event,) = told.events
    detail = json.loads(event.detail_json)
    assert detail["count"] == kept
    assert detail["methods"] == ["GET /v1/nnnnnnnn..."]


async def test_a_drain_ends_the_streams_and_the_edge_begins_others(told: Told) -> None:
    assert (await told.client.get("/v1/nothing")).status == 404
    await told.one()
    await told.log.close()
    await eventually(lambda: not told.log.streams)
    told.services.world.access_log = EdgeLog(told.recorder, Pseudonyms(b"p" * 32), SystemClock())
    await told.forget()
    assert (await told.client.get("/v1/nothing")).status == 404
    await told.one()


async def test_nobody_but_the_edge_may_tell(told: Told) -> None:
    async def nothing() -> AsyncIterator[access_log_pb2.StreamAccessLogsRequest]:
        yield access_log_pb2.StreamAccessLogsRequest()

    world = told.services.world
    for channel in (world.edge(), world.mesh("agent")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await AccessLogStub(channel).StreamAccessLogs(nothing())
        assert RemitError.from_rpc(refused.value).reason == reasons.ERROR_REASON_METHOD_UNKNOWN
    address = world.topology.replicas["audit"][0]
    for party in ("agent", "policy", "mesh"):
        async with grpc.aio.secure_channel(
            str(address),
            world.identity(party).channel_credentials(),
            [("grpc.ssl_target_name_override", dns_name("audit"))],
        ) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await AccessLogStub(channel).StreamAccessLogs(nothing())
        assert RemitError.from_rpc(refused.value).reason == reasons.ERROR_REASON_CALLER_NOT_ALLOWED
