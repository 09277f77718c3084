"""The ledger on a real PostgreSQL: races, replicas, rights and what the database itself refuses."""

from __future__ import annotations

import asyncio
import random
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.cost import rows
from remit.cost.accounts import provider_cost_account, revenue_account
from remit.cost.admission import DefaultBudget
from remit.cost.books import Balance
from remit.cost.checks import ledger_faults
from remit.cost.ledger import Rules
from remit.cost.periods import Period
from remit.cost.reservations import HoldOperation, Reservation, Settle, State
from remit.cost.store import LedgerStore
from remit.postgres import GroupCommit
from remit.rpc.errors import RemitError
from tests.conftest import OpenDatabase
from tests.cost.stores import (
    CLOCK,
    MovableClock,
    a_store,
    assert_sound,
    balance,
    outcomes,
)
from tests.cost.worlds import (
    ALICE,
    NO_LIMIT,
    ORG,
    OTHER_RUN,
    RUN,
    TEAM_RUN,
    extend,
    release,
    reserve,
    settle,
)

A_TRANSFER = (
    "INSERT INTO transfers SELECT claim, attempt, 9::smallint, kind, debit_account, {credit},"
    " {amount}, day, post_time FROM transfers"
)
OTHER_ORG_RUN = RUN.replace("orgs/acme", "orgs/other")


# --------------------------------------------------------------------------------------- basics


async def test_what_was_held_is_read_back_as_it_was(database: OpenDatabase) -> None:
    store = a_store(await database("cost"))

    held = await store.open(reserve(1, 40, account=TEAM_RUN, own_limit_nanos=100))
    again = await store.open(reserve(1, 40, account=TEAM_RUN, own_limit_nanos=100))
    larger = await store.open(extend(1, 60))
    settled = await store.close(settle(1, 70))
    settled_again = await store.close(settle(1, 70))

    assert again == held
    assert (larger.hold_nanos, larger.create_time) == (60, held.create_time)
    assert (settled.posted_nanos, settled.overrun_nanos, settled.state) == (60, 10, State.SETTLED)
    assert settled_again == settled


async def test_every_period_and_ancestor_is_balanced(database: OpenDatabase) -> None:
    db = await database("cost")
    store = a_store(db)

    await store.open(reserve(1, 40))
    await store.open(reserve(2, 2, account=TEAM_RUN))
    await store.close(settle(1, 30))

    for period in Period:
        assert await balance(db, ORG, period) == Balance(2, 30)
        assert await balance(db, ALICE, period) == Balance(0, 30)
        assert await balance(db, revenue_account(ORG), period) == Balance(2, 0)
        assert await balance(db, provider_cost_account(ORG), period) == Balance(0, 30)
    assert await balance(db, RUN) == Balance(0, 30)
    await assert_sound(db)


async def test_a_refused_item_of_a_batch_leaves_no_trace(database: OpenDatabase) -> None:
    db = await database("cost")
    store = a_store(db, limit=100)

    results = await outcomes(
        [store], [reserve(1, 90), reserve(2, 20), reserve(3, 10), reserve(4, 1)]
    )

    assert [isinstance(result, RemitError) for result in results] == [False, True, False, True]
    assert await db.fetchval("SELECT count(*) FROM reservations") == 2
    await assert_sound(db)


async def test_a_release_first_leaves_a_tombstone_for_every_replica(
    database: OpenDatabase,
) -> None:
    db = await database("cost")
    one, other = a_store(db), a_store(db)

    tombstone = await one.close(release(1))
    with pytest.raises(RemitError) as late:
        await other.open(reserve(1, 10))

    assert (tombstone.state, tombstone.account) == (State.RELEASED, "")
    assert late.value.reason == reasons.ERROR_REASON_RESERVATION_CLOSED
    assert await other.close(release(1)) == tombstone


async def test_a_clock_that_jumps_back_is_noticed_by_another_replica(
    database: OpenDatabase,
) -> None:
    db = await database("cost")
    slow = MovableClock()
    slow.time -= timedelta(days=1)
    await a_store(db).open(reserve(1, 10))

    with pytest.raises(RemitError, match="86400 s behind"):
        await a_store(db, clock=slow).open(reserve(2, 10))
    assert (await a_store(db, clock=slow).close(settle(1, 10))).state is State.SETTLED


async def test_a_full_queue_refuses_at_once_and_closing_has_its_own(
    database: OpenDatabase,
) -> None:
    db = await database("cost")
    rules = Rules(DefaultBudget(Period.MONTH, NO_LIMIT), timedelta(seconds=5))
    store = LedgerStore(db, rules, CLOCK, max_batch=1, max_queue=2)
    await store.open(reserve(9, 1))

    results = await asyncio.gather(
        *(store.open(reserve(n, 1)) for n in range(8)),
        store.close(settle(9, 1)),
        return_exceptions=True,
    )

    refused = [result for result in results if isinstance(result, RemitError)]
    assert {error.reason for error in refused} == {reasons.ERROR_REASON_OVERLOADED}
    assert isinstance(results[-1], Reservation)


