"""What the database itself refuses, whatever the service believes, and what migrations make."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from remit import postgres as database_module
from remit.cost import books, ledger
from remit.cost.accounts import operator_keys, provider_cost_account, revenue_account
from remit.cost.books import Balance, Books
from remit.cost.periods import Period
from remit.cost.store import lock_ledgers
from remit.postgres import Database, migrate
from tests.conftest import OpenDatabase, PostgresCluster
from tests.cost.stores import a_store, assert_sound, balance
from tests.cost.worlds import ALICE, ORG, TEAM_RUN, reserve, settle


async def test_the_database_itself_refuses_bills_between_wrong_accounts(
    database: OpenDatabase,
) -> None:
    db = await database("cost")
    store = a_store(db)
    await store.open(reserve(1, 40))
    await store.close(settle(1, 40))
    a_copy = (
        "INSERT INTO transfers SELECT claim, attempt, 9, {kind}, {debit}, {credit}, 1, day, now()"
        " FROM transfers WHERE kind = 5"
    )

    for kind, debit, credit in (
        ("5", "debit_account", "debit_account"),
        ("5", "credit_account", "credit_account"),
        ("5", "'orgs/acme'", "credit_account"),
        ("5", "debit_account", "'operator/orgs/other/provider-cost'"),
        ("2", "'orgs/acme'", "credit_account"),
        ("6", "debit_account", "credit_account"),
    ):
        with pytest.raises(asyncpg.CheckViolationError, match="violates check constraint"):
            await db.execute(a_copy.format(kind=kind, debit=debit, credit=credit))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE reservations SET state = 1, close_time = NULL, posted_nanos = 0, used_calls = NULL",
        "UPDATE reservations SET posted_nanos = 1",
        "UPDATE reservations SET transfers = 1",
    ],
)
async def test_the_database_itself_resolves_a_hold_once(
    database: OpenDatabase, statement: str
) -> None:
    db = await database("cost")
    store = a_store(db)
    await store.open(reserve(1, 40))
    await store.close(settle(1, 30))

    with pytest.raises(asyncpg.CheckViolationError, match="is closed and may not change"):
        await db.execute(statement)


@pytest.mark.parametrize("period", Period)
async def test_the_database_itself_refuses_an_admission_over_a_limit(
    database: OpenDatabase, monkeypatch: pytest.MonkeyPatch, period: Period
) -> None:
    """Also from a writer that believes that it fits."""
    db = await database("cost")
    store = a_store(db)
    await store.open(reserve(1, 40))
    await set_limit(db, ALICE, period, 41)
    monkeypatch.setattr(ledger, "admit", lambda *_: None)
    monkeypatch.setattr(Books, "note_admission", lambda *_: None)

    results = await asyncio.gather(
        store.open(reserve(2, 2)),
        store.open(reserve(3, 1)),
        store.open(reserve(4, 9, account=TEAM_RUN)),
        return_exceptions=True,
    )

    refused = [result for result in results if isinstance(result, BaseException)]
    assert len(refused) == 1
    assert isinstance(refused[0], asyncpg.CheckViolationError)
    assert f"{ALICE} was admitted over its limit of 41" in str(refused[0])
    assert await balance(db, ALICE) == Balance(41, 0)
    await assert_sound(db)


async def test_the_database_itself_lets_soft_budgets_be_exceeded(database: OpenDatabase) -> None:
    db = await database("cost")
    await set_limit(db, ALICE, Period.TOTAL, 41)
    await db.execute("UPDATE budgets SET enforcement = 2")

    await a_store(db).open(reserve(1, 50))

    assert await balance(db, ALICE) == Balance(50, 0)


async def set_limit(db: Database, account: str, period: Period, limit_nanos: int) -> None:
    async with db.transaction() as connection:
        await lock_ledgers(connection, [ORG])
        await connection.execute(
            "INSERT INTO budgets (account, period, org, limit_nanos, update_time)"
            " VALUES ($1, $2, $3, $4, now())",
            *(account, period, ORG, limit_nanos),
        )


@pytest.mark.parametrize("forgotten", ["revenue", "overrun", "provider_cost"])
async def test_the_database_itself_refuses_debits_that_are_not_the_credits(
    database: OpenDatabase, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    db = await database("cost")
    store = a_store(db)
    await store.open(reserve(1, 40))
    monkeypatch.setattr(
        books, "operator_keys", lambda *key: operator_keys(*key)._replace(**{forgotten: ()})
    )
    monkeypatch.setattr(Books, "prove", lambda _: None)
    monkeypatch.setattr(Books, "require_room", lambda *_: None)

    with pytest.raises(asyncpg.CheckViolationError, match="debits and credits of orgs/acme differ"):
        await store.close(settle(1, 50))

    monkeypatch.undo()
    assert (await store.close(settle(1, 50))).overrun_nanos == 10
    await assert_sound(db)


BEFORE_THE_COST_WAS_KEPT = """
INSERT INTO ledgers VALUES ('orgs/acme', now());
INSERT INTO prices VALUES (repeat('a', 64), 'tools/t', 0, 0, 0, 1);
INSERT INTO reservations (
    claim, attempt, state, service, day, create_time, close_time, account, org, item, price_version,
    price_source, bound_input_tokens, bound_cached_input_tokens, bound_output_tokens, bound_calls,
    hold_nanos, body_digest, used_calls, posted_nanos, overrun_nanos, transfers
) SELECT 'claims/' || n, 1, state, 'tools', '2026-11-23', now(), CASE state WHEN 2 THEN now() END,
    'orgs/acme', 'orgs/acme', 'tools/t', repeat('a', 64), 'file', 0, 0, 0, hold, hold, '', used,
    posted, overrun, CASE state WHEN 1 THEN 1 WHEN 2 THEN 2 + (overrun > 0)::int END
