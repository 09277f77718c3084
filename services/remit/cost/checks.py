"""Checks the stored ledger as a whole: balances and reservations against the transfers.

A batch proves what it touched. This proves everything, from the transfers alone, and so finds what
a batch cannot: a row changed by hand, a restored table, a balance that nobody touched since.
"""

from __future__ import annotations

from typing import Final

from remit.cost.accounts import org_of
from remit.cost.reconciliation import Difference, Kind
from remit.postgres import Connection, Database

# Every ancestor of a leaf, by its path; an operator's account has none but itself. OVERRUN (4) and
# COST (5) stand between accounts of the operator, and COST takes from the revenue.
_POSTINGS: Final = """
    WITH entries AS (
        SELECT debit_account AS leaf, credit_account, kind, day,
            CASE kind WHEN 1 THEN 1 WHEN 2 THEN -1 WHEN 3 THEN -1 ELSE 0 END * amount_nanos AS held,
            CASE kind WHEN 1 THEN 0 WHEN 3 THEN 0 ELSE 1 END * amount_nanos AS spent
        FROM transfers
    ), sides AS (
        SELECT leaf AS account, held, CASE kind WHEN 5 THEN -spent ELSE spent END AS spent, day
        FROM entries WHERE kind IN (4, 5)
        UNION ALL
        SELECT credit_account, held, spent, day FROM entries
        UNION ALL
        SELECT array_to_string((string_to_array(leaf, '/'))[1:n], '/'), held, spent, day
        FROM entries, generate_series(2, cardinality(string_to_array(leaf, '/')), 2) AS n
        WHERE kind NOT IN (4, 5)
    ), in_periods AS (
        SELECT account, held, spent, p AS period, CASE p
            WHEN 1 THEN date '1970-01-01' WHEN 2 THEN day ELSE date_trunc('month', day)::date
        END AS start
        FROM sides, unnest(ARRAY[1, 2, 3]) AS p
        WHERE p = 1 OR position('/runs/' IN account) = 0
    ), expected AS (
        SELECT account, period, start, sum(held) AS pending, sum(spent) AS posted
        FROM in_periods GROUP BY account, period, start
    )
"""
_WRONG_BALANCES: Final = f"""
    {_POSTINGS}
    SELECT account, account || ' (' || CASE period
            WHEN 1 THEN 'total' WHEN 2 THEN 'day ' || start
            ELSE 'month ' || to_char(start, 'YYYY-MM')
        END || '): pending ' || coalesce(b.pending_nanos, 0)
        || ' and posted ' || coalesce(b.posted_nanos, 0) || ', but its transfers make '
        || coalesce(e.pending, 0) || ' and ' || coalesce(e.posted, 0) AS fault
    FROM balances b FULL JOIN expected e USING (account, period, start)
    WHERE coalesce(b.pending_nanos, 0) <> coalesce(e.pending, 0)
        OR coalesce(b.posted_nanos, 0) <> coalesce(e.posted, 0)
    ORDER BY account, period, start LIMIT $1
"""  # noqa: S608 - constants of this module
_WRONG_RESERVATIONS: Final = """
    SELECT r.claim, r.attempt, r.service, r.account,
        r.claim || ' attempt ' || r.attempt || ': its row says held ' || r.hold_nanos || ', posted '
        || r.posted_nanos || ', overrun ' || r.overrun_nanos || ' in ' || r.transfers
        || ' transfers, but its transfers make ' || coalesce(t.held, 0) || ', '
        || coalesce(t.posted, 0) || ', ' || coalesce(t.overrun, 0) || ' in ' || coalesce(t.n, 0)
        || ', of which ' || coalesce(t.cost, 0) || ' are what the provider charged'
        AS fault
    FROM reservations r LEFT JOIN (
        SELECT claim, attempt, count(*) AS n,
            coalesce(sum(amount_nanos) FILTER (WHERE kind = 1), 0) AS held,
            coalesce(sum(amount_nanos) FILTER (WHERE kind = 2), 0) AS posted,
            coalesce(sum(amount_nanos) FILTER (WHERE kind = 3), 0) AS freed,
            coalesce(sum(amount_nanos) FILTER (WHERE kind = 4), 0) AS overrun,
            coalesce(sum(amount_nanos) FILTER (WHERE kind = 5), 0) AS cost
        FROM transfers GROUP BY claim, attempt
    ) t USING (claim, attempt)
    WHERE coalesce(t.n, 0) <> r.transfers
        OR coalesce(t.held, 0) <> r.hold_nanos
        OR coalesce(t.posted, 0) <> r.posted_nanos
        OR coalesce(t.overrun, 0) <> r.overrun_nanos
        OR coalesce(t.cost, 0) <> CASE WHEN r.used_calls IS NULL THEN 0
            ELSE r.posted_nanos + r.overrun_nanos END
        OR coalesce(t.freed, 0) <> CASE r.state WHEN 1 THEN 0 ELSE r.hold_nanos - r.posted_nanos END
    ORDER BY r.claim, r.attempt LIMIT $1
"""


async def ledger_faults(connection: Connection, limit: int) -> list[str]:
    """What does not add up, one sentence each, at most `limit` of each kind; empty is good."""
    return [found.explanation for found in await _differences(connection, limit)]


async def stored_differences(
    database: Database, *, limit: int, timeout_s: float
) -> list[Difference]:
    """The same with whose each is, where reading everything may take so long.

    Each half is one statement, so it sees one moment, whatever is written meanwhile. Raises
    DEPENDENCY_UNAVAILABLE when it takes longer.
    """
    async with database.transaction() as connection:
        await connection.execute(
            f"SET TRANSACTION READ ONLY; SET LOCAL statement_timeout = {int(timeout_s * 1000)};"
            # Everything is read, so in the order in which it lies.
            " SET LOCAL enable_seqscan = on"
        )
        return await _differences(connection, limit)


async def _differences(connection: Connection, limit: int) -> list[Difference]:
    balances = await connection.fetch(_WRONG_BALANCES, limit)
    reservations = await connection.fetch(_WRONG_RESERVATIONS, limit)
    return [
        *(
            Difference(
                Kind.BALANCE_DIFFERS,
                _owner(row["account"]),
                "",
                0,
                "",
                row["account"],
                row["fault"],
            )
            for row in balances
        ),
        *(
            Difference(
                Kind.TRANSFERS_DIFFER,
                _owner(row["account"] or ""),
                row["claim"],
                row["attempt"],
                row["service"],
                row["account"] or "",
                row["fault"],
            )
            for row in reservations
        ),
    ]


def _owner(account: str) -> str:
    """Whose account it is; an operator's, `operator/orgs/...`, is the org's that it is for."""
    return org_of(account.removeprefix("operator/")) if account else ""
