"""Replicas of the ledger on one PostgreSQL against a plain model, while everything breaks.

Batches go to two replicas, at once or one after the other; connections end before, during and
after a commit, statements fail, deadlocks are lost, clocks jump. What callers are told, and what is
stored, must be what the plain ledger says for one order of the operations in which each batch keeps
its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from remit.cost.checks import ledger_faults
from remit.cost.periods import Period
from remit.cost.reservations import HoldOperation, State
from remit.cost.store import LedgerStore, lock_ledgers
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.conftest import PostgresCluster
from tests.cost.breaking import Break, BreakingDatabase, Fault
from tests.cost.plain_ledger import Answer, PlainLedger
from tests.cost.stores import MovableClock, a_store, send
from tests.cost.worlds import extend, release, reserve, settle

REPLICAS = 2
DEFAULT_LIMIT = 120
LOST = "DEPENDENCY_UNAVAILABLE"
FAILED = "INTERNAL"
LEAVES = [
    f"users/alice/agents/assistant/runs/{UUID(int=1)}",
    f"users/alice/agents/assistant/runs/{UUID(int=1)}/agents/clerk/runs/{UUID(int=2)}",
    "users/alice",
    f"teams/core/users/bob/agents/writer/runs/{UUID(int=3)}",
]
ACCOUNTS = ["", "users/alice", "teams/core", LEAVES[0], LEAVES[3]]
Asked = tuple[str, int, int, int, int | None, str]
"""What, of which hold, how many nano-USD, on which leaf, within which limit of its own, by whom."""


class World:
    """Databases of the replicas, which all examples share, and the loop that they live in."""

    def __init__(self, runner: asyncio.Runner, databases: Sequence[BreakingDatabase]) -> None:
        self.runner = runner
        self.databases = databases
        self.orgs = itertools.count(1)
        self.struck = Counter[Break]()


def asked(kinds: Sequence[str]) -> st.SearchStrategy[list[Asked]]:
    """Some operations, most of them on few holds by one service."""
    one = st.tuples(
        st.sampled_from(kinds),
        st.integers(1, 6),
        st.integers(0, 60),
        st.integers(0, len(LEAVES) - 1),
        st.one_of(st.none(), st.integers(0, 80)),
        st.sampled_from(["inference", "inference", "inference", "tools"]),
    )
    return st.lists(one, min_size=1, max_size=3)


BATCHES = st.one_of(
    asked(["reserve", "reserve", "extend"]), asked(["settle", "post whole", "release"])
)
FAULTS = st.one_of(
    st.none(), st.builds(Fault, kind=st.sampled_from(Break), skipped=st.integers(0, 4))
)
REPLICA = st.integers(0, REPLICAS - 1)


class StoreMachine(RuleBasedStateMachine):
    """Two replicas of one org's ledger, and what it must look like."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.number = next(world.orgs)
        self.org = f"orgs/o{self.number}"
        self.model = PlainLedger(self.org, DEFAULT_LIMIT)
        self.clocks = [MovableClock() for _ in world.databases]
        self.stores = [
            a_store(database, DEFAULT_LIMIT, clock)
            for database, clock in zip(world.databases, self.clocks, strict=True)
        ]

    # ---------------------------------------------------------------------------------- rules

    @rule(replica=REPLICA, batch=BATCHES, fault=FAULTS)
    def one_replica_works(self, replica: int, batch: list[Asked], fault: Fault | None) -> None:
        self.work([(replica, self.operations(batch), fault)])

    @rule(first=BATCHES, second=BATCHES, fault=FAULTS)
    def both_replicas_work(
        self, first: list[Asked], second: list[Asked], fault: Fault | None
    ) -> None:
        self.work([(0, self.operations(first), fault), (1, self.operations(second), None)])

    @rule(
        account=st.sampled_from(ACCOUNTS), period=st.sampled_from(Period), limit=st.integers(0, 150)
    )
    def a_budget_is_set(self, account: str, period: Period, limit: int) -> None:
        """Also one below what is spent already."""
        if "/runs/" in account:
            period = Period.TOTAL
        name = f"{self.org}/{account}".rstrip("/")
        self.world.runner.run(set_budget(self.world.databases[0], self.org, name, period, limit))
        self.model.limits[name, period.name] = limit

    @rule(replica=REPLICA, seconds=st.sampled_from([-90_000, -60, -3, 2, 60, 40_000, 2_000_000]))
    def a_clock_jumps(self, replica: int, seconds: int) -> None:
        self.clocks[replica].time += timedelta(seconds=seconds)

    @rule(hours=st.integers(1, 30))
    def time_passes(self, hours: int) -> None:
        latest = max(clock.time for clock in self.clocks) + timedelta(hours=hours)
        for clock in self.clocks:
            clock.time = latest

    # ------------------------------------------------------------------------------ invariants

    @invariant()
    def balances_are_what_the_holds_add_up_to(self) -> None:
        for account, period, start, pending, posted in self.world.runner.run(self.balances()):
            assert (pending, posted) == self.model.sums(account, period.name, start), account

    def teardown(self) -> None:
        faults = self.world.runner.run(self.faults())
        assert faults == []

    # ---------------------------------------------------------------------------------- inside

    def operations(self, batch: list[Asked]) -> list[HoldOperation]:
        return [self.operation(*one) for one in batch]

    def operation(
        self, kind: str, number: int, nanos: int, leaf: int, limit: int | None, service: str
    ) -> HoldOperation:
        number += 100 * self.number
        if kind == "reserve":
            account = f"{self.org}/{LEAVES[leaf]}"
            return reserve(number, nanos, account=account, own_limit_nanos=limit, service=service)
        if kind == "extend":
            return extend(number, 2 * nanos, service)
        if kind == "release":
            return release(number, service)
        return settle(number, None if kind == "post whole" else 2 * nanos, service)

    def work(self, batches: Sequence[tuple[int, list[HoldOperation], Fault | None]]) -> None:
        """Sends batches at once; then asks the other replica again for what was not answered."""
        for replica, _, fault in batches:
            self.world.databases[replica].fault = fault
        answers = self.world.runner.run(self.answers(batches))
        for database in self.world.databases:
            database.fault = None
        self.world.struck.update(
            fault.kind for _, _, fault in batches if fault and fault.has_struck
        )
        done = [
            [] if is_undone(fault, told) else operations
            for (_, operations, fault), told in zip(batches, answers, strict=True)
        ]
        self.model = self.explained(batches, done, answers)
        for (replica, operations, _), told in zip(batches, answers, strict=True):
            other = (replica + 1) % REPLICAS
            for operation, answer in zip(operations, told, strict=True):
                if answer in {LOST, FAILED}:
                    again = self.world.runner.run(self.answers([(other, [operation], None)]))
                    expected = self.model.apply(operation, self.clocks[other].now())
                    assert again == [[expected]], operation

    async def answers(
        self, batches: Sequence[tuple[int, list[HoldOperation], Any]]
    ) -> list[list[Answer]]:
        """What the callers of each batch are told; all are sent at once, each batch in order."""
        asked = [(self.stores[replica], one) for replica, batch, _ in batches for one in batch]
        told = iter(await asyncio.gather(*(answer_of(store, one) for store, one in asked)))
        return [[next(told) for _ in batch] for _, batch, _ in batches]

    def explained(
        self,
        batches: Sequence[tuple[int, list[HoldOperation], Any]],
        done: Sequence[list[HoldOperation]],
        answers: Sequence[list[Answer]],
    ) -> PlainLedger:
        """The plain ledger after an order that explains what callers were told and what is kept."""
        stored = self.world.runner.run(self.stored())
        tried = []
        for order in merged([len(operations) for operations in done]):
            model, told = copy.deepcopy(self.model), [list[Answer]() for _ in done]
            for n in order:
                now = self.clocks[batches[n][0]].now()
                told[n].append(model.apply(done[n][len(told[n])], now))
            fits = all(
                answer in {LOST, expected}
                for given, wanted in zip(answers, told, strict=True)
                for answer, expected in zip(given, wanted, strict=False)
            )
            if fits and stored == {claim: hold.answer for claim, hold in model.holds.items()}:
                return model
            tried.append(told)
        message = f"{done} were answered {answers}; the plain ledger says one of {tried}; {stored}"
        raise AssertionError(message)

    async def stored(self) -> dict[str, Answer]:
        claims = [self.operation("release", n, 0, 0, None, "").key.claim for n in range(1, 7)]
        records = await self.world.databases[0].fetch(
            "SELECT claim, state, hold_nanos, posted_nanos, overrun_nanos FROM reservations"
            " WHERE claim = ANY ($1::text[])",
            claims,
        )
        return {claim: (State(state).name, *nanos) for claim, state, *nanos in records}

    async def balances(self) -> list[tuple[str, Period, Any, int, int]]:
        records = await self.world.databases[0].fetch(
            "SELECT account, period, start, pending_nanos, posted_nanos FROM balances"
            " WHERE account = $1 OR starts_with(account, $1 || '/')",
            self.org,
        )
        return [(account, Period(period), *rest) for account, period, *rest in records]

    async def faults(self) -> list[str]:
        async with self.world.databases[0].acquire() as connection:
            return await ledger_faults(connection, 5)


