"""Reading the log: pages, their tokens, and the entry that every read leaves behind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from google.protobuf import timestamp_pb2

from remit import names
from remit.api.audit.v1 import audit_query_service_pb2, event_pb2
from remit.audit.log import AuditLog
from remit.audit.store import EventFilter
from remit.rpc.calls import current_call, current_remit
from remit.rpc.clock import Clock
from remit.rpc.contracts import contract_of
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.ids import IdSource
from remit.rpc.parties import caller_label
from remit.rpc.remits import Remit

REPORTER: Final = "audit"
"""Who reports what audit itself does."""
_DIGEST_HEX: Final = 16
_MAX_INDEX_DIGITS: Final = 18


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


def read_filter(request: audit_query_service_pb2.ListEventsRequest, org: str) -> EventFilter:
    """Return what a request asks for, within the reader's own org.

    Raises:
        RemitError: INVALID_REQUEST with every fault.

    """
    violations = [
        Violation(kind, f"is not the name of a {kind}")
        for kind, name in (("run", request.run), ("claim", request.claim))
        if name and not names.is_name(kind, name)
    ]
    if request.page_size < 0:
        violations.append(Violation("page_size", "must not be negative"))
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
    return EventFilter(org, request.run, request.claim, start, end)


def page_token(before_index: int, wanted: EventFilter) -> str:
    """Return the token of the page that goes on below an index."""
    return f"{before_index}-{_digest(wanted)}"


def read_page_token(token: str, wanted: EventFilter) -> int:
    """Return the index below which a page goes on.

    Raises:
        RemitError: INVALID_REQUEST: not a token, or one of another list.

    """
    index, _, digest = token.partition("-")
    if not index.isascii() or not index.isdigit() or len(index) > _MAX_INDEX_DIGITS:
        raise invalid_request([Violation("page_token", "is not a token of this RPC")])
    if digest != _digest(wanted):
        raise invalid_request([Violation("page_token", "belongs to a list with other filters")])
    return int(index)


def _digest(wanted: EventFilter) -> str:
    stated = [wanted.org, wanted.run, wanted.claim, str(wanted.start_time), str(wanted.end_time)]
    return hashlib.sha256("\x00".join(stated).encode()).hexdigest()[:_DIGEST_HEX]
