"""What waits for people and what they decide is counted once, as it is committed."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest

from remit.policy import approval_terms
from remit.policy.approval_metrics import open_approvals
from tests.monitoring.values import gained, value
from tests.policy.approvals import NO, asked, decide, exact, guard, new_claim
from tests.policy.world import World
from tests.waiting import eventually


@pytest.fixture(autouse=True)
async def _guarded(world: World) -> None:
    await guard(world, "team:ops; expires=1h")


@contextlib.asynccontextmanager
async def looking(world: World) -> AsyncIterator[None]:
    """The gauges are kept while the body runs."""
    task = asyncio.ensure_future(open_approvals(world.database, every_s=0.01)())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def waiting(state: str) -> float:
    return value("remit_approvals_open", state=state)


async def test_an_approval_is_counted_once_in_each_state_that_it_comes_to(world: World) -> None:
    pending = gained("remit_approvals_total", state="PENDING")
    approved = gained("remit_approvals_total", state="APPROVED")
    used = gained("remit_approvals_total", state="USED")
    decided = gained("remit_approval_decision_seconds_count", state="APPROVED")
    took_s = gained("remit_approval_decision_seconds_sum", state="APPROVED")
    action = exact(new_claim())
    name = (await asked(world, action)).approval
    await asked(world, action, attempt=2)
    assert (pending(), approved(), decided()) == (1, 0, 0)
    await decide(world, name, request_id="r1")
    await decide(world, name, request_id="r1")
    await world.keeper.settle()
    assert (approved(), decided(), used()) == (1, 1, 0)
    assert 0 < took_s() < 3600
    # Its claim may begin more than once; it is used for one effect.
    for attempt in (3, 3, 4):
        await asked(world, action, attempt=attempt)
    assert (pending(), approved(), used(), decided()) == (1, 1, 1, 1)


async def test_what_ends_without_its_effect_is_counted_by_why(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    denied = gained("remit_approvals_total", state="DENIED")
    withdrawn = gained("remit_approvals_total", state="WITHDRAWN")
    expired = gained("remit_approvals_total", state="EXPIRED")
    said_no = gained("remit_approval_decision_seconds_count", state="DENIED")
    said_yes = gained("remit_approval_decision_seconds_count", state="APPROVED")
    await decide(world, (await asked(world, exact(new_claim()))).approval, verdict=NO)
    claim = new_claim()
    for text in (b"a", b"b"):
        await asked(world, exact(claim, arguments_digest=text * 32))
    monkeypatch.setattr(approval_terms, "MIN_EXPIRY_S", 0)
    await guard(world, "team:ops; expires=0s")
    await asked(world, exact(new_claim()))
    await world.keeper.settle()
    await world.keeper.settle()
    assert (denied(), withdrawn(), expired()) == (1, 1, 1)
    assert (said_no(), said_yes()) == (1, 0)


async def test_what_is_not_committed_is_not_counted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = gained("remit_approvals_total", state="PENDING")

    async def failing(*_: object, **__: object) -> None:
        message = "the database died"
        raise ConnectionError(message)

    monkeypatch.setattr("remit.policy.approval_store._record", failing)
    with pytest.raises(Exception, match=r".+"):
        await asked(world, exact(new_claim()))
    assert await world.approvals.newest_sequence() == 0
    assert pending() == 0


async def test_gauges_show_what_waits_and_how_long(world: World) -> None:
    actions = [exact(new_claim()) for _ in range(3)]
    names = [(await asked(world, action)).approval for action in actions]
    await decide(world, names[0])
    await _age(world, names[1], minutes=45)
    async with looking(world):
        await eventually(lambda: (waiting("PENDING"), waiting("APPROVED")) == (2, 1))
        await eventually(lambda: value("remit_approvals_waited_ratio") >= 0.75)
        assert value("remit_approvals_waited_ratio") < 0.8
        assert value("remit_approvals_open_oldest_seconds", state="PENDING") >= 2700
        assert 0 < value("remit_approvals_open_oldest_seconds", state="APPROVED") < 2700
        await decide(world, names[1], verdict=NO)
        await decide(world, names[2], verdict=NO)
        await eventually(lambda: (waiting("PENDING"), waiting("APPROVED")) == (0, 1))
        await eventually(lambda: value("remit_approvals_waited_ratio") == 0)
        assert value("remit_approvals_open_oldest_seconds", state="PENDING") == 0


async def _age(world: World, name: str, *, minutes: int) -> None:
    """As if it had been asked for so long ago; the service itself may not say so."""
    owner = await asyncpg.connect(
        world.database.dsn.replace("remit_policy@", "remit_policy_owner@")
    )
    try:
        await owner.execute(
            "UPDATE approvals SET create_time = create_time - make_interval(mins => $2),"
            " expire_time = expire_time - make_interval(mins => $2) WHERE approval = $1",
            uuid.UUID(name.removeprefix("approvals/")),
            minutes,
        )
    finally:
        await owner.close()
