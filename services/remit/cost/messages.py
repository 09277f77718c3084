"""Messages of the contracts to plain data and back, and the checks that need no state."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Final, Protocol

from google.protobuf import timestamp_pb2

from remit import names
from remit.api.cost.v1 import cost_service_pb2, reservation_pb2
from remit.api.usage.v1 import usage_pb2
from remit.cost.reservations import Price, Reservation, ReservationKey, Usage
from remit.pricing import require_valid
from remit.rpc.errors import RemitError, Violation, invalid_request

CURRENCY: Final = "USD"
MAX_LIST_ITEM_CHARS: Final = 200
_MAX_ATTEMPT: Final = 2**31 - 1
_LAST_SECOND: Final = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())


class NamesReservation(Protocol):
    """The fields by which every request names its reservation."""

    @property
    def claim(self) -> str:
        """Name of the claim."""
        ...

    @property
    def attempt(self) -> int:
        """Attempt of the claim."""
        ...


def key_of(request: NamesReservation) -> ReservationKey:
    """The reservation that a request names. Raises INVALID_REQUEST."""
    violations = key_violations(request)
    if violations:
        raise invalid_request(violations)
    return ReservationKey(request.claim, request.attempt)


def key_violations(request: NamesReservation) -> list[Violation]:
    """What is wrong with the name of a reservation."""
    violations = []
    if not names.is_name("claim", request.claim):
        violations.append(Violation("claim", "must be `claims/{uuid}`"))
    if not 1 <= request.attempt <= _MAX_ATTEMPT:
        violations.append(Violation("attempt", f"is {request.attempt}; attempts count from 1"))
    return violations


def require_reserve(request: cost_service_pb2.ReserveBudgetRequest) -> None:
    """Checks a reserve by itself. Raises INVALID_REQUEST with every violation."""
    violations = key_violations(request)
    if not (names.is_name("model", request.item) or names.is_name("tool", request.item)):
        violations.append(Violation("item", "must be `models/{model}` or `tools/{tool}`"))
    if len(request.list_item) > MAX_LIST_ITEM_CHARS:
        fault = f"has more than {MAX_LIST_ITEM_CHARS} characters"
        violations.append(Violation("list_item", fault))
    violations += usage_violations("bound", request.bound)
    if violations:
        raise invalid_request(violations)


def checked_usage(field: str, message: usage_pb2.Usage) -> Usage:
    """A usage as plain data. Raises INVALID_REQUEST with the field's path before each violation."""
    violations = usage_violations(field, message)
    if violations:
        raise invalid_request(violations)
    return usage_of(message)


def usage_violations(field: str, message: usage_pb2.Usage) -> list[Violation]:
    """What is wrong with a usage in `field`."""
    try:
        require_valid(message)
    except RemitError as error:
        return [Violation(f"{field}.{v.field}", v.description) for v in error.violations]
    return []


def usage_of(message: usage_pb2.Usage) -> Usage:
    """A usage as plain data."""
    return Usage(
        message.input_tokens,
        message.cached_input_tokens,
        message.output_tokens,
        message.calls,
        message.estimated,
    )


def body_digest(
    request: cost_service_pb2.ReserveBudgetRequest, service: str, account: str
) -> bytes:
    """SHA-256 of what a reserve asks for.

    The remit may be renewed between two tries: its account counts, not its text.
    """
    bound = request.bound
    parts = (
        service,
        account,
        request.item,
        request.list_item,
        bound.input_tokens,
        bound.cached_input_tokens,
        bound.output_tokens,
        bound.calls,
    )
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()


def reservation_message(reservation: Reservation) -> reservation_pb2.Reservation:
    """A reservation as its contract states it."""
    return reservation_pb2.Reservation(
        name=reservation.name,
        state=reservation_pb2.Reservation.State.ValueType(reservation.state),
        account=reservation.account,
        item=reservation.item,
        hold_nanos=reservation.hold_nanos,
        posted_nanos=reservation.posted_nanos,
        overrun_nanos=reservation.overrun_nanos,
        price=price_message(reservation.price),
        create_time=timestamp(reservation.create_time),
    )


def price_message(price: Price) -> reservation_pb2.Price:
    """A price as its contract states it."""
    return reservation_pb2.Price(
        version=price.version,
        input_nanos_per_million=price.input_nanos_per_million,
        cached_input_nanos_per_million=price.cached_input_nanos_per_million,
        output_nanos_per_million=price.output_nanos_per_million,
        call_nanos=price.call_nanos,
    )


def is_time(moment: timestamp_pb2.Timestamp) -> bool:
    """Whether it is a time between the years 1970 and 9999."""
    return 0 <= moment.seconds <= _LAST_SECOND and 0 <= moment.nanos < 1_000_000_000


def timestamp(moment: datetime) -> timestamp_pb2.Timestamp:
    """A moment as its contract states it."""
    message = timestamp_pb2.Timestamp()
    message.FromDatetime(moment)
    return message
