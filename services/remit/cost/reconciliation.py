"""Compares the ledger with the claims: plain rules over one hold and one attempt, no I/O.

The claim alone says an effect's state, so the ledger is right when it says what the claim says.
Each rule rests on the order in which the two are written: a claim is made before its money is held,
the money is held before the effect starts, a claim ends before its money is settled or released,
and both are done before the claim is closed. So what two looks, one after the other, both find is
no matter of timing; only the rules of lag ask for ages, which one clock measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from remit.api.cost.v1 import ledger_difference_pb2
from remit.cost.accounts import org_of
from remit.cost.reservations import Reservation, ReservationKey, Usage
from remit.cost.reservations import State as HoldState
from remit.pricing import cost_nanos
from remit.rpc.errors import RemitError


class Kind(IntEnum):
    """What differs. The numbers are the contract's."""

    CLAIM_MISSING = ledger_difference_pb2.LedgerDifference.KIND_CLAIM_MISSING
    RESERVATION_MISSING = ledger_difference_pb2.LedgerDifference.KIND_RESERVATION_MISSING
    OWNER_DIFFERS = ledger_difference_pb2.LedgerDifference.KIND_OWNER_DIFFERS
    HOLD_LEFT = ledger_difference_pb2.LedgerDifference.KIND_HOLD_LEFT
    CLOSING_OVERDUE = ledger_difference_pb2.LedgerDifference.KIND_CLOSING_OVERDUE
    OPEN_TOO_LONG = ledger_difference_pb2.LedgerDifference.KIND_OPEN_TOO_LONG
    SETTLED_WHILE_OPEN = ledger_difference_pb2.LedgerDifference.KIND_SETTLED_WHILE_OPEN
    REFUSED_BUT_POSTED = ledger_difference_pb2.LedgerDifference.KIND_REFUSED_BUT_POSTED
    RELEASED_NOT_REFUSED = ledger_difference_pb2.LedgerDifference.KIND_RELEASED_NOT_REFUSED
    DOUBT_NOT_WHOLE = ledger_difference_pb2.LedgerDifference.KIND_DOUBT_NOT_WHOLE
    BILL_DIFFERS = ledger_difference_pb2.LedgerDifference.KIND_BILL_DIFFERS
    HOLD_DIFFERS = ledger_difference_pb2.LedgerDifference.KIND_HOLD_DIFFERS
    TRANSFERS_DIFFER = ledger_difference_pb2.LedgerDifference.KIND_TRANSFERS_DIFFER
    BALANCE_DIFFERS = ledger_difference_pb2.LedgerDifference.KIND_BALANCE_DIFFERS


_RESTORED: Final = (
    "A database was restored, or a row deleted by hand: find which and when, and restore cost and"
    " the enforcement service to one moment."
)
_BY_HAND: Final = (
    "No code path writes this: find who changed a row of cost or of the enforcement service by"
    " hand, and correct the row that the audit log refutes."
)
_SWEEPER: Final = (
    "Look at the enforcement service: `remit_closings_delayed_total` and its log say why its"
    " sweeper does not close it. It closes it once it can; never release it by hand."
)
NEXT_STEPS: Final[Mapping[Kind, str]] = MappingProxyType(
    {
        Kind.CLAIM_MISSING: _RESTORED,
        Kind.RESERVATION_MISSING: _RESTORED,
        Kind.OWNER_DIFFERS: _BY_HAND,
        Kind.HOLD_LEFT: _RESTORED,
        Kind.CLOSING_OVERDUE: _SWEEPER,
        Kind.OPEN_TOO_LONG: "Its owner lives and renews its lease: cancel its run, or restart the"
        " replica that performs it.",
        Kind.SETTLED_WHILE_OPEN: _RESTORED,
        Kind.REFUSED_BUT_POSTED: _BY_HAND,
        Kind.RELEASED_NOT_REFUSED: _BY_HAND,
        Kind.DOUBT_NOT_WHOLE: _BY_HAND,
        Kind.BILL_DIFFERS: _BY_HAND,
        Kind.HOLD_DIFFERS: _BY_HAND,
        Kind.TRANSFERS_DIFFER: "Transfers are append-only: find who changed the reservation or"
        " deleted a transfer by hand, and restore the row that its transfers make.",
        Kind.BALANCE_DIFFERS: "Transfers are append-only: find who changed the balance by hand, and"
        " set it to what its transfers make.",
    }
)
"""What to do about each."""


