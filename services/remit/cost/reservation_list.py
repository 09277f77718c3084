"""`ListReservations`: what the ledger holds and posted, key by key, for whoever compares it.

The agent service asks for those of a run that it explains, audit for the whole ledger, to compare
it with its log. Reading changes nothing.
"""

from __future__ import annotations

from typing import Final

from remit import names
from remit.api.cost.v1 import cost_report_service_pb2
from remit.api.effects.v1 import attempt_pb2
from remit.api.usage.v1 import usage_pb2
from remit.cost import rows
from remit.cost.messages import key_violations, reservation_message, timestamp
from remit.cost.reservations import Reservation, Usage
from remit.postgres import Database
from remit.rpc.errors import Violation, invalid_request

DEFAULT_PAGE_SIZE: Final = 256
MAX_PAGE_SIZE: Final = 1000
_BEFORE_ALL: Final = ("", 0)
_AFTER_ALL: Final = ("claims/~", 2**31 - 1)

_SELECT: Final = """
    SELECT r.*, p.input_nanos_per_million, p.cached_input_nanos_per_million,
        p.output_nanos_per_million, p.call_nanos
    FROM (
        SELECT * FROM reservations
        WHERE (claim, attempt) > ($1, $2::integer) AND (claim, attempt) <= ($3, $4::integer){}
        ORDER BY claim, attempt LIMIT $5
    ) r LEFT JOIN prices p ON p.version = r.price_version ORDER BY r.claim, r.attempt
"""
_SELECT_ALL: Final = _SELECT.format("")
_SELECT_OF_RUN: Final = _SELECT.format(" AND run = $6 AND org = $7")
_NOW: Final = "SELECT clock_timestamp()"

Request = cost_report_service_pb2.ListReservationsRequest
Response = cost_report_service_pb2.ListReservationsResponse
Record = cost_report_service_pb2.ReservationRecord


async def list_reservations(database: Database, request: Request) -> Response:
    """The next reservations of a span. Raises INVALID_REQUEST with every fault."""
    _check(request)
    size = min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    after = _place(request.after) or _BEFORE_ALL
    through = _place(request.through) or _AFTER_ALL
    read_time = await database.fetchval(_NOW)
    if request.run:
        found = await database.fetch(
            _SELECT_OF_RUN, *after, *through, size + 1, request.run, request.org
        )
    else:
        found = await database.fetch(_SELECT_ALL, *after, *through, size + 1)
    reservations = [rows.reservation_of(dict(record)) for record in found[:size]]
    return Response(
        records=[_record(each) for each in reservations],
        has_more=len(found) > size,
        read_time=timestamp(read_time),
    )


def _check(request: Request) -> None:
    violations = []
    for field, key in (("after", request.after), ("through", request.through)):
        if key.claim:
            violations += [
                Violation(f"{field}.{fault.field}", fault.description)
                for fault in key_violations(key)
            ]
    if request.run and not names.is_name("run", request.run):
        violations.append(Violation("run", "must be `runs/{uuid}`"))
    if request.run and not names.is_name("org", request.org):
        violations.append(Violation("org", "must be that of the run, `orgs/{org}`"))
    if request.org and not request.run:
        violations.append(Violation("org", "is of a run, and none is named"))
    if request.page_size < 0:
        violations.append(Violation("page_size", "must not be negative"))
    if violations:
        raise invalid_request(violations)


def _place(key: attempt_pb2.AttemptKey) -> tuple[str, int] | None:
    return (key.claim, key.attempt) if key.claim else None


def _record(reservation: Reservation) -> Record:
    return Record(
        key=attempt_pb2.AttemptKey(claim=reservation.key.claim, attempt=reservation.key.attempt),
        service=reservation.service,
        reservation=reservation_message(reservation),
        price_source=reservation.price.source,
        used=_usage(reservation.used) if reservation.used is not None else None,
        close_time=timestamp(reservation.close_time) if reservation.close_time else None,
    )


def _usage(used: Usage) -> usage_pb2.Usage:
    return usage_pb2.Usage(
        input_tokens=used.input_tokens,
        cached_input_tokens=used.cached_input_tokens,
        output_tokens=used.output_tokens,
        calls=used.calls,
        estimated=used.estimated,
    )
