"""What the ledger must do, told in the plainest way, for one org.

Nothing of the ledger is used here but the operations themselves. No balance is kept: whatever is
needed is added up, each time, from all holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from remit.cost.reservations import Extend, HoldOperation, Release, Reserve, Settle

TOLERANCE = timedelta(seconds=5)
Answer = tuple[str, int, int, int] | str
"""State, held, posted and overrun nano-USD; or the reason of a refusal."""


@dataclass
class Hold:
    """One reservation; a tombstone has no leaf."""

    service: str
    leaf: str
    day: date
    asked: bytes
    own_limit: int | None = None
    state: str = "HELD"
    nanos: int = 0
    posted: int = 0
    overrun: int = 0
    used: int | None = None

    @property
    def answer(self) -> Answer:
        """What a caller is told of it."""
        return self.state, self.nanos, self.posted, self.overrun

    @property
    def counted(self) -> int:
        """What of it stands against a limit."""
        return {"HELD": self.nanos, "SETTLED": self.posted, "RELEASED": 0}[self.state]


@dataclass
class PlainLedger:
    """Holds and limits of one org. `limits` are by account and by "TOTAL", "DAY" or "MONTH"."""

    org: str
    default_month_limit: int
    holds: dict[str, Hold] = field(default_factory=dict)
    limits: dict[tuple[str, str], int] = field(default_factory=dict)
    latest: datetime | None = None

    def apply(self, operation: HoldOperation, now: datetime) -> Answer:
        """Does what is asked, or says why not and does nothing."""
        hold = self.holds.get(operation.key.claim)
        if isinstance(operation, Reserve):
            return self._reserve(operation, now) if hold is None else _again(hold, operation)
        if hold is None:
            if not isinstance(operation, Release):
                return "RESOURCE_NOT_FOUND"
            hold = Hold(operation.service, "", now.date(), b"", state="RELEASED")
            self.holds[operation.key.claim] = hold
        if hold.service != operation.service:
            return "PERMISSION_DENIED"
        if isinstance(operation, Extend):
            return self._extend(hold, operation.bound.calls)
        return _settle(hold, operation) if isinstance(operation, Settle) else _release(hold)

    def sums(self, account: str, period: str, day: date) -> tuple[int, int]:
        """What is held and what is spent on an account in the period of a day."""
        below = [h for h in self.holds.values() if _is_on_path(account, h.leaf)]
        counted = [h for h in below if _same(period, h.day, day)]
        held = sum(h.nanos for h in counted if h.state == "HELD")
        return held, sum(h.posted for h in counted)

    def _reserve(self, wanted: Reserve, now: datetime) -> Answer:
        begins = max(now, self.latest or now)
        if begins - now > TOLERANCE:
            return "INVALID_STATE"
        hold = Hold(wanted.service, wanted.account, begins.date(), wanted.body_digest)
        hold.own_limit = wanted.own_limit_nanos
        if not self._fits(hold, wanted.bound.calls):
            return "BUDGET_EXHAUSTED"
        hold.nanos = wanted.bound.calls
        self.holds[wanted.key.claim] = hold
        self.latest = begins
        return hold.answer

    def _extend(self, hold: Hold, nanos: int) -> Answer:
        if hold.state != "HELD":
            return "RESERVATION_CLOSED"
        if nanos < hold.nanos:
            return "INVALID_REQUEST"
        if not self._fits(hold, nanos - hold.nanos):
            return "BUDGET_EXHAUSTED"
        hold.nanos = nanos
        return hold.answer

    def _fits(self, hold: Hold, more: int) -> bool:
        limits = dict(self.limits)
        if not any(account == self.org for account, _ in limits):
            limits[self.org, "MONTH"] = self.default_month_limit
        asked = [(*key, limit) for key, limit in limits.items() if _is_on_path(key[0], hold.leaf)]
        if hold.own_limit is not None:
            asked.append((hold.leaf, "TOTAL", hold.own_limit))
        return more == 0 or all(
            sum(self.sums(account, period, hold.day)) + more <= limit
            for account, period, limit in asked
        )


def _again(hold: Hold, wanted: Reserve) -> Answer:
    if hold.leaf and hold.asked != wanted.body_digest:
        return "KEY_REUSED"
    return hold.answer if hold.state == "HELD" else "RESERVATION_CLOSED"


def _settle(hold: Hold, wanted: Settle) -> Answer:
    used = None if wanted.used is None else wanted.used.calls
    if hold.state == "SETTLED":
        return hold.answer if hold.used == used else "KEY_REUSED"
    if hold.state == "RELEASED":
        return "RESERVATION_CLOSED"
    bill = hold.nanos if used is None else used
    hold.state, hold.used = "SETTLED", used
    hold.posted, hold.overrun = min(bill, hold.nanos), max(bill - hold.nanos, 0)
    return hold.answer


def _release(hold: Hold) -> Answer:
    if hold.state == "SETTLED":
        return "RESERVATION_CLOSED"
    hold.state = "RELEASED"
    return hold.answer


def _is_on_path(account: str, leaf: str) -> bool:
    return f"{leaf}/".startswith(f"{account}/")


def _same(period: str, one: date, other: date) -> bool:
    if period == "DAY":
        return one == other
    return period == "TOTAL" or (one.year, one.month) == (other.year, other.month)