class AttemptState(Enum):
    """Where an attempt stands, as its service says."""

    CLAIMED = "CLAIMED"
    STARTED = "STARTED"
    DONE = "DONE"
    CLOSED = "CLOSED"
    REFUSED = "REFUSED"
    IN_DOUBT = "IN_DOUBT"


_OPEN: Final = frozenset({AttemptState.CLAIMED, AttemptState.STARTED})


class Place(NamedTuple):
    """Names what is compared: which service's attempt, and the reservation of that name."""

    service: str
    key: ReservationKey


@dataclass(frozen=True, slots=True)
class Attempt:
    """What an enforcement service says of one attempt; ages by its own database's clock."""

    place: Place
    org: str
    state: AttemptState
    is_in_doubt: bool
    """It ended, and nobody knows whether it took place: its whole hold is to be posted."""
    hold_nanos: int | None
    """What was held when it started; None if it never did."""
    cost_nanos: int
    used: Usage | None
    age_s: float
    lapsed_s: float | None
    """How long its owner has been gone; None while the lease holds, and once it has ended."""
    ended_s: float | None
    is_closed: bool
    """Money and outcome are where they belong."""
    closing_bound_s: float
    """After which its service has closed what ended."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the ledger and the claims part, and what that means."""

    kind: Kind
    org: str
    """Whose; empty where nobody can say."""
    claim: str
    attempt: int
    service: str
    account: str
    explanation: str


def difference(
    held: Reservation | None, attempt: Attempt | None, *, open_limit_s: float
) -> Difference | None:
    """How the ledger and the claim of one attempt differ; the gravest way, or None.

    `open_limit_s`: longer than any effect lasts.
    """
    if held is None and attempt is None:
        return None
    if held is None:
        return None if attempt is None else _without_reservation(attempt)
    if attempt is None:
        return _found(Kind.CLAIM_MISSING, held, None, _claim_missing(held))
    for rule in (_owner, _RULES[held.state], _hold):
        found = rule(held, attempt, open_limit_s)
        if found is not None:
            return found
    return None


def is_resolved_late(held: Reservation | None, attempt: Attempt | None) -> bool:
    """Whether a doubt was resolved after its whole hold was posted, which stays so (DESIGN 5)."""
    return (
        held is not None
        and attempt is not None
        and held.state is HoldState.SETTLED
        and held.used is None
        and attempt.state in {AttemptState.DONE, AttemptState.CLOSED}
        and not attempt.is_in_doubt
        and attempt.cost_nanos <= held.posted_nanos
    )


# ---------------------------------------------------------------------------------------- rules


def _without_reservation(attempt: Attempt) -> Difference | None:
    if attempt.hold_nanos is None and attempt.state in {AttemptState.CLAIMED, AttemptState.REFUSED}:
        return None  # it never started, so it needed none
    text = (
        f"{attempt.place.service} says {attempt.state.value} with a hold of"
        f" {attempt.hold_nanos or 0} nano-USD, and the ledger has no such reservation"
    )
    return _found(Kind.RESERVATION_MISSING, None, attempt, text)


def _claim_missing(held: Reservation) -> str:
    what = {
        HoldState.HELD: f"{held.hold_nanos} nano-USD are held",
        HoldState.SETTLED: f"{held.posted_nanos} nano-USD are posted",
        HoldState.RELEASED: "a hold was released",
    }[held.state]
    return f"{what} for a claim that {held.service} does not know"


def _owner(held: Reservation, attempt: Attempt, _limit_s: float) -> Difference | None:
    if not held.account or org_of(held.account) == attempt.org:
        return None
    text = f"the ledger holds it on {held.account}, but its claim belongs to {attempt.org}"
    return _found(Kind.OWNER_DIFFERS, held, attempt, text)


def _held(held: Reservation, attempt: Attempt, open_limit_s: float) -> Difference | None:
    money = f"{held.hold_nanos} nano-USD are still held"
    bound = f"{attempt.closing_bound_s:.0f} s"
    if attempt.is_closed:
        text = f"its claim is closed as {attempt.state.value}, and {money}"
        return _found(Kind.HOLD_LEFT, held, attempt, text)
    if attempt.ended_s is not None and attempt.ended_s > attempt.closing_bound_s:
        text = f"it ended {attempt.ended_s:.0f} s ago, {money}, and the bound is {bound}"
        return _found(Kind.CLOSING_OVERDUE, held, attempt, text)
    if attempt.lapsed_s is not None and attempt.lapsed_s > attempt.closing_bound_s:
        text = f"its owner is gone for {attempt.lapsed_s:.0f} s, {money}, and the bound is {bound}"
        return _found(Kind.CLOSING_OVERDUE, held, attempt, text)
    if attempt.state in _OPEN and attempt.age_s > open_limit_s:
        text = f"it is {attempt.state.value} for {attempt.age_s:.0f} s, and {money}"
        return _found(Kind.OPEN_TOO_LONG, held, attempt, text)
    return None


