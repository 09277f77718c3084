"""The ledger's core: decides operations one by one, in order, against what was loaded.

Nothing here reads or writes anything but its arguments. The store loads reservations, balances and
limits under locks, lets this module decide, and writes what it says; a test does the same with
dictionaries. Each operation is decided on its own: one that is refused leaves no trace, and those
after it are decided as if it had never come.

A reservation is named by (claim, attempt) and closed at most once. Whoever releases first leaves a
tombstone, so that a reserve that comes late, by a retry or a slow network, holds nothing for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import NoReturn, TypeAlias

from remit import names
from remit.api.errors.v1 import error_reason_pb2
from remit.api.errors.v1.error_reason_pb2 import ErrorReason
from remit.cost.accounts import org_of, path_keys
from remit.cost.admission import DefaultBudget, admit, limits_of_path
from remit.cost.books import Books, Kind, Transfer, transfer_accounts
from remit.cost.org_prices import OrgItem, OrgTimeline
from remit.cost.periods import Period, day_of
from remit.cost.reservations import (
    Extend,
    HoldOperation,
    Release,
    Reservation,
    ReservationKey,
    Reserve,
    Settle,
    State,
)
from remit.cost.run_budgets import run_limits
from remit.cost.terms import Budgets
from remit.pricing import bound_nanos, cost_nanos
from remit.rpc.errors import RemitError, Violation, invalid_request

Move: TypeAlias = tuple[Kind, int]
"""What becomes of how many nano-USD."""


@dataclass(slots=True)
class LedgerState:
    """What was loaded for a batch; deciding changes it in place."""

    books: Books
    limits: dict[str, dict[Period, int]]
    reservations: MutableMapping[ReservationKey, Reservation]
    latest_times: MutableMapping[str, datetime]
    """The latest time at which each org's ledger admitted anything."""
    org_prices: Mapping[OrgItem, OrgTimeline] = field(default_factory=dict)
    """What orgs state of the items that are reserved; it goes before what a reserve says."""
    budgets: Budgets = field(default_factory=dict)
    """The terms of all budgets; `limits` has those that refuse, but for those of each run."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What settings decide."""

    default_budget: DefaultBudget
    clock_tolerance: timedelta
    """How far a replica's clock may lie behind the latest entry of an org's ledger."""


class Ledger:
    """Decides operations in order. `now` is the time of the batch."""

    def __init__(self, state: LedgerState, rules: Rules, now: datetime) -> None:
        self._state = state
        self._rules = rules
        self._now = now
        self.changed: dict[ReservationKey, Reservation] = {}
        """Reservations that were made or changed, as they are now."""

    def decide(self, operation: HoldOperation) -> Reservation | RemitError:
        """The reservation after the operation, or why it was refused."""
        try:
            return self._apply(operation)
        except RemitError as error:
            return error

    def _apply(self, operation: HoldOperation) -> Reservation:
        known = self._state.reservations.get(operation.key)
        if isinstance(operation, Reserve):
            return self._reserve(operation) if known is None else _same_hold(known, operation)
        if isinstance(operation, Release) and known is None:
            return self._bury(operation)
        if known is None:
            raise _unknown(operation.key)
        if known.service != operation.service:
            raise _foreign(known)
        if isinstance(operation, Extend):
            return self._extend(known, operation)
        if isinstance(operation, Settle):
            return self._settle(known, operation)
        return self._release(known)

    # --------------------------------------------------------------------------------- opening

    def _reserve(self, wanted: Reserve) -> Reservation:
        org = org_of(wanted.account)
        begin_time = self._begin_time(org)
        own = self._state.org_prices.get((org, wanted.item))
        price = (own.at(begin_time) if own else None) or wanted.price.at(begin_time)
        hold_nanos = bound_nanos(price, wanted.bound)
        moves = _moves((Kind.HOLD, hold_nanos))
        hold = Reservation(
            key=wanted.key,
            state=State.HELD,
            service=wanted.service,
            day=day_of(begin_time),
            create_time=begin_time,
            account=wanted.account,
            item=wanted.item,
            price=price,
            bound=wanted.bound,
            hold_nanos=hold_nanos,
            own_limit_nanos=wanted.own_limit_nanos,
            outer_limits_nanos=wanted.outer_limits_nanos,
            body_digest=wanted.body_digest,
            transfers=len(moves),
        )
        self._admit(hold, hold_nanos)
        self._state.latest_times[org] = begin_time
        return self._write(hold, moves)

    def _extend(self, hold: Reservation, wanted: Extend) -> Reservation:
        if hold.state is not State.HELD:
            _refuse_closed(hold, "extended")
        new_hold_nanos = bound_nanos(hold.price, wanted.bound)
        if not wanted.bound.covers(hold.bound):
            description = f"is less than what {hold.name} holds already"
            raise invalid_request([Violation("bound", description)])
        more_nanos = new_hold_nanos - hold.hold_nanos
        self._admit(hold, more_nanos)
        moves = _moves((Kind.HOLD, more_nanos))
        larger = replace(
            hold,
            bound=wanted.bound,
            hold_nanos=new_hold_nanos,
            transfers=hold.transfers + len(moves),
        )
        return self._write(larger, moves)

    def _begin_time(self, org: str) -> datetime:
        latest = self._state.latest_times.get(org)
        begin = begin_time(self._now, latest)
        if begin - self._now > self._rules.clock_tolerance:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_INVALID_STATE,
                f"the clock of this replica is {(begin - self._now).total_seconds():.0f} s behind"
                f" the latest entry of {org}'s ledger; correct the clock",
            )
        return begin

    def _admit(self, hold: Reservation, amount_nanos: int) -> None:
        """Raises BUDGET_EXHAUSTED unless so much more fits; what costs nothing always fits."""
        if amount_nanos == 0:
            return
        limits = tuple(
            limits_of_path(
                hold.account,
                hold.day,
                self._state.limits,
                self._rules.default_budget,
                hold.own_limit_nanos,
                hold.outer_limits_nanos,
            )
        ) + tuple(run_limits(hold.account, hold.day, self._state.budgets))
        books = self._state.books
        books.require_room(org_of(hold.account), hold.day, amount_nanos)
        admit(books, limits, amount_nanos, self._now)
        books.note_admission(path_keys(hold.account, hold.day), limits)

    # --------------------------------------------------------------------------------- closing

    def _settle(self, hold: Reservation, wanted: Settle) -> Reservation:
        if hold.state is State.SETTLED and hold.used == wanted.used:
            return hold
        if hold.state is State.SETTLED:
            raise _reused(hold, "settled with another usage")
        if hold.state is State.RELEASED:
            _refuse_closed(hold, "settled")
        bill_nanos = hold.hold_nanos
        if wanted.used is not None:
            bill_nanos = cost_nanos(hold.price, wanted.used)
        posted_nanos = min(bill_nanos, hold.hold_nanos)
        overrun_nanos = bill_nanos - posted_nanos
        self._state.books.require_room(org_of(hold.account), hold.day, overrun_nanos)
        moves = _moves(
            (Kind.POST, posted_nanos),
            (Kind.VOID, hold.hold_nanos - posted_nanos),
            (Kind.OVERRUN, overrun_nanos),
            # What a provider charges for an effect in doubt nobody knows.
            (Kind.COST, 0 if wanted.used is None else bill_nanos),
        )
        settled = replace(
            hold,
            state=State.SETTLED,
            used=wanted.used,
            posted_nanos=posted_nanos,
            overrun_nanos=overrun_nanos,
            close_time=max(self._now, hold.create_time),
            transfers=hold.transfers + len(moves),
        )
        return self._write(settled, moves)

    def _release(self, hold: Reservation) -> Reservation:
        if hold.state is State.RELEASED:
            return hold
        if hold.state is State.SETTLED:
            _refuse_closed(hold, "released")
        moves = _moves((Kind.VOID, hold.hold_nanos))
        released = replace(
            hold,
            state=State.RELEASED,
            close_time=max(self._now, hold.create_time),
            transfers=hold.transfers + len(moves),
        )
        return self._write(released, moves)

    def _bury(self, wanted: Release) -> Reservation:
        tombstone = Reservation(
            key=wanted.key,
            state=State.RELEASED,
            service=wanted.service,
            day=day_of(self._now),
            create_time=self._now,
            close_time=self._now,
        )
        return self._write(tombstone, ())

    def _write(self, reservation: Reservation, moves: Sequence[Move]) -> Reservation:
        """Posts the moves of a decision and keeps the reservation. Nothing here may refuse.

        The reservation counts the moves among its transfers already: to copy it once more for that
        would take as long as most of the decision.
        """
        self._state.books.post(_transfers(reservation, moves, self._now))
        self._state.reservations[reservation.key] = reservation
        self.changed[reservation.key] = reservation
        return reservation


