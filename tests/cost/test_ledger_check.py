"""A check of the whole ledger: each fault made by hand is named, and nothing is changed."""

from __future__ import annotations

import asyncio

import pytest

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.cost import ledger_check, ledger_walk
from remit.rpc.errors import RemitError
from tests.conftest import OpenDatabase
from tests.cost.claim_world import ClaimWorld, Step
from tests.cost.services import EVE, claim_of

EVERYTHING_BUT = "SELECT * FROM {} WHERE claim <> $1 ORDER BY claim"


@pytest.fixture
async def world(database: OpenDatabase) -> ClaimWorld:
    return await ClaimWorld.open(database)


def counts(steps: list[Step]) -> tuple[int, int, int]:
    """Reservations and attempts compared, and differences told."""
    return (
        sum(step.reservations for step in steps),
        sum(step.attempts for step in steps),
        sum(len(step.differences) for step in steps),
    )


async def test_a_ledger_that_agrees_has_no_difference(world: ClaimWorld) -> None:
    await world.done(1)
    await world.done(2, calls=3, service="inference")
    await world.hold(3)
    await world.claim(3)
    await world.claim(4, "REFUSED")
    await world.changed("hold_nanos = NULL", 4)
    steps = await world.check()
    assert counts(steps) == (3, 4, 0)
    percents = [step.percent for step in steps]
    assert percents == sorted(percents)
    assert percents[-1] == 100
    assert max(percents[:-1]) < 100


async def test_an_empty_ledger_agrees(world: ClaimWorld) -> None:
    steps = await world.check()
    assert counts(steps) == (0, 0, 0)
    assert steps[-1].percent == 100


async def test_a_hold_whose_claim_was_deleted(world: ClaimWorld) -> None:
    await world.hold(1)
    assert await world.kinds() == [("CLAIM_MISSING", claim_of(1))]


async def test_a_reservation_that_was_deleted(world: ClaimWorld) -> None:
    await world.claim(1, "CLOSED")
    assert await world.kinds() == [("RESERVATION_MISSING", claim_of(1))]


async def test_a_hold_of_the_other_service(world: ClaimWorld) -> None:
    await world.hold(1, service="inference")
    await world.claim(1, service="tools")
    assert sorted(await world.kinds()) == [
        ("CLAIM_MISSING", claim_of(1)),
        ("RESERVATION_MISSING", claim_of(1)),
    ]


async def test_a_hold_that_was_left_when_its_claim_was_closed(world: ClaimWorld) -> None:
    await world.hold(1)
    await world.claim(1, "CLOSED")
    assert await world.kinds() == [("HOLD_LEFT", claim_of(1))]


async def test_a_closing_that_is_overdue(world: ClaimWorld) -> None:
    for number in (1, 2, 3, 4):
        await world.hold(number)
    await world.claim(1, "DONE")
    await world.claim(2)
    await world.claim(3, "DONE")
    await world.claim(4)
    await world.changed("update_time = clock_timestamp() - interval '5 minutes'", 1)
    await world.changed("lease_expires = clock_timestamp() - interval '5 minutes'", 2)
    await world.changed("lease_expires = clock_timestamp() - interval '1 second'", 4)
    overdue = [("CLOSING_OVERDUE", claim_of(1)), ("CLOSING_OVERDUE", claim_of(2))]
    assert sorted(await world.kinds()) == overdue


async def test_an_effect_that_never_ends(world: ClaimWorld) -> None:
    await world.hold(1)
    await world.claim(1)
    await world.changed("create_time = clock_timestamp() - interval '1 hour'", 1)
    assert await world.kinds() == [("OPEN_TOO_LONG", claim_of(1))]


async def test_a_bill_that_differs_by_a_nano(world: ClaimWorld) -> None:
    await world.done(1)
    await world.done(2)
    await world.changed("cost_nanos = cost_nanos - 1", 2)
    assert await world.kinds() == [("BILL_DIFFERS", claim_of(2))]


async def test_a_reservation_and_a_balance_that_were_changed_by_a_nano(world: ClaimWorld) -> None:
    await world.done(1)
    async with world.owner() as owner:
        await owner.execute("ALTER TABLE reservations DISABLE TRIGGER closed_for_good")
        await owner.execute("UPDATE reservations SET posted_nanos = posted_nanos - 1")
    await world.database.execute(
        "UPDATE balances SET posted_nanos = posted_nanos + 1 WHERE account = 'orgs/acme'"
        " AND period = 1"
    )
    differences = [found for step in await world.check() for found in step.differences]
    kinds = [type(found).Kind.Name(found.kind) for found in differences]
    assert kinds == ["KIND_BILL_DIFFERS", "KIND_BALANCE_DIFFERS", "KIND_TRANSFERS_DIFFER"]
    bill, balance, _ = differences
    assert bill.explanation == "999 nano-USD are posted, but its claim was billed 1000"
    assert balance.account == "orgs/acme"
    assert "posted 1001, but its transfers make 0 and 1000" in balance.explanation
    assert all(found.next_step for found in differences)


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("STARTED", "SETTLED_WHILE_OPEN"),
        ("REFUSED", "REFUSED_BUT_POSTED"),
        ("IN_DOUBT", "DOUBT_NOT_WHOLE"),
    ],
)
async def test_money_that_was_posted_and_should_not(
    world: ClaimWorld, state: str, kind: str
) -> None:
    await world.hold(1, calls=2)
    await world.claim(1, state, calls=2)
    await world.settle(1)
    assert await world.kinds() == [(kind, claim_of(1))]


