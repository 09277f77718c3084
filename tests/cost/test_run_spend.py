"""The bill of a run, read from a real ledger: trees, whose they are, and their bound."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from remit.api.cost.v1 import cost_report_service_pb2 as report_pb2
from remit.api.cost.v1 import cost_service_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.usage.v1 import usage_pb2
from remit.cost import run_spend
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from tests.cost.services import (
    ALICE,
    BOB,
    CALCULATOR_NANOS,
    CORE,
    EVE,
    CostWorld,
    claim_of,
    run_of,
)
from tests.cost.test_report_service import list_spend

MOST_DEEP = 5


async def bill(world: CostWorld, run: str, subject: str = ALICE) -> list[report_pb2.RunSpend]:
    with remit_token(world.client_token(subject)):
        response = await world.reports().GetRunSpend(report_pb2.GetRunSpendRequest(run=run))
    return list(response.runs)


def nanos(spends: Sequence[report_pb2.RunSpend]) -> list[tuple[str, str, int, int]]:
    """Run, parent, own and whole cost in calls of the calculator."""
    return [
        (
            spend.run,
            spend.parent,
            spend.own.posted_nanos // CALCULATOR_NANOS,
            spend.whole.posted_nanos // CALCULATOR_NANOS,
        )
        for spend in spends
    ]


@dataclass
class Forest:
    """Random runs, each below another or none, and what each of them does."""

    world: CostWorld
    random: random.Random
    lines: list[tuple[int, ...]] = field(default_factory=list)
    """The runs above each run, the outermost first, and the run itself last."""
    posted: Counter[int] = field(default_factory=Counter)
    pending: Counter[int] = field(default_factory=Counter)
    overrun: Counter[int] = field(default_factory=Counter)
    effects: Counter[int] = field(default_factory=Counter)
    claims: int = 0

    def grow(self) -> None:
        """Starts a run below a random other one, or below none."""
        outer = [line for line in self.lines if len(line) < MOST_DEEP]
        above = self.random.choice([(), *outer])
        self.lines.append((*above, len(self.lines) + 1))

    async def act(self) -> None:
        """Lets a random run settle, hold, release, or exceed a hold."""
        line = self.random.choice(self.lines)
        run, calls, kind = line[-1], self.random.randint(1, 9), self.random.randrange(4)
        token = self.world.run_token(run, below=[(above, None) for above in line[:-1]])
        self.claims += 1
        request = self.world.reserve_request(self.claims, calls=calls, token=token)
        await self.world.cost().ReserveBudget(request)
        if kind == 0:
            self.pending[run] += calls
        elif kind == 1:
            await self.world.cost().ReleaseReservation(
                cost_service_pb2.ReleaseReservationRequest(claim=claim_of(self.claims), attempt=1)
            )
        else:
            used = self.random.randint(0, 12)
            await settle(self.world, self.claims, used)
            self.posted[run] += min(used, calls)
            self.overrun[run] += max(used - calls, 0)
            self.effects[run] += 1

    def whole(self, money: Counter[int], run: int) -> int:
        """The sum over a run and all below it."""
        return sum(money[line[-1]] for line in self.lines if run in line)


async def settle(world: CostWorld, number: int, calls: int) -> None:
    request = cost_service_pb2.SettleReservationRequest(
        claim=claim_of(number), attempt=1, used=usage_pb2.Usage(calls=calls)
    )
    await world.cost().SettleReservation(request)


@pytest.mark.parametrize("seed", range(3))
async def test_trees_at_random_add_up_for_every_run(world: CostWorld, seed: int) -> None:
    forest = Forest(world, random.Random(seed))  # noqa: S311 - a repeatable choice
    for _ in range(12):
        forest.grow()
    for _ in range(40):
        await forest.act()

    for line in forest.lines:
        root = line[-1]
        spends = await bill(world, run_of(root))
        assert spends[0].run == run_of(root)
        for spend in spends:
            number = next(n for n in range(1, 13) if run_of(n) == spend.run)
            own, whole = spend.own, spend.whole
            assert own.posted_nanos == forest.posted[number] * CALCULATOR_NANOS
            assert own.overrun_nanos == forest.overrun[number] * CALCULATOR_NANOS
            assert own.effects == forest.effects[number]
            assert whole.posted_nanos == forest.whole(forest.posted, number) * CALCULATOR_NANOS
            assert whole.pending_nanos == forest.whole(forest.pending, number) * CALCULATOR_NANOS
            below = [other.whole.posted_nanos for other in spends if other.parent == spend.run]
            assert whole.posted_nanos == own.posted_nanos + sum(below)
        acted = {run_of(n) for n in (forest.effects | forest.pending)}
        inside = {run_of(other[-1]) for other in forest.lines if root in other}
        assert acted & inside <= {spend.run for spend in spends} <= inside


async def test_a_tree_is_told_from_its_top_or_from_within(world: CostWorld) -> None:
    await world.spend(1, calls=1, token=world.run_token(1))
    await world.spend(2, calls=2, token=world.run_token(2, below=[(1, None)]))
    await world.spend(3, calls=3, token=world.run_token(3, below=[(1, None), (2, None)]))
    await world.spend(4, calls=4, token=world.run_token(4, below=[(1, None)]))
    await world.spend(5, calls=9, token=world.run_token(5))

    assert nanos(await bill(world, run_of(1))) == [
        (run_of(1), "", 1, 10),
        (run_of(2), run_of(1), 2, 5),
        (run_of(3), run_of(2), 3, 3),
        (run_of(4), run_of(1), 4, 4),
    ]
    assert nanos(await bill(world, run_of(2))) == [
        (run_of(2), "", 2, 5),
        (run_of(3), run_of(2), 3, 3),
    ]
    spend = (await bill(world, run_of(5)))[0]
    assert (spend.agent, spend.own.usage.calls, spend.own.effects) == ("agents/assistant", 9, 1)


async def test_a_run_that_only_its_sub_runs_spend_for_is_told(world: CostWorld) -> None:
    """A fork may go on with a sub-run before it asks a model itself."""
    await world.spend(1, calls=2, token=world.run_token(3, below=[(1, None), (2, None)]))

    assert nanos(await bill(world, run_of(1))) == [
        (run_of(1), "", 0, 2),
        (run_of(2), run_of(1), 0, 2),
        (run_of(3), run_of(2), 2, 2),
    ]


async def test_effects_that_cost_nothing_are_in_the_tree(world: CostWorld) -> None:
    for number, token in (
        (1, world.run_token(1)),
        (2, world.run_token(2, below=[(1, None)])),
    ):
        await world.cost().ReserveBudget(
            world.reserve_request(number, token=token, item="models/builtin-rules")
        )
        await settle(world, number, 1)

    spends = await bill(world, run_of(1))

    assert nanos(spends) == [(run_of(1), "", 0, 0), (run_of(2), run_of(1), 0, 0)]
    assert [spend.whole.effects for spend in spends] == [2, 1]


async def test_teams_and_users_stand_above_runs(world: CostWorld) -> None:
    token = world.run_token(1, subject=BOB, team=CORE)
    await world.spend(1, calls=2, token=token)

    assert nanos(await bill(world, run_of(1))) == [(run_of(1), "", 2, 2)]


async def test_a_run_of_another_org_looks_like_none(world: CostWorld) -> None:
    await world.spend(1, calls=9, token=world.run_token(3, subject=EVE))
    await world.spend(2, calls=9, token=world.run_token(5, subject=EVE, below=[(4, None)]))

    for number in (3, 4, 5, 99):
        (spend,) = await bill(world, run_of(number))
        nothing = report_pb2.SpendRow(key=run_of(number), usage=usage_pb2.Usage())
        assert spend == report_pb2.RunSpend(run=run_of(number), own=nothing, whole=nothing)
    assert nanos(await bill(world, run_of(4), EVE))[0] == (run_of(4), "", 0, 9)


async def test_released_holds_are_in_no_tree(world: CostWorld) -> None:
    await world.spend(1, calls=1, token=world.run_token(1))
    token = world.run_token(2, below=[(1, None)])
    await world.cost().ReserveBudget(world.reserve_request(2, token=token))
    held = await bill(world, run_of(1))
    await world.cost().ReleaseReservation(
        cost_service_pb2.ReleaseReservationRequest(claim=claim_of(2), attempt=1)
    )

    assert [spend.whole.pending_nanos for spend in held] == [CALCULATOR_NANOS, CALCULATOR_NANOS]
    assert nanos(await bill(world, run_of(1))) == [(run_of(1), "", 1, 1)]


async def test_a_tree_beyond_the_bound_is_refused_whole(
    world: CostWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_spend, "MAX_RUNS", 3)
    for number in range(1, 4):
        below = [(1, None)] if number > 1 else []
        await world.spend(number, token=world.run_token(number, below=below))
    assert len(await bill(world, run_of(1))) == 3
    await world.spend(4, token=world.run_token(4, below=[(1, None)]))

    with pytest.raises(RemitError, match="3 sub-runs or more") as caught:
        await bill(world, run_of(1))

    assert caught.value.reason == reasons.ERROR_REASON_TOO_LARGE
    assert len(await bill(world, run_of(4))) == 1


async def test_a_ledger_that_was_changed_by_hand_is_refused(
    world: CostWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.spend(1, token=world.run_token(2, below=[(1, None)]))
    await world.database.execute(
        "UPDATE balances SET posted_nanos = posted_nanos + 1 WHERE account LIKE '%/runs/%/runs/%'"
    )

    with pytest.raises(RemitError, match="but the effects at and below it make 1000 and 0"):
        await bill(world, run_of(1))


@pytest.mark.parametrize("run", ["", "runs/1", run_of(1).upper(), f"{run_of(1)}/x", "agents/a"])
async def test_what_is_no_run_is_refused(world: CostWorld, run: str) -> None:
    with pytest.raises(RemitError) as caught:
        await bill(world, run)

    assert caught.value.violations[0].field == "run"


async def test_a_tree_is_found_by_indexes_alone(world: CostWorld) -> None:
    """Whatever else the ledger holds, and whatever the collation is."""
    await world.spend(1, token=world.run_token(2, below=[(1, None)]))
    account = await world.database.fetchval("SELECT account FROM reservations")
    root = account.split("/agents/")[0] + f"/agents/assistant/{run_of(1)}"
    plans = [
        await plan(world, run_spend.FIND_ACCOUNT, "orgs/acme", run_of(1)),
        await plan(world, run_spend.SELECT_TREE, root, run_of(1), 9),
    ]

    for text in plans:
        assert "Seq Scan" not in text
    assert "balances_of_run" in plans[0]
    assert "reservations_of_run" in plans[0]
    assert "reservations_of_sub_runs" in plans[1]
    assert "reservations_of_run" in plans[1]


async def plan(world: CostWorld, statement: str, *arguments: object) -> str:
    """The plan that a connection keeps for every argument."""
    async with world.database.transaction() as connection:
        await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        records = await connection.fetch(f"EXPLAIN {statement}", *arguments)
    return "\n".join(record[0] for record in records)


async def test_the_sums_of_a_report_by_run_are_those_of_the_trees(world: CostWorld) -> None:
    await world.spend(1, calls=1, token=world.run_token(1))
    await world.spend(2, calls=2, token=world.run_token(2, below=[(1, None)]))

    rows = (await list_spend(world, report_pb2.ListSpendRequest.DIMENSION_RUN)).rows

    assert {row.key: row for row in rows} == {
        spend.run: spend.own for spend in await bill(world, run_of(1))
    }
