"""What operators watch of effects: how they end, what stands open, what sweepers had to do.

Counters are each replica's own. What stands open is read from the database, which all replicas of
a service share: there take the maximum over replicas.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from remit.effects.claims import LAPSES, Outcome
from remit.effects.settings import EffectSettings
from remit.postgres import Database
from remit.rpc.observing import observing

EFFECTS: Final = Counter(
    "remit_effects_total",
    "Attempts that ended here, by action and outcome.",
    ["action", "outcome"],
)
KNOWN: Final = Counter(
    "remit_effects_known_total",
    "Calls whose key was known, by action and what was answered; a REPLAY performs nothing.",
    ["action", "answer"],
)
OPENING_SECONDS: Final = Histogram(
    "remit_effect_opening_seconds",
    "Time from an effect's claim to its start, in seconds: permission, budget and record.",
    ["action"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
EXTENSIONS: Final = Counter(
    "remit_hold_extensions_total",
    "Requests for more money by effects that go on, by action and result: HELD, or the reason of"
    " the refusal, such as BUDGET_EXHAUSTED.",
    ["action", "result"],
)
LAPSED: Final = Counter(
    "remit_claims_lapsed_total",
    "Attempts whose owner was gone, by what the sweeper made of them: REFUSED or IN_DOUBT.",
    ["state"],
)
SWEPT: Final = Counter(
    "remit_closings_swept_total", "Ended attempts that were left to the sweeper to close."
)
DELAYED: Final = Counter(
    "remit_closings_delayed_total",
    "Closings that failed and are tried again, by reason.",
    ["reason"],
)
STANDING: Final = Gauge(
    "remit_effects_standing",
    "Attempts by action and where they stand: CLAIMED, STARTED, or UNCLOSED, which ended and whose"
    " settlement or outcome is not recorded yet. Counted up to 10000; the same on each replica.",
    ["action", "state"],
)
STANDING_OLDEST: Final = Gauge(
    "remit_effects_standing_oldest_seconds",
    "Age of the oldest such attempt, in seconds; 0 where there is none; the same on each replica.",
    ["action", "state"],
)
HOLDS: Final = Gauge(
    "remit_holds_open",
    "Attempts that hold money in the ledger, by action; the same on each replica.",
    ["action"],
)
HOLDS_NANOS: Final = Gauge(
    "remit_holds_open_nanos",
    "Money that these hold, in nano-USD, by action; the same on each replica.",
    ["action"],
)
HOLDS_OLDEST: Final = Gauge(
    "remit_holds_oldest_seconds",
    "Age of the oldest of these holds, in seconds; 0 without any; the same on each replica.",
    ["action"],
)

# A series that appears with its first event hides that event from `increase`.
for _state in LAPSES.values():
    LAPSED.labels(_state)

STATES: Final = ("CLAIMED", "STARTED", "UNCLOSED")
_MOST_COUNTED: Final = 10_000

# Both parts read an index that holds nothing but what stands open.
_STANDING: Final = """
SELECT state, count(*) AS attempts,
       extract(epoch FROM clock_timestamp() - min(since))::float8 AS oldest_s,
       count(hold_nanos) AS holds, coalesce(sum(hold_nanos), 0)::bigint AS held_nanos,
       extract(epoch FROM clock_timestamp() - min(create_time) FILTER
               (WHERE hold_nanos IS NOT NULL))::float8 AS oldest_hold_s
FROM (
    (SELECT state, create_time AS since, create_time, hold_nanos FROM effect_attempts
     WHERE state IN ('CLAIMED', 'STARTED') ORDER BY lease_expires LIMIT $1::bigint)
    UNION ALL
    (SELECT 'UNCLOSED', update_time, create_time, hold_nanos FROM effect_attempts
     WHERE outcome IS NOT NULL AND closed_time IS NULL ORDER BY update_time LIMIT $1::bigint)
) AS standing
GROUP BY state
"""


@functools.cache
def ended(action: str, outcome: str) -> Counter:
    """The counter of attempts of an action that ended so."""
    return EFFECTS.labels(action, outcome)


@functools.cache
def opening_seconds(action: str) -> Histogram:
    """The times that effects of an action took to start."""
    return OPENING_SECONDS.labels(action)


@functools.cache
def extensions(action: str, result: str) -> Counter:
    """The counter of requests for more money of an action that were answered so."""
    return EXTENSIONS.labels(action, result)


def standing_effects(
    database: Database, settings: EffectSettings, *, action: str
) -> Callable[[], Awaitable[None]]:
    """Background work that keeps the gauges of what stands open in this service's database."""
    for outcome in Outcome:
        ended(action, outcome)

    async def look() -> None:
        rows = {row["state"]: row for row in await database.fetch(_STANDING, _MOST_COUNTED)}
        for state in STATES:
            row = rows.get(state)
            STANDING.labels(action, state).set(row["attempts"] if row else 0)
            STANDING_OLDEST.labels(action, state).set(_age_s(row["oldest_s"] if row else None))
        HOLDS.labels(action).set(sum(row["holds"] for row in rows.values()))
        HOLDS_NANOS.labels(action).set(sum(row["held_nanos"] for row in rows.values()))
        ages = (_age_s(row["oldest_hold_s"]) for row in rows.values())
        HOLDS_OLDEST.labels(action).set(max(ages, default=0.0))

    return observing(look, every_s=settings.observe_s)


def _age_s(age_s: float | None) -> float:
    return max(age_s or 0.0, 0.0)
