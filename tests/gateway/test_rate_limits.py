"""Rate limits through a real Envoy: what is counted, for whom, and what a refused client reads."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import unquote

import grpc
import pytest
import pytest_asyncio
from google.rpc import status_pb2

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.gateway.v1 import authorization_pb2, rate_limit_pb2
from remit.api.options.v1 import options_pb2
from remit.policy.credentials import Holder, Session
from remit.policy.entities import Principal
from remit.policy.ext_authz import admitted
from remit.policy.limit_book import Limits
from remit.policy.limit_stores import MemoryLimits, open_redis
from remit.policy.limits import Limit
from remit.policy.rate_limits import EdgeLimits
from remit.policy.remits import Issued
from remit.rpc.contracts import all_contracts
from remit.rpc.envoy import RATE_LIMIT_DOMAIN, RateLimitServicer
from remit.rpc.errors import RemitError
from tests.gateway.services import Services, running_services
from tests.policy.world import MovedClock
from tests.redis_server import running_redis
from tests.rest import Answer
from tests.waiting import PATIENCE

pytestmark = pytest.mark.asyncio(loop_scope="module")

AGENTS = "/remit.api.agent.v1.AgentService"
COUNTED = {f"{AGENTS}/{method}" for method in ("CreateRun", "StreamRun", "ForkRun")}
HOUR = 3600
CALLERS = 1000
REQUEST = agent_service_pb2.CreateRunRequest(agent="agents/a", task="t", request_id="r")
BODY = {"agent": "agents/a", "task": "t", "requestId": "r"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Services]:
    # A thousand callers at once share one event loop with everything that they call.
    async with running_services(tmp_path_factory.mktemp("limits"), patience=PATIENCE * 20) as made:
        yield made


@pytest.fixture
def services(running: Services) -> Services:
    running.forget()
    limited(running)
    return running


def limited(
    services: Services,
    counting: RateLimitServicer | None = None,
    *,
    clock: MovedClock | None = None,
    user: int = 10,
    org: int = 0,
) -> None:
    """Everybody's limits, over an hour; the credential `Bearer alice` is Alice's."""
    memory = MemoryLimits(clock or MovedClock(), max_entries=100_000)
    services.world.limits = counting or EdgeLimits(memory, fail_open=False)
    limits = Limits(Limit(user, HOUR), None, Limit(org, HOUR) if org else None)

    async def judge(
        request: authorization_pb2.CheckRequest, _: Any
    ) -> authorization_pb2.CheckResponse:
        name = request.attributes.request.http.headers["authorization"].removeprefix("Bearer ")
        principal = Principal(f"orgs/acme/users/{name}", "orgs/acme", "", ("member",))
        holder = Holder(principal.org, principal.user, f"orgs/acme/apiKeys/{name}")
        session = Session(
            principal, holder, limits, lambda _: Issued("remit-of-alice", 60.0), b"", end=0.0
        )
        return admitted(session, "runs.create")

    services.world.judge = judge


async def create(services: Services, *metadata: tuple[str, str], user: str = "alice") -> None:
    """One run by gRPC. Raises what the client reads."""
    stub = agent_service_pb2_grpc.AgentServiceStub(services.world.edge())
    given = (("authorization", f"Bearer {user}"), *metadata)
    try:
        await stub.CreateRun(REQUEST, metadata=given, timeout=60 * PATIENCE)
    except grpc.aio.AioRpcError as error:
        raise RemitError.from_rpc(error) from error


async def by_rest(services: Services, **headers: str) -> Answer:
    return await services.client.call(
        "POST", "/v1/runs", BODY, headers={"authorization": "Bearer alice"} | headers
    )


async def by_web(services: Services) -> Answer:
    content = REQUEST.SerializeToString()
    framed = b"\0" + len(content).to_bytes(4, "big") + content
    headers = {
        "authorization": "Bearer alice",
        "content-type": "application/grpc-web+proto",
        "x-grpc-web": "1",
    }
    return await services.client.call("POST", f"{AGENTS}/CreateRun", framed, headers=headers)


async def test_what_starts_a_run_counts_and_nothing_else() -> None:
    counted = {
        path
        for path, contract in all_contracts().items()
        if contract.rate_limit == options_pb2.RATE_LIMIT_RUNS
    }
    assert counted == COUNTED
    assert all(contract.is_public for path, contract in all_contracts().items() if path in counted)


async def test_the_eleventh_run_of_a_window_is_refused_until_there_is_a_place(
    services: Services,
) -> None:
    clock = MovedClock()
    limited(services, clock=clock)
    for _ in range(10):
        await create(services)
        clock.move(1)
    with pytest.raises(RemitError) as refused:
        await create(services)
    error = refused.value
    assert error.reason == reasons.ERROR_REASON_RATE_LIMITED
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.message == "orgs/acme/users/alice may start 10 runs in any 3600 s, and has"
    assert error.retry_after_s == HOUR - 10
    assert [q.subject for q in error.quota] == ["orgs/acme/users/alice"]
    assert error.metadata == {"limit": "user"}
    assert len(services.requests) == 10, "what is refused never reaches the service"
    clock.move(HOUR - 10)
    await create(services)


async def test_a_rest_client_reads_429_and_when_to_come_again(services: Services) -> None:
    limited(services, user=1)
    assert (await by_rest(services)).status == 200
    answer = await by_rest(services)
    assert answer.status == 429
    assert answer.headers["retry-after"] == str(HOUR)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.error().reason == reasons.ERROR_REASON_RATE_LIMITED
    assert answer.error().retry_after_s == HOUR
    assert not {name for name in answer.headers if name.startswith("grpc-")}


async def test_a_stream_counts_by_rest_and_by_grpc(services: Services) -> None:
    limited(services, user=1)
    stub = agent_service_pb2_grpc.AgentServiceStub(services.world.edge())
    request = agent_service_pb2.StreamRunRequest(request=REQUEST)
    metadata = (("authorization", "Bearer alice"),)

    async def none(*_: Any) -> Any:
        yield agent_service_pb2.StreamRunResponse(event=run_pb2.RunEvent(sequence=1))

    services.streams[f"{AGENTS}/StreamRun"] = none
    assert [answer.event.sequence async for answer in stub.StreamRun(request, metadata=metadata)]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        [answer async for answer in stub.StreamRun(request, metadata=metadata)]
    assert RemitError.from_rpc(refused.value).reason == reasons.ERROR_REASON_RATE_LIMITED
    answer = await services.client.call(
        "POST", "/v1/runs:stream", BODY, headers={"authorization": "Bearer alice"}
    )
    assert (answer.status, answer.headers["retry-after"]) == (429, str(HOUR))


async def test_a_browser_reads_the_whole_error(services: Services) -> None:
    limited(services, user=1)
    await by_web(services)
    answer = await by_web(services)
    details = answer.headers["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4)))
    assert int(answer.headers["grpc-status"]) == status.code
    assert unquote(answer.headers["grpc-message"]) == status.message
    assert answer.body == b""
    assert RemitError.from_status(status).reason == reasons.ERROR_REASON_RATE_LIMITED
    assert answer.headers["retry-after"] == str(HOUR)


async def test_one_users_limit_is_no_other_users(services: Services) -> None:
    limited(services, user=1, org=3)
    for user in ("alice", "bob", "carol"):
        await create(services, user=user)
    with pytest.raises(RemitError) as refused:
        await create(services, user="bob")
    assert {q.subject for q in refused.value.quota} == {"orgs/acme/users/bob", "orgs/acme"}
    with pytest.raises(RemitError) as refused:
        await create(services, user="dave")
    assert refused.value.metadata == {"limit": "org"}


async def test_what_a_client_says_of_itself_changes_nothing(services: Services) -> None:
    limited(services, user=1)
    spoofed = {
        "user": "orgs/acme/users/bob",
        "x-remit-user": "orgs/acme/users/bob",
        "envoy.filters.http.ext_authz": "user=bob",
        "x-envoy-original-method": "GET",
        "x-envoy-ratelimited": "false",
        "x-envoy-internal": "true",
        "x-forwarded-for": "10.0.0.1",
        "limit": "RATE_LIMIT_UNSPECIFIED",
    }
    await create(services, *spoofed.items())
    (question,) = services.world.counting
    assert question.domain == RATE_LIMIT_DOMAIN
    assert [(e.key, e.value) for d in question.descriptors for e in d.entries] == [
        ("limit", "RATE_LIMIT_RUNS"),
        ("user", "orgs/acme/users/alice"),
        ("user_runs", "1/3600"),
        ("api_key", "orgs/acme/apiKeys/alice"),
        ("api_key_runs", "none"),
        ("org", "orgs/acme"),
        ("org_runs", "none"),
    ]
    with pytest.raises(RemitError):
        await create(services, *spoofed.items())
    assert (await by_rest(services, **spoofed)).status == 429


async def test_a_call_whose_caller_is_not_known_does_not_pass(services: Services) -> None:
    """As if the check had answered nothing about the caller."""
    limited(services)
    services.world.judge = None
    with pytest.raises(RemitError) as refused:
        await create(services)
    assert refused.value.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert not services.requests


class Away:
    """A policy service that fails at this one question."""

    async def ShouldRateLimit(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "away")


async def test_without_an_answer_nothing_that_counts_passes(services: Services) -> None:
    services.world.limits = Away()
    with pytest.raises(RemitError) as refused:
        await create(services)
    assert refused.value.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    answer = await by_rest(services)
    assert answer.status == 503
    assert answer.error().message == refused.value.message
    listed = await services.client.call("GET", "/v1/runs")
    assert listed.status == 200, "what does not count is not asked about"


async def test_only_the_edge_can_ask(services: Services) -> None:
    for channel in (services.world.edge(), services.world.mesh("agent")):
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(b"", metadata=(("authorization", "Bearer alice"),))
        error = RemitError.from_rpc(refused.value)
        assert error.reason == reasons.ERROR_REASON_METHOD_UNKNOWN
    assert not services.world.counting


async def passed_of(services: Services) -> int:
    """How many of so many callers at once get through; every other must be refused by the limit."""

    async def call() -> bool:
        try:
            await create(services)
        except RemitError as error:
            if error.reason != reasons.ERROR_REASON_RATE_LIMITED:
                raise
            return False
        return True

    return sum(await asyncio.gather(*(call() for _ in range(CALLERS))))


async def test_a_thousand_callers_at_once_and_one_replica(services: Services) -> None:
    limited(services, user=100)
    assert await passed_of(services) == 100
    assert len(services.requests) == 100


class InTurn:
    """Each question goes to the next of several replicas."""

    def __init__(self, replicas: list[EdgeLimits]) -> None:
        self._replicas = replicas
        self._asked = 0

    async def ShouldRateLimit(
        self, request: rate_limit_pb2.RateLimitRequest, context: Any
    ) -> rate_limit_pb2.RateLimitResponse:
        self._asked += 1
        return await self._replicas[self._asked % len(self._replicas)].ShouldRateLimit(
            request, context
        )


async def test_a_thousand_callers_at_once_and_three_replicas_on_redis(services: Services) -> None:
    async with running_redis() as server, AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(open_redis(server.url, timeout_s=60 * PATIENCE))
            for _ in range(3)
        ]
        limited(services, InTurn([EdgeLimits(one, fail_open=False) for one in stores]), user=100)
        assert await passed_of(services) == 100


async def test_a_store_that_is_away_refuses_unless_the_operator_says_otherwise(
    services: Services,
) -> None:
    async with running_redis() as server, open_redis(server.url, timeout_s=PATIENCE) as store:
        await server.kill()
        limited(services, EdgeLimits(store, fail_open=False))
        with pytest.raises(RemitError) as refused:
            await create(services)
        assert refused.value.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE
        limited(services, EdgeLimits(store, fail_open=True))
        await create(services)
        await server.start()