async def test_what_starts_while_the_check_reads_is_no_difference(
    world: ClaimWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held, started, settled and closed after the ledger was read, and before the claims are."""
    await world.hold(1)
    await world.claim(1)
    read = world.walk._span

    async def overtaken(after: object) -> object:
        held = await read(after)  # type: ignore[arg-type]
        await world.settle(1)
        await world.changed(
            "state = 'CLOSED', outcome = 'SUCCEEDED', closed_time = clock_timestamp(),"
            " cost_nanos = 1000, used = '\\x2001'",
            1,
        )
        await world.done(2)
        return held

    monkeypatch.setattr(world.walk, "_span", overtaken)
    assert counts(await world.check()) == (1, 2, 0)


async def test_a_check_under_traffic_finds_nothing(
    world: ClaimWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_walk, "SPAN_SIZE", 3)
    for number in range(10):
        await world.done(number)

    async def traffic() -> None:
        for number in range(100, 160):
            await world.done(number, service=("tools", "inference")[number % 2])

    working = asyncio.create_task(traffic())
    checks = 0
    while not working.done() or not checks:
        assert await world.kinds() == []
        checks += 1
    await working
    assert await world.kinds() == []


async def test_a_check_that_broke_off_goes_on_where_it_was(
    world: ClaimWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_walk, "SPAN_SIZE", 2)
    for number in range(1, 8):
        await world.done(number)
    await world.hold(8)
    whole = await world.check()
    token = next(step.resume_token for step in whole if step.resume_token)
    before = [step for step in whole if step.resume_token in {"", token}]
    rest = await world.check(token)
    assert counts(rest)[0] == 8 - 2
    assert counts(rest)[2] == counts(whole)[2] == 1
    assert rest[0].percent >= max(step.percent for step in before) - 1


async def test_another_org_learns_that_there_is_something_and_not_what(world: ClaimWorld) -> None:
    await world.hold(1)
    await world.database.execute("UPDATE balances SET pending_nanos = 7")
    steps = await world.check(subject=EVE)
    assert counts(steps)[2] == 0
    assert sum(step.differences_elsewhere for step in steps) > 1
    assert "acme" not in str(steps)


async def test_a_doubt_that_was_resolved_late_is_counted_and_is_right(world: ClaimWorld) -> None:
    await world.hold(1, calls=2)
    await world.claim(1, "CLOSED")
    await world.changed("hold_nanos = 2000", 1)
    await world.post_whole(1)
    steps = await world.check()
    assert counts(steps)[2] == 0
    assert sum(step.resolved_late for step in steps) == 1


@pytest.mark.parametrize("area", ["inference", "tools"])
async def test_what_cannot_be_asked_is_not_said_to_be_right(world: ClaimWorld, area: str) -> None:
    await world.done(1)
    world.mesh.remove(f"/remit.api.{area}.")
    with pytest.raises(RemitError) as refused:
        await world.check()
    assert refused.value.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE


async def test_books_that_take_too_long_are_not_said_to_be_right(
    world: ClaimWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_check, "HEARTBEAT_S", 0.05)
    steps: list[Step] = []
    async with world.owner() as owner, owner.transaction():
        await owner.execute("LOCK TABLE balances IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(RemitError) as refused:
            await world.check(into=steps)
    assert refused.value.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert len(steps) > 3, "the stream is not silent meanwhile"
    assert all(step.percent < 100 for step in steps)


@pytest.mark.parametrize("token", ["x", "bm9wZQ=="])
async def test_a_token_of_something_else_is_refused(world: ClaimWorld, token: str) -> None:
    with pytest.raises(RemitError) as refused:
        await world.check(token)
    assert refused.value.reason == reasons.ERROR_REASON_INVALID_REQUEST
    (violation,) = refused.value.violations
    assert violation.field == "resume_token"


async def test_a_year_later_cost_still_closes_nothing_by_itself(world: ClaimWorld) -> None:
    await world.hold(1)
    await world.hold(2)
    await world.claim(2)
    tables = ("reservations", "transfers")
    before = [await world.database.fetch(EVERYTHING_BUT.format(t), claim_of(3)) for t in tables]
    world.clock.move(days=365)
    watch = world.watch()
    for _ in range(3):
        await watch.look()
        await world.check()
    await world.spend(3)
    for table, rows in zip(tables, before, strict=True):
        now = await world.database.fetch(EVERYTHING_BUT.format(table), claim_of(3))
        assert now == rows, f"{table} changed by itself"