def _moves(*moves: Move) -> list[Move]:
    """Those of them that move anything."""
    return [move for move in moves if move[1]]


def begin_time(now: datetime, latest: datetime | None) -> datetime:
    """Time of a new hold: never before the latest one, or a past period would open again."""
    return now if latest is None else max(now, latest)


def _transfers(
    reservation: Reservation, moves: Sequence[Move], post_time: datetime
) -> list[Transfer]:
    """The transfers of the moves, which are the reservation's last."""
    made = []
    first = reservation.transfers - len(moves) + 1
    for sequence, (kind, amount_nanos) in enumerate(moves, start=first):
        debit, credit = transfer_accounts(kind, reservation.account)
        made.append(
            Transfer(
                claim=reservation.key.claim,
                attempt=reservation.key.attempt,
                sequence=sequence,
                kind=kind,
                debit_account=debit,
                credit_account=credit,
                amount_nanos=amount_nanos,
                day=reservation.day,
                post_time=post_time,
            )
        )
    return made


def _same_hold(known: Reservation, wanted: Reserve) -> Reservation:
    """The answer to a reserve whose key is known."""
    is_tombstone = not known.account
    if not is_tombstone and known.body_digest != wanted.body_digest:
        raise _reused(known, "reserved with another request")
    if known.state is not State.HELD:
        _refuse_closed(known, "reserved again")
    return known


def _refuse_closed(known: Reservation, verb: str) -> NoReturn:
    raise RemitError(
        error_reason_pb2.ERROR_REASON_RESERVATION_CLOSED,
        f"{known.name} was {known.state.name.lower()}; it cannot be {verb}",
    )


def _reused(known: Reservation, how: str) -> RemitError:
    return _error(error_reason_pb2.ERROR_REASON_KEY_REUSED, f"{known.name} was {how} before")


def _unknown(key: ReservationKey) -> RemitError:
    return _error(
        error_reason_pb2.ERROR_REASON_RESOURCE_NOT_FOUND,
        f"{names.reservation_name(*key)} does not exist",
    )


def _foreign(known: Reservation) -> RemitError:
    return _error(
        error_reason_pb2.ERROR_REASON_PERMISSION_DENIED,
        f"{known.name} belongs to the service `{known.service}`; no other may change it",
    )


def _error(reason: ErrorReason.ValueType, message: str) -> RemitError:
    return RemitError(reason, message)
