"""Both stores under callers that come at once; Redis is a real server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import redis.asyncio

from remit.api.errors.v1 import error_reason_pb2
from remit.policy.limit_stores import LimitStore, MemoryLimits, RedisLimits, open_redis, redis_key
from remit.policy.limits import MICROS, Limit, Meter
from remit.rpc.errors import RemitError
from tests.policy.test_limits import most_in_any_window
from tests.policy.world import ALICE, BOB, ORG, MovedClock
from tests.ports import free_ports
from tests.redis_server import RedisServer, running_redis
from tests.waiting import PATIENCE, eventually

HOUR = 3600
CALLERS = 1000
TIMEOUT_S = 10.0 * PATIENCE


def of_user(name: str = ALICE, *, most: int = 10, window_s: int = HOUR) -> Meter:
    return Meter("user", name, Limit(most, window_s))


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with running_redis() as running:
        yield running


@contextlib.asynccontextmanager
async def replicas(server: RedisServer, count: int) -> AsyncIterator[list[RedisLimits]]:
    async with AsyncExitStack() as stack:
        opened = [open_redis(server.url, timeout_s=TIMEOUT_S) for _ in range(count)]
        yield [await stack.enter_async_context(one) for one in opened]


async def admitted_of(stores: list[LimitStore], meters: list[Meter]) -> int:
    """How many of so many callers at once are admitted, spread over the stores."""
    calls = (stores[n % len(stores)].admit(meters) for n in range(CALLERS))
    return sum(refusals == () for refusals in await asyncio.gather(*calls))


async def test_a_thousand_callers_at_once_in_memory(clock: MovedClock) -> None:
    store = MemoryLimits(clock, max_entries=1000)
    assert await admitted_of([store], [of_user()]) == 10


@pytest.mark.parametrize("count", [1, 3])
async def test_a_thousand_callers_at_once_on_redis(server: RedisServer, count: int) -> None:
    async with replicas(server, count) as stores:
        org = Meter("org", ORG, Limit(500, HOUR))
        assert await admitted_of([*stores], [of_user(most=100), org]) == 100
        assert await admitted_of([*stores], [of_user(BOB, most=1000), org]) == 400
        key = redis_key(of_user(BOB))
        async with redis.asyncio.Redis.from_url(server.url) as client:
            assert await client.llen(key) == 400, "what the org refuses does not count for Bob"


async def test_a_script_admits_exactly_what_no_window_forbids(server: RedisServer) -> None:
    """By the times that the server itself wrote."""
    window_ms = 20
    async with replicas(server, 3) as stores, redis.asyncio.Redis.from_url(server.url) as client:
        script = client.register_script(stores[0]._script.script)
        times: list[int] = []
        waits: list[int] = []

        async def call() -> None:
            now, wait = await script(keys=["log"], args=[5, window_ms * 1000])
            times.extend([int(now)] if int(wait) == 0 else [])
            waits.append(int(wait))

        for _ in range(40):
            await asyncio.gather(*(call() for _ in range(20)))
        assert most_in_any_window(times, window_ms * 1000) <= 5
        assert max(waits) <= window_ms * 1000
        assert len(times) > 5, "places became free again"
        assert any(waits)


async def test_keys_end_with_their_window(server: RedisServer) -> None:
    async with replicas(server, 1) as (store,):
        await store.admit([of_user(window_s=60), Meter("org", ORG, Limit(5, 120))])
        async with redis.asyncio.Redis.from_url(server.url) as client:
            assert 0 < await client.pttl(redis_key(of_user())) <= 60_000
            assert (
                60_000 < await client.pttl(redis_key(Meter("org", ORG, Limit(5, 120)))) <= 120_000
            )


async def test_a_refusal_says_when_there_is_a_place(server: RedisServer) -> None:
    async with replicas(server, 2) as (one, other):
        assert await one.admit([of_user(most=1)]) == ()
        (refusal,) = await other.admit([of_user(most=1)])
        assert refusal.meter == of_user(most=1)
        assert 0 < refusal.wait_us <= HOUR * MICROS


def test_the_keys_of_an_org_lie_in_one_slot() -> None:
    assert redis_key(of_user()) == "remit:runs:{orgs/acme}:orgs/acme/users/alice"
    assert redis_key(Meter("org", ORG, Limit(1, 1))) == "remit:runs:{orgs/acme}:orgs/acme"


async def test_a_store_that_is_away_is_told_in_time_and_used_again_once_it_is_back(
    server: RedisServer,
) -> None:
    async with replicas(server, 1) as (store,):
        assert await store.admit([of_user()]) == ()
        await server.kill()
        with pytest.raises(RemitError) as away:
            await store.admit([of_user()])
        assert away.value.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
        with pytest.raises(RemitError):
            await store.ping()
        await server.start()

        async def answers() -> bool:
            with contextlib.suppress(RemitError):
                return await store.admit([of_user()]) == ()
            return False

        await eventually(answers)


async def test_a_store_that_hangs_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        async with open_redis(f"redis://127.0.0.1:{port}", timeout_s=0.05) as store:
            with pytest.raises(RemitError) as away:
                await store.admit([of_user()])
    assert away.value.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE


async def test_nobody_there_is_told_without_the_password() -> None:
    (port,) = free_ports(1)
    async with open_redis(f"redis://:geheim@127.0.0.1:{port}", timeout_s=TIMEOUT_S) as store:
        with pytest.raises(RemitError) as away:
            await store.admit([of_user()])
    assert "geheim" not in str(away.value)


async def test_a_url_of_something_else_is_a_fault_of_the_settings() -> None:
    with pytest.raises(RemitError) as wrong:
        async with open_redis("http://:geheim@127.0.0.1", timeout_s=TIMEOUT_S):
            pass
    assert wrong.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
    assert "geheim" not in str(wrong.value)


async def test_a_full_memory_says_when_there_is_room(clock: MovedClock) -> None:
    store = MemoryLimits(clock, max_entries=1)
    assert await store.admit([of_user()]) == ()
    with pytest.raises(RemitError) as full:
        await store.admit([of_user(BOB)])
    assert full.value.reason == error_reason_pb2.ERROR_REASON_OVERLOADED
    assert full.value.retry_after_s == HOUR
    clock.move(HOUR)
    assert await store.admit([of_user(BOB)]) == ()