FROM (VALUES (1, 1, 5, NULL, 0, 0), (2, 2, 40, 42, 40, 2), (3, 2, 7, NULL, 7, 0))
    AS v (n, state, hold, used, posted, overrun);
INSERT INTO transfers
SELECT 'claims/' || n, 1, sequence, kind, debit, 'operator/orgs/acme/revenue', amount,
    '2026-11-23', now()
FROM (VALUES (1, 1, 1, 'orgs/acme', 5), (2, 1, 1, 'orgs/acme', 40), (2, 2, 2, 'orgs/acme', 40),
    (2, 3, 4, 'operator/orgs/acme/overrun', 2), (3, 1, 1, 'orgs/acme', 7),
    (3, 2, 2, 'orgs/acme', 7)) AS v (n, sequence, kind, debit, amount);
INSERT INTO balances
SELECT account, period, start, pending, posted
FROM (VALUES ('orgs/acme', 5, 47), ('operator/orgs/acme/revenue', 5, 49),
        ('operator/orgs/acme/overrun', 0, 2)) AS v (account, pending, posted),
    (VALUES (1, date '1970-01-01'), (2, date '2026-11-23'), (3, date '2026-11-01'))
        AS p (period, start)
"""


async def test_bills_from_before_they_had_an_account_are_posted_to_it(
    postgres: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await postgres.empty("cost")
    owner = postgres.dsn(name, "remit_cost_owner")
    files = database_module._migration_files("cost")
    with monkeypatch.context() as before:
        earlier = [file for file in files if file.name < "0004"]
        before.setattr(database_module, "_migration_files", lambda _: earlier)
        await migrate(owner, "cost")
    async with Database.open(owner) as old:
        await old.execute(BEFORE_THE_COST_WAS_KEPT)

    await migrate(owner, "cost")

    async with Database.open(postgres.dsn(name, "remit_cost")) as db:
        assert await balance(db, provider_cost_account(ORG)) == Balance(0, 42)
        assert await balance(db, revenue_account(ORG), Period.MONTH) == Balance(5, 7)
        await assert_sound(db)