async def test_a_commit_makes_five_round_trips(database: OpenDatabase) -> None:
    db = await database("cost")
    store = a_store(db)
    await store.open(reserve(1, 10))
    await store.close(settle(1, 10))  # from here on the ledger and the price are known
    sent: list[str] = []
    async with db.acquire() as connection:  # the pool's only one, as calls come one by one
        connection.add_query_logger(lambda record: sent.append(record.query))

    await store.open(reserve(2, 10))
    opening = len(sent)
    await store.close(settle(2, 7))

    assert (opening, len(sent) - opening) == (5, 5), sent


@pytest.mark.parametrize(
    "statement",
    [
        rows.SELECT_RESERVATIONS_LOCK_LEDGERS,
        rows.SELECT_BALANCES_AND_BUDGETS,
        rows.writes_statement((rows.CHANGED_RESERVATIONS, rows.CHANGED_BALANCES)),
    ],
)
async def test_plans_made_on_empty_tables_suit_full_ones(
    database: OpenDatabase, statement: str
) -> None:
    db = await database("cost")
    nulls = ", ".join("NULL" for _ in set(re.findall(r"\$\d+", statement)))
    async with db.transaction() as connection:
        await connection.execute(f"{rows.BY_INDEX}; PREPARE probe AS {statement}")
        lines = [line for (line,) in await connection.fetch(f"EXPLAIN EXECUTE probe ({nulls})")]

    assert not [line for line in lines if "Seq Scan" in line]
    probes = [n for n, line in enumerate(lines) if "_pkey" in line and "Scan" in line]
    assert probes
    assert [lines[n] for n in probes if "Index Cond" not in lines[n + 1]] == []


# ---------------------------------------------------------------------------------------- races


async def test_of_200_callers_exactly_as_many_pass_as_the_money_suffices_for(
    database: OpenDatabase,
) -> None:
    db = await database("cost")
    stores = [a_store(db, limit=37 * 10 + 9), a_store(db, limit=37 * 10 + 9)]

    results = await outcomes(stores, [reserve(n, 10) for n in range(200)])

    assert sum(isinstance(result, Reservation) for result in results) == 37
    assert await balance(db, ORG) == Balance(370, 0)
    await assert_sound(db)


async def test_copies_of_one_reserve_hold_once(database: OpenDatabase) -> None:
    db = await database("cost")
    stores = [a_store(db), a_store(db), a_store(db)]

    results = await outcomes(stores, [reserve(1, 10)] * 60)

    assert len(set(map(id, results))) > 1
    assert all(result == results[0] for result in results)
    assert await balance(db, ORG) == Balance(10, 0)


async def test_settle_and_release_race_and_one_wins(database: OpenDatabase) -> None:
    db = await database("cost")
    stores = [a_store(db), a_store(db)]
    await outcomes(stores, [reserve(n, 10) for n in range(40)])
    closings: list[HoldOperation] = [settle(n, 7) for n in range(40)]
    closings += [release(n) for n in range(40)]
    random.Random(1).shuffle(closings)  # noqa: S311 - a test's dice

    results = await outcomes(stores, closings)

    won = [result for result in results if isinstance(result, Reservation)]
    lost = [result for result in results if isinstance(result, RemitError)]
    assert len(won) == len(lost) == 40
    assert len({result.key for result in won}) == 40
    assert {error.reason for error in lost} == {reasons.ERROR_REASON_RESERVATION_CLOSED}
    assert (await balance(db, ORG)).pending_nanos == 0
    await assert_sound(db)


