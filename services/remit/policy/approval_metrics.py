"""What operators watch of approvals: how many wait for people, for how long, and what they became.

Counters are each replica's own. What waits is read from the database, which the replicas share:
there take the maximum over replicas.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from remit.policy.approval_rows import OPEN, ApprovalRow, State
from remit.postgres import Database
from remit.rpc.observing import observing

_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86_400

CAME_TO: Final = Counter(
    "remit_approvals_total",
    "Approvals by the state that they came to: PENDING when they were asked for, APPROVED or DENIED"
    " when people decided, USED by the effect that they were for, EXPIRED or WITHDRAWN without it.",
    ["state"],
)
DECISION_SECONDS: Final = Histogram(
    "remit_approval_decision_seconds",
    "Time from asking for an approval until people had decided, in seconds, by what they said:"
    " APPROVED or DENIED.",
    ["state"],
    # As long as people take: from seconds to the 30 days that an approval may be open.
    buckets=(
        *(1, 10, 30),
        *(minutes * _MINUTE_S for minutes in (1, 2, 5, 10, 30)),
        *(hours * _HOUR_S for hours in (1, 2, 4, 8)),
        *(days * _DAY_S for days in (1, 2, 7, 30)),
    ),
)
WAITING: Final = Gauge(
    "remit_approvals_open",
    "Approvals that wait: PENDING for people, APPROVED for the effect that they are for. Counted up"
    " to 10000; the same on each replica.",
    ["state"],
)
WAITING_OLDEST: Final = Gauge(
    "remit_approvals_open_oldest_seconds",
    "Time since the oldest of these was asked for, in seconds; 0 where there is none; the same on"
    " each replica.",
    ["state"],
)
WAITED: Final = Gauge(
    "remit_approvals_waited_ratio",
    "Largest share of its time for which an approval has waited for people, up to 1; 0 where none"
    " waits; the same on each replica.",
)

_DECIDED: Final = frozenset({State.APPROVED, State.DENIED})
_MOST_COUNTED: Final = 10_000

# A series that appears with its first event hides that event from `increase`.
for _state in State:
    CAME_TO.labels(_state)
for _state in _DECIDED:
    DECISION_SECONDS.labels(_state)

# It reads an index that holds nothing but what is open.
_OPEN: Final = """
SELECT state, count(*) AS approvals,
       extract(epoch FROM clock_timestamp() - min(create_time))::float8 AS oldest_s,
       max(extract(epoch FROM clock_timestamp() - create_time)
           / nullif(extract(epoch FROM expire_time - create_time), 0))::float8 AS waited
FROM (
    SELECT state, create_time, expire_time FROM approvals
    WHERE state IN ('PENDING', 'APPROVED') ORDER BY expire_time LIMIT $1::bigint
) AS open
GROUP BY state
"""


def count_change(row: ApprovalRow) -> None:
    """Counts an approval that came to the state in which it is, once that is committed."""
    CAME_TO.labels(row.state).inc()
    if row.state in _DECIDED:
        DECISION_SECONDS.labels(row.state).observe(row.age_s)


def open_approvals(database: Database, *, every_s: float) -> Callable[[], Awaitable[None]]:
    """Background work that keeps the gauges of what waits."""

    async def look() -> None:
        rows = {State(row["state"]): row for row in await database.fetch(_OPEN, _MOST_COUNTED)}
        for state in OPEN:
            row = rows.get(state)
            WAITING.labels(state).set(row["approvals"] if row else 0)
            WAITING_OLDEST.labels(state).set(max(row["oldest_s"], 0.0) if row else 0.0)
        pending = rows.get(State.PENDING)
        share = (pending["waited"] if pending else None) or 0.0
        WAITED.set(min(max(share, 0.0), 1.0))

    return observing(look, every_s=every_s)
