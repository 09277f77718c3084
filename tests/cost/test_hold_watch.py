"""Holds that stay open are found and named, those of a busy minute are not, and none is closed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from structlog.testing import LogCapture

from remit.cost import hold_watch
from remit.rpc.errors import RemitError
from tests.conftest import OpenDatabase
from tests.cost.claim_world import ClaimWorld
from tests.cost.services import claim_of
from tests.monitoring.values import gained, value

OLDEST = "remit_ledger_holds_oldest_seconds"
OVERDUE = "remit_ledger_holds_overdue"
UNCLAIMED = "remit_ledger_holds_unclaimed"


@pytest.fixture
async def world(database: OpenDatabase) -> ClaimWorld:
    world = await ClaimWorld.open(database)
    await world.watch().look()
    return world


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[LogCapture]:
    capture = LogCapture()
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[capture])
    yield capture
    structlog.configure(processors=before)


def seen() -> tuple[float, float, float]:
    return value(OLDEST), value(OVERDUE), value(UNCLAIMED)


async def test_each_hold_that_stays_open_is_found(world: ClaimWorld) -> None:
    oldest = gained("remit_ledger_holds_oldest_seconds")
    overdue = gained("remit_ledger_holds_overdue")
    unclaimed = gained("remit_ledger_holds_unclaimed")
    await world.hold(1)
    await world.hold(2)
    await world.claim(2, "DONE")
    await world.changed("update_time = clock_timestamp() - interval '5 minutes'", 2)
    await world.hold(3)
    await world.claim(3)
    world.clock.move(minutes=10)
    await world.watch().look()
    assert (oldest(), overdue(), unclaimed()) == (600, 1, 1)


async def test_a_young_hold_is_no_matter(world: ClaimWorld) -> None:
    await world.hold(1)
    world.clock.move(seconds=59)
    watch = world.watch()
    await watch.look()
    assert seen() == (0, 0, 0)
    world.clock.move(seconds=2)
    await watch.look()
    assert seen() == (61, 0, 1)


async def test_a_hold_that_is_closed_is_forgotten(world: ClaimWorld) -> None:
    await world.hold(1)
    await world.claim(1)
    world.clock.move(minutes=10)
    watch = world.watch()
    await watch.look()
    assert seen() == (600, 0, 0)
    await world.settle(1)
    await world.changed("state = 'CLOSED', outcome = 'SUCCEEDED', closed_time = now()", 1)
    await watch.look()
    assert seen() == (0, 0, 0)


async def test_every_hold_is_read_once_however_many_there_are(
    world: ClaimWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold_watch, "ROWS_OF_A_SCAN", 3)
    monkeypatch.setattr(hold_watch, "MOST_SCANS", 2)
    for number in range(1, 12):
        await world.hold(number)
        if number != 2:
            await world.claim(number, "CLOSED")
            await world.settle(number)
        world.clock.move(seconds=1)
    await world.hold(12)
    world.clock.move(minutes=2)
    watch = world.watch()
    found = []
    for _ in range(6):
        await watch.look()
        found.append(value(UNCLAIMED))
    assert (found[0], found[-1]) == (1, 2), "first those that are old"


async def test_holds_of_one_moment_are_all_read(
    world: ClaimWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold_watch, "ROWS_OF_A_SCAN", 5)
    for number in range(1, 5):
        await world.hold(number)
    world.clock.move(minutes=2)
    watch = world.watch()
    await watch.look()
    assert value(UNCLAIMED) == 4


async def test_a_difference_is_said_once_while_it_lasts(
    world: ClaimWorld, logged: LogCapture
) -> None:
    await world.hold(1)
    world.clock.move(minutes=2)
    watch = world.watch()
    for _ in range(3):
        await watch.look()
    said = [entry for entry in logged.entries if entry["event"] == "ledger_differs"]
    assert [(entry["kind"], entry["claim"]) for entry in said] == [("CLAIM_MISSING", claim_of(1))]


async def test_while_a_service_is_away_nothing_is_said_of_its_holds(world: ClaimWorld) -> None:
    await world.hold(1)
    world.clock.move(minutes=2)
    world.mesh.remove("/remit.api.tools.")
    with pytest.raises(RemitError):
        await world.watch().look()
    assert value(UNCLAIMED) == 0
