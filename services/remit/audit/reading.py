"""Reading the log: pages, their tokens, and the entry that every read leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, TypeAlias

from google.protobuf import timestamp_pb2

from remit import names
from remit.api.audit.v1 import audit_query_service_pb2, event_pb2
from remit.audit.admission import MAX_EVENT_ID_CHARS
from remit.audit.filters import EventFilter
from remit.audit.log import AuditLog
from remit.rpc.calls import current_call, current_remit
from remit.rpc.clock import Clock
from remit.rpc.contracts import contract_of
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.ids import IdSource
from remit.rpc.parties import caller_label
from remit.rpc.remits import Remit

REPORTER: Final = "audit"
"""Who reports what audit itself does."""
_MAX_INDEX_DIGITS: Final = 18
KINDS: Final = {
    value: name.removeprefix("EVENT_KIND_") if value else ""
    for name, value in event_pb2.EventKind.items()
}
OUTCOMES: Final = {
    value: name.removeprefix("OUTCOME_") if value else ""
    for name, value in event_pb2.Outcome.items()
}
"""The words of leaves; unspecified is no filter."""

Filters: TypeAlias = (
    audit_query_service_pb2.ListEventsRequest | audit_query_service_pb2.TailEventsRequest
)
"""A request that states which events are wanted."""


class ReadRecorder:
    """Appends a READ event before anything is read, so that no read goes unrecorded."""

    def __init__(self, log: AuditLog, clock: Clock, ids: IdSource) -> None:
        self._log = log
        self._clock = clock
        self._ids = ids

    async def record(self, detail: Mapping[str, object], reader: Remit | None = None) -> int:
        """Record the read that the current call is, and return the index of its event.

        `reader` is the remit of who reads where a service asks for them; else it is the call's own.

        Raises:
            RemitError: it cannot be recorded, so nothing may be read.

        """
        call, remit = current_call(), reader or current_remit()
        contract = contract_of(call.method)
        event = event_pb2.Event(
            event_id=f"read-{self._ids.uuid7()}",
            kind=event_pb2.EVENT_KIND_READ,
            org=remit.org,
            subject=remit.subject,
            action=contract.permission if contract else "",
            resource=remit.org,
            run=remit.run,
            outcome=event_pb2.OUTCOME_SUCCEEDED,
            trace_id=call.trace_id,
            detail_json=json.dumps(
                {**detail, "presenter": caller_label(call.caller)}, sort_keys=True
            ),
        )
        event.event_time.FromDatetime(self._clock.now())
        [place] = await self._log.append([event], REPORTER)
        if isinstance(place, RemitError):
            raise place
        return place


def read_filter(request: Filters, org: str, pseudonym_of: Callable[[str], bytes]) -> EventFilter:
    """Return what a request asks for, within the reader's own org.

    Raises:
        RemitError: INVALID_REQUEST with every fault.

    """
    violations = _faults(request, org)
    times: list[datetime | None] = []
    for field in ("start_time", "end_time"):
        stated: timestamp_pb2.Timestamp = getattr(request, field)
        try:
            times.append(stated.ToDatetime(tzinfo=UTC) if request.HasField(field) else None)
        except ValueError:
            violations.append(Violation(field, "is not a time between the years 1 and 9999"))
    if violations:
        raise invalid_request(violations)
    start, end = times
    return EventFilter(
        org,
        request.run,
        request.claim,
        start,
        end,
        subject_pseudonym=pseudonym_of(_subject(request, org)) if request.subject else b"",
        action=request.action,
        outcome=OUTCOMES[request.outcome],
        kind=KINDS[request.kind],
    )


def asked(request: Filters, org: str, hiding_users: Callable[[str, str], str]) -> dict[str, str]:
    """Return the filters of a request for the entry of its reading.

    The entry is encrypted under the reader's key, so another user stands in it by pseudonym.
    """
    stated = {
        "run": request.run,
        "claim": request.claim,
        "subject": hiding_users(_subject(request, org), org),
        "action": request.action,
        "outcome": OUTCOMES[request.outcome],
        "kind": KINDS[request.kind],
    }
    for field in ("start_time", "end_time"):
        if request.HasField(field):
            stated[field] = getattr(request, field).ToJsonString()
    return {name: value for name, value in stated.items() if value}


def _subject(request: Filters, org: str) -> str:
    """Return the full name of the user asked for; `users/{user}` is one of the reader's org."""
    return f"{org}/{request.subject}" if request.subject.startswith("users/") else request.subject


def _faults(request: Filters, org: str) -> list[Violation]:
    violations = [
        Violation(kind, f"is not the name of a {kind}")
        for kind, name in (("run", request.run), ("claim", request.claim))
        if name and not names.is_name(kind, name)
    ]
    subject = _subject(request, org)
    if subject and not (names.is_name("user", subject) and names.org_of(subject) == org):
        violations.append(Violation("subject", f"is not the name of a user of {org}"))
    if len(request.action) > MAX_EVENT_ID_CHARS or not request.action.isprintable():
        fault = f"must have at most {MAX_EVENT_ID_CHARS} printable characters"
        violations.append(Violation("action", fault))
    for field, known in (("outcome", OUTCOMES), ("kind", KINDS)):
        if getattr(request, field) not in known:
            violations.append(Violation(field, f"{getattr(request, field)} is not known"))
    return violations


def place_asked(request: audit_query_service_pb2.TailEventsRequest) -> dict[str, object]:
    """Return where a tail begins and ends, for the entry of its reading."""
    return {
        "after_sequence": request.after_sequence,
        "new_only": request.new_only,
        "until_now": request.until_now,
    }


def place_of(request: audit_query_service_pb2.TailEventsRequest, now: int) -> int:
    """Return the index at which a tail begins, when the log has `now` leaves.

    Raises:
        RemitError: INVALID_REQUEST: it is not a place in this log.

    """
    if not 0 <= request.after_sequence <= now:
        fault = f"is {request.after_sequence}; the log has {now} leaves"
        raise invalid_request([Violation("after_sequence", fault)])
    return now if request.new_only and not request.after_sequence else request.after_sequence


def page_token(before_index: int, wanted: EventFilter) -> str:
    """Return the token of the page that goes on below an index."""
    return f"{before_index}-{wanted.digest()}"


def check_page_token(token: str) -> None:
    """Raise INVALID_REQUEST for what is no token at all, of whichever list."""
    index = token.partition("-")[0]
    if token and not (index.isascii() and index.isdigit() and len(index) <= _MAX_INDEX_DIGITS):
        raise invalid_request([Violation("page_token", "is not a token of this RPC")])


def read_page_token(token: str, wanted: EventFilter) -> int:
    """Return the index below which a page goes on.

    Raises:
        RemitError: INVALID_REQUEST: not a token, or one of another list.

    """
    check_page_token(token)
    index, _, digest = token.partition("-")
    if digest != wanted.digest():
        raise invalid_request([Violation("page_token", "belongs to a list with other filters")])
    return int(index)
