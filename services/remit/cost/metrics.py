"""What operators watch of money: holds, what they became, what was spent and overrun.

Counters are each replica's own; what the ledger holds is read from the database that the replicas
share: there take the maximum.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from prometheus_client import Counter, Gauge

from remit import telemetry
from remit.cost.alerts import Alert
from remit.cost.reservations import Reservation, State
from remit.postgres import Database
from remit.rpc.errors import RemitError
from remit.rpc.observing import observing

log = telemetry.logger(__name__)

RESERVATIONS: Final = Counter(
    "remit_reservations_total",
    "Holds asked for, by result: HELD or the reason of the refusal, such as BUDGET_EXHAUSTED.",
    ["result"],
)
OPEN_OLDEST: Final = Gauge(
    "remit_ledger_holds_oldest_seconds",
    "Age of the oldest hold of money that is open in the ledger, in seconds; 0 where none is older"
    " than a minute; the same on each replica.",
)
OPEN_OVERDUE: Final = Gauge(
    "remit_ledger_holds_overdue",
    "Open holds whose claims ended, or lost their owners, longer ago than the bound of the lag, or"
    " are open longer than any effect lasts; of the oldest 1024; the same on each replica.",
)
OPEN_UNCLAIMED: Final = Gauge(
    "remit_ledger_holds_unclaimed",
    "Open holds whose claims do not exist; of the oldest 1024; the same on each replica.",
)
CLOSED: Final = Counter(
    "remit_reservations_closed_total",
    "Holds that were closed, by what they became: SETTLED or RELEASED.",
    ["state"],
)
SPENT: Final = Counter(
    "remit_spent_nanos_total",
    "Money posted to budgets, in nano-USD, by the model or tool that was bought.",
    ["item"],
)
OVERRUN: Final = Counter(
    "remit_overrun_nanos_total",
    "Money billed above its hold, in nano-USD, by item; the operator pays it, no budget does.",
    ["item"],
)
ALERTS: Final = Counter(
    "remit_budget_alerts_total",
    "Alerts of budgets, by what the budget does at its limit (HARD or SOFT) and by level: WARNING"
    " below the limit, LIMIT at it or above.",
    ["enforcement", "level"],
)
LEDGER_HELD: Final = Gauge(
    "remit_ledger_held_nanos",
    "Money held by the ledger over all orgs, in nano-USD; the same on each replica.",
)

_WHOLE_PERCENT: Final = 100
# An org's own TOTAL balance holds what all of its accounts hold.
_HELD: Final = """
SELECT coalesce(sum(b.pending_nanos), 0)::bigint
FROM ledgers l JOIN balances b ON b.account = l.org AND b.period = 1
"""


def count_opened(result: Reservation | RemitError) -> None:
    """Counts a hold that was asked for."""
    _reservations(result.reason_name if isinstance(result, RemitError) else "HELD").inc()


def count_closed(reservation: Reservation, asked: datetime) -> None:
    """Counts a hold that this very call closed; one that was closed before is counted already.

    A bill above its hold is also said: somebody else pays it than the one who caused it.
    """
    if reservation.close_time is None or reservation.close_time < asked:
        return
    if reservation.overrun_nanos:
        log.warning(
            "bill_above_hold",
            reservation=reservation.name,
            item=reservation.item,
            held_nanos=reservation.hold_nanos,
            overrun_nanos=reservation.overrun_nanos,
        )
    CLOSED.labels(reservation.state.name).inc()
    if reservation.state is State.SETTLED:
        _spent(reservation.item).inc(reservation.posted_nanos)
        _overrun(reservation.item).inc(reservation.overrun_nanos)


def count_alert(alert: Alert) -> None:
    """Counts an alert that is in the audit log."""
    level = "WARNING" if alert.percent < _WHOLE_PERCENT else "LIMIT"
    ALERTS.labels(alert.terms.enforcement.name, level).inc()


def ledger_held(database: Database, *, every_s: float) -> Callable[[], Awaitable[None]]:
    """Background work that keeps the gauge of what the ledger holds."""

    async def look() -> None:
        LEDGER_HELD.set(await database.fetchval(_HELD))

    return observing(look, every_s=every_s)


@functools.cache
def _reservations(result: str) -> Counter:
    return RESERVATIONS.labels(result)


@functools.cache
def _spent(item: str) -> Counter:
    return SPENT.labels(item)


@functools.cache
def _overrun(item: str) -> Counter:
    return OVERRUN.labels(item)