def is_undone(fault: Fault | None, told: Sequence[Answer]) -> bool:
    """Whether a batch was broken off without a trace, which its callers do not know."""
    if fault is not None and fault.has_struck and fault.kind is Break.FAILS and len(told) == 1:
        assert told == [FAILED]
        return True
    assert FAILED not in told
    if fault is None or not fault.has_struck or fault.kind in {Break.FAILS, Break.DEADLOCK}:
        assert LOST not in told
        return False
    assert set(told) == {LOST}
    return fault.kind is not Break.UNANSWERED


async def answer_of(store: LedgerStore, operation: HoldOperation) -> Answer:
    try:
        told = await send(store, operation)
    except RemitError as error:
        return error.reason_name
    except asyncpg.DivisionByZeroError:
        return FAILED
    return told.state.name, told.hold_nanos, told.posted_nanos, told.overrun_nanos


def merged(lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every order of several batches in which each keeps its own."""
    numbers = [n for n, length in enumerate(lengths) for _ in range(length)]
    return iter(sorted(set(itertools.permutations(numbers))))


async def set_budget(
    database: Database, org: str, account: str, period: Period, limit: int
) -> None:
    async with database.transaction() as connection:
        await lock_ledgers(connection, [org])
        await connection.execute(
            "INSERT INTO budgets (account, period, org, limit_nanos, update_time)"
            " VALUES ($1, $2, $3, $4, now())"
            " ON CONFLICT (account, period) DO UPDATE SET limit_nanos = EXCLUDED.limit_nanos",
            *(account, period, org, limit),
        )


def test_replicas_that_break_tell_and_keep_what_the_plain_ledger_says(
    postgres: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is to break is chosen; a slow machine breaks nothing.
    monkeypatch.setattr("remit.postgres._LOCK_TIMEOUT_S", 60.0)
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        dsn = postgres.dsn(runner.run(postgres.fresh("cost")), "remit_cost")
        databases = [
            runner.run(stack.enter_async_context(opened))
            for opened in (
                BreakingDatabase.open(dsn, pool_size=3, statement_timeout_s=60)
                for _ in range(REPLICAS)
            )
        ]
        world = World(runner, databases)  # type: ignore[arg-type]
        try:
            run_state_machine_as_test(
                lambda: StoreMachine(world),  # type: ignore[arg-type]
                settings=settings(
                    max_examples=20,
                    stateful_step_count=20,
                    deadline=None,
                    # A failure comes out of a race: it is no use to look for a smaller one.
                    phases=[Phase.generate],
                    suppress_health_check=[HealthCheck.too_slow],
                ),
            )
        finally:
            runner.run(stack.aclose())
        assert set(world.struck) == set(Break), world.struck
