"""Checks the stored ledger as a whole: balances and reservations against the transfers.

A batch proves what it touched. This proves everything, from the transfers alone, and so finds what
a batch cannot: a row changed by hand, a restored table, a balance that nobody touched since.
"""

from __future__ import annotations

from typing import Final

from remit.postgres import Connection

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
    SELECT coalesce(b.account, e.account) || ': pending ' || coalesce(b.pending_nanos, 0)
        || ' and posted ' || coalesce(b.posted_nanos, 0) || ', but its transfers make '
        || coalesce(e.pending, 0) || ' and ' || coalesce(e.posted, 0)
    FROM balances b FULL JOIN expected e USING (account, period, start)
    WHERE coalesce(b.pending_nanos, 0) <> coalesce(e.pending, 0)
        OR coalesce(b.posted_nanos, 0) <> coalesce(e.posted, 0)
    ORDER BY 1 LIMIT $1
"""  # noqa: S608 - constants of this module
_WRONG_RESERVATIONS: Final = """
    SELECT r.claim || ' attempt ' || r.attempt || ': its row and its transfers differ'
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
    ORDER BY 1 LIMIT $1
"""


async def ledger_faults(connection: Connection, limit: int) -> list[str]:
    """What does not add up, one sentence each, at most `limit` of each kind; empty is good."""
    balances = await connection.fetch(_WRONG_BALANCES, limit)
    reservations = await connection.fetch(_WRONG_RESERVATIONS, limit)
    return [record[0] for record in (*balances, *reservations)]
