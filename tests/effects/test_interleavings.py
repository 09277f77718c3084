"""Random callers, duplicates, cancels and outages over two replicas: the promise holds."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remit.api.errors.v1 import error_reason_pb2
from remit.effects import EffectResult, Permit
from remit.effects.store import ClaimStore
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.conftest import OpenDatabase
from tests.effects.world import LEASE_S, Replica, World, a_call, a_request, replica
from tests.waiting import eventually

GRACE_S = LEASE_S
"""Not run out here, however slow the machine is: what was stopped, and did not stop in time, would
rightly be in doubt."""
EXPECTED = {
    error_reason_pb2.ERROR_REASON_KEY_REUSED,
    error_reason_pb2.ERROR_REASON_EFFECT_IN_PROGRESS,
    error_reason_pb2.ERROR_REASON_PERMISSION_DENIED,
    error_reason_pb2.ERROR_REASON_BUDGET_EXHAUSTED,
    error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
    error_reason_pb2.ERROR_REASON_CANCELLED,
}


@dataclass(frozen=True)
class Step:
    """One caller, and what changes around it."""

    replica: int
    key: int
    body: int
    turns: int
    """Turns of the event loop before it calls."""
    leaves_after: int | None
    """Turns after which it cancels."""
    trouble: str | None
    """What breaks, or is mended, when it comes."""


steps = st.builds(
    Step,
    replica=st.integers(0, 1),
    key=st.integers(0, 2),
    body=st.integers(0, 5).map(lambda n: int(n == 5)),
    turns=st.integers(0, 40),
    leaves_after=st.none() | st.integers(0, 60),
    trouble=st.none() | st.sampled_from(["policy", "cost", "audit", "denied", "out_of_money"]),
)


async def turns(count: int) -> None:
    """Lets everything else run that many times."""
    for _ in range(count):
        await asyncio.sleep(0)


class Scene:
    """One example: its own keys, its own world, one database for all examples."""

    def __init__(self, claims: Database, number: int) -> None:
        self.world = World()
        self.number = number
        self.replicas = [
            replica(
                ClaimStore(claims, owner=f"{number}-{name}", lease_s=LEASE_S),
                self.world,
                stop_grace_s=GRACE_S,
            )
            for name in ("one", "two")
        ]
        self.by_key: Counter[int] = Counter()
        self.answers: list[object] = []

    async def play(self, step: Step) -> None:
        await turns(step.turns)
        self._toggle(step.trouble)

        async def effect(permit: Permit) -> EffectResult:
            self.by_key[step.key] += 1
            await turns(3)
            return await self.world.effect(permit)

        key, body = f"{self.number}-{step.key}", str(step.body)
        call = asyncio.create_task(
            self.replicas[step.replica].gate.perform(a_request(key, body), effect)
        )
        if step.leaves_after is not None:
            await turns(step.leaves_after)
            call.cancel()
        (answer,) = await asyncio.gather(call, return_exceptions=True)
        self.answers.append(answer)

    def _toggle(self, trouble: str | None) -> None:
        if trouble in {"denied", "out_of_money"}:
            setattr(self.world, trouble, not getattr(self.world, trouble))
        elif trouble is not None:
            self.world.away ^= {trouble}

    async def mended(self) -> None:
        """Everything works again, and both replicas sweep until nothing is left."""
        self.world.away.clear()
        await asyncio.gather(*(r.gate.drain() for r in self.replicas))
        await eventually(self._swept)

    async def _swept(self) -> bool:
        await self.replicas[0].closer.sweep()
        return not self.world.open_holds() and not await _unclosed(self.replicas[0])


async def _unclosed(one: Replica) -> bool:
    return bool(await one.store.unclosed(older_than_s=0))


numbers = iter(range(10**9))


@pytest.fixture
async def claims(database: OpenDatabase) -> Database:
    """One database for all examples; each has keys of its own."""
    return await database("tools")


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(script=st.lists(steps, min_size=1, max_size=12))
async def test_whatever_comes_together(claims: Database, script: list[Step]) -> None:
    scene = Scene(claims, next(numbers))
    with a_call():
        await asyncio.gather(*(scene.play(step) for step in script))
    await scene.mended()
    assert scene.world.faults == []
    assert max(scene.world.touched.values(), default=0) <= 1
    for answer in scene.answers:
        assert not isinstance(answer, Exception) or (
            isinstance(answer, RemitError) and answer.reason in EXPECTED
        ), answer
    rows = await claims.fetch(
        "SELECT c.key, count(*) FILTER (WHERE outcome = 'SUCCEEDED') AS successes"
        " FROM effect_claims c JOIN effect_attempts a USING (claim) GROUP BY c.key"
    )
    assert all(row["successes"] <= 1 for row in rows), "a success is never repeated"
