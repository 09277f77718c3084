"""Reservations and the operations on them: plain data that the ledger decides about."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from enum import IntEnum
from typing import NamedTuple, Protocol, TypeAlias

from remit import names
from remit.api.cost.v1 import reservation_pb2
from remit.cost.accounts import periods_kept
from remit.cost.periods import BudgetPeriod, RunPeriod
from remit.pricing import INT64_MAX
from remit.rpc.errors import Violation


class State(IntEnum):
    """State of a reservation. The numbers are the contract's, and are stored."""

    HELD = reservation_pb2.Reservation.STATE_HELD
    SETTLED = reservation_pb2.Reservation.STATE_SETTLED
    RELEASED = reservation_pb2.Reservation.STATE_RELEASED


class ReservationKey(NamedTuple):
    """Names a reservation: the claim's name and its attempt."""

    claim: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Price:
    """A pinned price; see `remit.api.cost.v1.Price`. `source` says where it came from."""

    version: str = ""
    source: str = ""
    input_nanos_per_million: int = 0
    cached_input_nanos_per_million: int = 0
    output_nanos_per_million: int = 0
    call_nanos: int = 0

    def at(self, moment: datetime) -> Price:  # noqa: ARG002 - it is the same at any time
        """The price of a moment: itself."""
        return self


class Offer(Protocol):
    """What an item costs, by time."""

    def at(self, moment: datetime) -> Price:
        """The price of a hold that begins then. Raises PRICE_UNKNOWN."""
        ...


@dataclass(frozen=True, slots=True)
class Usage:
    """What an effect used or may use; see `remit.api.usage.v1.Usage`."""

    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    calls: int = 0
    estimated: bool = False

    def covers(self, other: Usage) -> bool:
        """Whether every count is at least the other's."""
        return (
            self.input_tokens >= other.input_tokens
            and self.cached_input_tokens >= other.cached_input_tokens
            and self.output_tokens >= other.output_tokens
            and self.calls >= other.calls
        )


@dataclass(frozen=True, slots=True)
class Reservation:
    """A hold and what became of it. A tombstone is RELEASED and has no account."""

    key: ReservationKey
    state: State
    service: str
    """The service that reserved; no other may extend, settle or release."""
    day: date
    """Day in UTC on which it began; it stays in the periods of that day."""
    create_time: datetime
    account: str = ""
    item: str = ""
    price: Price = Price()
    bound: Usage = Usage()
    hold_nanos: int = 0
    own_limit_nanos: int | None = None
    outer_limits_nanos: tuple[int | None, ...] = ()
    body_digest: bytes = b""
    posted_nanos: int = 0
    overrun_nanos: int = 0
    used: Usage | None = None
    """What it was settled with; None before, and when the whole hold was posted."""
    close_time: datetime | None = None
    transfers: int = 0

    @property
    def name(self) -> str:
        """`reservations/{claim}-{attempt}`."""
        return names.reservation_name(*self.key)


@dataclass(frozen=True, slots=True)
class Reserve:
    """Hold the cost of `bound` on every account of the path that ends in `account`."""

    key: ReservationKey
    service: str
    account: str
    item: str
    price: Offer
    """From which the price is pinned when the time of the hold is known."""
    bound: Usage
    own_limit_nanos: int | None
    """Limit that the run carries in its remit."""
    body_digest: bytes
    """Digest of the request; the same key with another digest is another request."""
    outer_limits_nanos: tuple[int | None, ...] = ()
    """Limits of the runs above a sub-run, the outermost first."""


@dataclass(frozen=True, slots=True)
class Extend:
    """Raise a hold to the cost of a larger bound."""

    key: ReservationKey
    service: str
    bound: Usage


@dataclass(frozen=True, slots=True)
class Settle:
    """Post what was used and free the rest; None posts the whole hold."""

    key: ReservationKey
    service: str
    used: Usage | None


@dataclass(frozen=True, slots=True)
class Release:
    """Free a hold whose effect never started."""

    key: ReservationKey
    service: str


@dataclass(frozen=True, slots=True)
class SetLimit:
    """Set the limit of an account for a period."""

    account: str
    period: BudgetPeriod
    limit_nanos: int


HoldOperation: TypeAlias = Reserve | Extend | Settle | Release


def amount_violations(limit_nanos: int) -> list[Violation]:
    """What is wrong with the amount of a budget."""
    if 0 <= limit_nanos <= INT64_MAX:
        return []
    return [Violation("limit_nanos", f"is {limit_nanos}; a limit lies between 0 and {INT64_MAX}")]


def limit_violations(operation: SetLimit) -> list[Violation]:
    """What is wrong with a budget."""
    violations = amount_violations(operation.limit_nanos)
    if operation.period not in (*periods_kept(operation.account), RunPeriod.RUN):
        violations.append(Violation("period", "the periods of a run are TOTAL and RUN, the same"))
    return violations
