"""The benchmark of the ledger still runs, and its tables say what it measured."""

from __future__ import annotations

import asyncio
import sys

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.cost.checks import ledger_faults
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.bench import ledger_tables
from tests.bench.counters import Machine
from tests.bench.figures import Result
from tests.bench.ledger import Plan
from tests.bench.ledger_side import CORE, DECISIONS, GRPC, WAYS, Cell, Place, side
from tests.bench.pairs import Moment, figures, measure
from tests.bench.payers import HOT, KINDS, ORGS, USERS, Payer, budgets, payers
from tests.bench.running import MeasuringError
from tests.bench.trees import REPOSITORY
from tests.conftest import PostgresCluster

TIMEOUT_S = 540.0
NOW = Moment(0.0, {"ledger": 0.0}, 0.0, 0.0, Machine())


class Refusing:
    """A way on which every reserve fails."""

    def __init__(self, reason: error_reason_pb2.ErrorReason.ValueType) -> None:
        self._error = RemitError(reason, "not today")

    async def reserve(self, payer: Payer, claim: str) -> None:
        await asyncio.sleep(0)
        raise self._error

    async def settle(self, claim: str) -> None:
        raise AssertionError("nothing was reserved")


async def look() -> Moment:
    return Moment.now({}, "")


def result(rates: dict[str, list[float]], kinds: list[str], levels: list[str]) -> Result:
    """A result of some rates at 256 at once."""
    plan: dict[str, object] = {"rounds": 2, "kinds": kinds, "levels": levels}
    plan |= {"concurrencies": [256], "ways": Plan().ways}
    found = {f"{name}.pairs_per_s": values for name, values in rates.items()}
    return Result("abc1234", "2026-01-02T03:04:05+00:00", {}, plan, found)


# ---------------------------------------------------------------------------------------- budgets


def test_who_pays_is_one_user_a_thousand_or_a_thousand_orgs() -> None:
    users = {kind: {payer.subject for payer in payers(kind)} for kind in KINDS}
    orgs = {kind: {payer.org for payer in payers(kind)} for kind in KINDS}
    assert {kind: len(found) for kind, found in users.items()} == {HOT: 1, USERS: 1000, ORGS: 1000}
    assert {kind: len(found) for kind, found in orgs.items()} == {HOT: 1, USERS: 1, ORGS: 1000}
    assert {kind: len(budgets(kind)) for kind in KINDS} == {HOT: 1, USERS: 1000, ORGS: 1000}


# ------------------------------------------------------------------------------------------ loads


async def test_the_store_and_the_decisions_are_measured(postgres: PostgresCluster) -> None:
    dsn = postgres.dsn(await postgres.fresh("cost"), "remit_cost")
    async with side(Place(dsn, postgres.pid, "", (DECISIONS, CORE))) as standing:
        found = {
            cell.name: await standing.run(cell)
            for level in (DECISIONS, CORE)
            for way in WAYS[level]
            for cell in [Cell(level, ORGS if level == CORE else HOT, 4, way, 0.01)]
        }

    assert all(each["pairs_per_s"] > 0 for each in found.values())
    assert found["core.orgs.4.each"]["operations_per_commit"] == 1.0
    assert found["core.orgs.4.batched"]["operations_per_commit"] > 1.0
    assert not any(each.get("failed") for each in found.values())
    async with Database.open(dsn) as database, database.acquire() as connection:
        assert await ledger_faults(connection, 5) == []


async def test_what_is_too_late_is_counted_and_anything_else_is_an_error() -> None:
    late = Refusing(error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED)
    wrong = Refusing(error_reason_pb2.ERROR_REASON_REMIT_INVALID)

    found = await measure(late, payers(HOT), 2, 0.0, look, limit_s=0.05)

    assert (found["pairs_per_s"], "p50_ms" in found) == (0.0, False)
    assert found["failed"] > 0
    with pytest.raises(MeasuringError, match="not today"):
        await measure(wrong, payers(HOT), 2, 0.0, look, limit_s=0.05)


def test_commits_are_those_of_both_writers_and_of_no_other() -> None:
    text = (
        'remit_commit_items_count{writer="opening"} 3.0\n'
        'remit_commit_items_sum{writer="opening"} 30.0\n'
        'remit_commit_items_count{writer="closing"} 2.0\n'
        'remit_commit_items_sum{writer="closing"} 30.0\n'
        'remit_commit_items_count{writer="claims"} 9.0\n'
    )
    moment = Moment.now({}, text)
    assert (moment.commits, moment.operations) == (5.0, 60.0)
    later = Moment(2.0, {"ledger": 0.5}, 10.0, 40.0, Machine())
    found = figures([], NOW, later)
    assert (found["commits_per_s"], found["operations_per_commit"]) == (5.0, 4.0)


# ----------------------------------------------------------------------------------------- tables


def test_the_aim_is_held_against_the_neighbours_of_each_round() -> None:
    rates = {
        "core.hot.256.each": [100.0, 200.0],
        "core.hot.256.batched": [1000.0, 2200.0],
        "core.orgs.256.each": [100.0, 100.0],
        "core.orgs.256.batched": [400.0, 600.0],
    }
    found = ledger_tables.verdict(result(rates, [HOT, ORGS], [CORE]), CORE)
    assert "budgets one, 10.5 (10.2 to 10.8), the aim" in found
    assert "budgets 1,000 orgs, 5.00 (4.50 to 5.50), **below the aim of 10**" in found
    assert "deadline" not in found


def test_a_way_on_which_nothing_was_in_time_is_said_to_be_one() -> None:
    rates = {"grpc.hot.256.each": [0.0, 0.0], "grpc.hot.256.gate": [10.0, 10.0]}
    broken = result(rates, [HOT], [GRPC])
    broken.figures.update(
        {
            "grpc.hot.256.each.failed": [3.0, 4.0],
            "grpc.hot.256.gate.pairs": [9.0, 9.0],
        }
    )
    found = ledger_tables.verdict(broken, GRPC)
    assert "not one in time without" in found
    assert "7 of 25 pairs missed their deadline" in found


def test_two_trees_are_compared_by_speed_and_by_cpu() -> None:
    before, after = (
        result({"decisions.hot.256.batched": [rate, rate]}, [HOT], [DECISIONS])
        for rate in (100.0, 150.0)
    )
    for each, cpu in ((before, 50.0), (after, 25.0)):
        each.figures["decisions.hot.256.batched.cpu_us.ledger"] = [cpu, cpu]
    found = ledger_tables.comparison(before, after).splitlines()[-1]
    assert "| 100 | 150 | 1.50 (1.50 to 1.50) | 50.0 | 25.0 | 0.50 (0.50 to 0.50) |" in found


def test_only_a_whole_measurement_is_written() -> None:
    assert Plan().is_whole
    assert Plan(rounds=9).is_whole
    assert not Plan(levels=(CORE,)).is_whole


@pytest.mark.storm
@pytest.mark.timeout(TIMEOUT_S + 30)
async def test_a_quick_round_measures_every_way() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.ledger", "--quick"),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    except TimeoutError:
        process.terminate()
        await process.wait()
        raise
    assert process.returncode == 0, errors.decode()
    for level, ways in ledger_tables.MEANINGS.items():
        assert ledger_tables.LEVELS[level] in output.decode()
        for meaning in ways.values():
            assert meaning in output.decode()