def _settled(held: Reservation, attempt: Attempt, _limit_s: float) -> Difference | None:
    posted = f"{held.posted_nanos} nano-USD are posted"
    if attempt.state in _OPEN:
        text = f"its claim is {attempt.state.value}, but {posted}"
        return _found(Kind.SETTLED_WHILE_OPEN, held, attempt, text)
    if attempt.state is AttemptState.REFUSED:
        return _found(Kind.REFUSED_BUT_POSTED, held, attempt, f"it was refused, but {posted}")
    if attempt.is_in_doubt:
        if held.used is None and held.posted_nanos == held.hold_nanos:
            return None
        text = f"it is in doubt, but of {held.hold_nanos} nano-USD held {posted}"
        return _found(Kind.DOUBT_NOT_WHOLE, held, attempt, text)
    if is_resolved_late(held, attempt):
        return None
    return _bill(held, attempt)


def _bill(held: Reservation, attempt: Attempt) -> Difference | None:
    used, bill_nanos = attempt.used or Usage(), held.posted_nanos + held.overrun_nanos
    if held.posted_nanos != attempt.cost_nanos:
        text = (
            f"{held.posted_nanos} nano-USD are posted, but its claim was billed"
            f" {attempt.cost_nanos}"
        )
    elif held.used is None or not (held.used.covers(used) and used.covers(held.used)):
        text = (
            f"the ledger was settled with {_counts(held.used)}, but its claim used {_counts(used)}"
        )
    elif bill_nanos != (due_nanos := _due_nanos(held, used)):
        text = (
            f"posted and overrun are {bill_nanos} nano-USD, but at the pinned price its usage costs"
            f" {due_nanos}"
        )
    else:
        return None
    return _found(Kind.BILL_DIFFERS, held, attempt, text)


def _released(held: Reservation, attempt: Attempt, _limit_s: float) -> Difference | None:
    if attempt.state is AttemptState.REFUSED:
        return None
    text = f"its hold was released, but its claim is {attempt.state.value}"
    return _found(Kind.RELEASED_NOT_REFUSED, held, attempt, text)


def _hold(held: Reservation, attempt: Attempt, _limit_s: float) -> Difference | None:
    wanted = attempt.hold_nanos
    if wanted is None or wanted == held.hold_nanos:
        return None
    if held.hold_nanos > wanted and _was_extended(held):
        return None
    text = f"the ledger held {held.hold_nanos} nano-USD, but its claim started with {wanted}"
    return _found(Kind.HOLD_DIFFERS, held, attempt, text)


_RULES: Final = MappingProxyType(
    {HoldState.HELD: _held, HoldState.SETTLED: _settled, HoldState.RELEASED: _released}
)


def _was_extended(held: Reservation) -> bool:
    """Whether more than one of its transfers holds money."""
    closing = [held.posted_nanos, held.overrun_nanos]
    if held.state is not HoldState.HELD:
        closing.append(held.hold_nanos - held.posted_nanos)
    if held.used is not None:
        closing.append(held.posted_nanos + held.overrun_nanos)  # what the provider charged
    return held.transfers - sum(1 for nanos in closing if nanos) > 1


def _due_nanos(held: Reservation, used: Usage) -> int | None:
    try:
        return cost_nanos(held.price, used)
    except RemitError:
        return None  # counts that no provider can report


def _counts(used: Usage | None) -> str:
    if used is None:
        return "nothing that is known"
    return (
        f"{used.input_tokens}/{used.cached_input_tokens}/{used.output_tokens} tokens (input,"
        f" cached, output) and {used.calls} calls"
    )


def _found(kind: Kind, held: Reservation | None, attempt: Attempt | None, text: str) -> Difference:
    account = held.account if held is not None else ""
    place = attempt.place if attempt is not None else place_of(held)
    org = org_of(account) if account else attempt.org if attempt is not None else ""
    return Difference(kind, org, *place.key, place.service, account, text)


def place_of(held: Reservation | None) -> Place:
    """Where the attempt of a reservation is to be found."""
    assert held is not None  # noqa: S101 - a difference is of a reservation or of an attempt
    return Place(held.service, held.key)