async def test_replicas_never_deadlock(
    database: OpenDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even so that a second try would help: whatever the order of orgs and holds in a batch."""
    met: list[BaseException] = []

    async def isolated(_commits: object, batch: list[Any], error: asyncpg.PostgresError) -> None:
        met.append(error)
        for waiting in batch:
            waiting.answer.set_exception(error)

    monkeypatch.setattr("remit.postgres._RERUN", ())
    monkeypatch.setattr(GroupCommit, "_isolate", isolated)
    db = await database("cost")
    stores = [a_store(db) for _ in range(4)]
    leaves = [RUN.replace("orgs/acme", f"orgs/o{n}") for n in range(6)]
    chance = random.Random(1)  # noqa: S311 - a test's dice
    for _ in range(4):
        numbers = list(range(48)) * 2
        chance.shuffle(numbers)
        await outcomes(stores, [reserve(n, 1, account=leaves[n % 6]) for n in numbers])
        chance.shuffle(numbers)
        closings: list[HoldOperation] = [settle(n, 1) for n in numbers]
        await outcomes(stores, [*closings, *(extend(n, 2) for n in numbers)])

    assert met == []
    await assert_sound(db)


@pytest.mark.parametrize("seed", range(3))
async def test_replicas_keep_every_invariant_through_random_histories(
    database: OpenDatabase, seed: int
) -> None:
    db = await database("cost")
    stores = [a_store(db, limit=900) for _ in range(3)]
    chance = random.Random(seed)  # noqa: S311 - a test's dice
    leaves = [RUN, OTHER_RUN, ALICE, TEAM_RUN, OTHER_ORG_RUN]

    def an_operation() -> HoldOperation:
        number, nanos = chance.randrange(60), chance.randrange(80)
        service = chance.choice(["inference", "inference", "tools"])
        leaf = leaves[number % len(leaves)]
        operations: list[HoldOperation] = [
            reserve(number, nanos % 7 * 10, account=leaf),
            extend(number, nanos, service),
            settle(number, chance.choice([nanos, None]), service),
            release(number, service),
        ]
        return chance.choice(operations)

    for _ in range(5):
        await outcomes(stores, [an_operation() for _ in range(120)])
        await assert_sound(db)

    assert (await balance(db, ORG)).total_nanos <= 900


# ------------------------------------------------------------------------- rights and the schema


REWRITES_OF_HISTORY = [
    "UPDATE transfers SET amount_nanos = 1",
    "DELETE FROM transfers",
    "TRUNCATE transfers",
    "DELETE FROM reservations",
    "UPDATE reservations SET account = 'orgs/other/users/eve'",
    "DELETE FROM balances",
    "DELETE FROM budget_alerts",
    "UPDATE budget_alerts SET posted_nanos = 1",
    "UPDATE budgets SET account = 'orgs/acme/users/bob'",
    "DELETE FROM admin_requests",
    "UPDATE prices SET call_nanos = 0",
    "DROP TABLE transfers",
]


async def test_the_service_may_not_rewrite_history(database: OpenDatabase) -> None:
    db = await database("cost")
    await a_store(db).open(reserve(1, 40))

    for statement in REWRITES_OF_HISTORY:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await db.execute(statement)


IMPOSSIBLE_MONEY = [
    "UPDATE balances SET pending_nanos = -1",
    "UPDATE balances SET posted_nanos = 9223372036854775807, pending_nanos = 1",
    "UPDATE reservations SET posted_nanos = 99, state = 2, close_time = create_time",
    "UPDATE reservations SET overrun_nanos = 1, state = 2, close_time = create_time",
    "UPDATE reservations SET posted_nanos = 1",
    "UPDATE reservations SET state = 3",
    "UPDATE budgets SET limit_nanos = -1",
    A_TRANSFER.format(credit="credit_account", amount=0),
    A_TRANSFER.format(credit="debit_account", amount=1),
]


async def test_the_database_itself_refuses_impossible_money(database: OpenDatabase) -> None:
    db = await database("cost")
    await a_store(db).open(reserve(1, 40))
    await db.execute(
        "INSERT INTO budgets VALUES ('orgs/acme', 1, 'orgs/acme', 5, $1)", datetime.now(UTC)
    )

    for statement in IMPOSSIBLE_MONEY:
        with pytest.raises(asyncpg.CheckViolationError):
            await db.execute(statement)


async def test_a_balance_changed_by_hand_is_found(database: OpenDatabase) -> None:
    db = await database("cost")
    store = a_store(db)
    await store.open(reserve(1, 40))
    await db.execute("UPDATE balances SET pending_nanos = 39 WHERE account = $1", ALICE)
    await db.execute("UPDATE reservations SET hold_nanos = 41")

    async with db.acquire() as connection:
        faults = await ledger_faults(connection, 10)

    assert f"{ALICE} (total): pending 39 and posted 0, but its transfers make 40 and 0" in faults
    assert any("its row says held 41" in fault for fault in faults)


async def test_books_that_do_not_add_up_stop_new_holds(database: OpenDatabase) -> None:
    db = await database("cost")
    store = a_store(db)
    await store.open(reserve(1, 40))
    await db.execute("UPDATE balances SET pending_nanos = 39 WHERE account = $1", ORG)

    with pytest.raises(RemitError) as caught:
        await store.open(reserve(2, 1))

    assert caught.value.reason == reasons.ERROR_REASON_DATA_CORRUPT
    assert await db.fetchval("SELECT count(*) FROM reservations") == 1


async def test_a_lost_database_answers_unavailable(database: OpenDatabase) -> None:
    db = await database("cost")
    store = a_store(db)
    await store.open(reserve(1, 40))
    await db._pool.close()

    with pytest.raises(RemitError) as caught:
        await store.close(Settle(reserve(1, 1).key, "inference", None))

    assert caught.value.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE
