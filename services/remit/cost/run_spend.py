"""Reads the accounts of a run and of the runs below it, in one look at the ledger.

Everything of a tree comes from one statement, so that no effect that is settled meanwhile stands in
one sum and not in the other.
"""

from __future__ import annotations

from typing import Final

import asyncpg

from remit.api.errors.v1 import error_reason_pb2
from remit.cost.books import Balance
from remit.cost.run_trees import RunAccount, RunSpend, empty_spend, tree_spend
from remit.cost.sums import SUMS, as_integers, spend_row
from remit.postgres import Database
from remit.rpc.errors import RemitError

MAX_RUNS: Final = 1_000
"""Runs of one bill at most."""

# A run that made no effect itself has an account all the same when a run below it paid.
FIND_ACCOUNT: Final = """
    (SELECT account FROM reservations WHERE run = $2 AND org = $1 LIMIT 1)
    UNION ALL
    (SELECT account FROM balances WHERE right(account, 41) = $2 AND period = 1
        AND account LIKE '%/runs/%' AND starts_with(account, $1 || '/') LIMIT 1)
    LIMIT 1
"""
# $1 is the account of the run $2. Accounts below it begin with it and a slash, which '0' follows in
# byte order. A run that made no effect and is above one that did is a node too.
SELECT_TREE: Final = f"""
    WITH effects AS NOT MATERIALIZED (
        SELECT * FROM reservations WHERE run = $2 AND account = $1 AND state <> 3
        UNION ALL
        SELECT * FROM reservations WHERE account LIKE '%/runs/%/runs/%' AND state <> 3
            AND account COLLATE "C" > $1 || '/' AND account COLLATE "C" < $1 || '0'
    ), own AS MATERIALIZED (
        SELECT account, {SUMS} FROM effects GROUP BY account LIMIT $3
    ), nodes AS (
        SELECT $1 AS account
        UNION
        SELECT array_to_string((string_to_array(account, '/'))[1:n], '/')
        FROM own, generate_series(
            cardinality(string_to_array($1, '/')), cardinality(string_to_array(account, '/')), 4
        ) AS n
    )
    SELECT account, {as_integers("coalesce({}, 0)")}, coalesce(estimated, false) AS estimated,
        coalesce(b.pending_nanos, 0) AS pending_nanos, coalesce(b.posted_nanos, 0) AS posted_nanos
    FROM nodes LEFT JOIN own USING (account) LEFT JOIN LATERAL (
        SELECT pending_nanos, posted_nanos FROM balances f
        WHERE f.account = nodes.account AND period = 1 AND start = '1970-01-01' OFFSET 0
    ) b ON true
"""  # noqa: S608 - constants of this module


async def select_run_spend(database: Database, org: str, run: str) -> list[RunSpend]:
    """The bill of a run of the org: itself, then the runs below it. Zeros where nothing is known.

    Raises TOO_LARGE for more than MAX_RUNS, and DATA_CORRUPT where the ledger does not add up.
    """
    account = await database.fetchval(FIND_ACCOUNT, org, run)
    if account is None:
        return empty_spend(run)
    records = await database.fetch(SELECT_TREE, account, run, MAX_RUNS + 1)
    if len(records) > MAX_RUNS:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_TOO_LARGE,
            f"{run} has {MAX_RUNS} sub-runs or more, at any depth; ask for each of its sub-runs",
        )
    return tree_spend(account, map(_run_account, records))


def _run_account(record: asyncpg.Record) -> RunAccount:
    return RunAccount(
        account=record["account"],
        own=spend_row("", record),
        balance=Balance(record["pending_nanos"], record["posted_nanos"]),
    )
