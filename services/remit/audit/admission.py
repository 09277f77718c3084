"""Which events the log takes, from whom, and under which remit: plain data in, faults out.

Each entry of a request is judged on its own. What is judged here is form and authority; whether the
event is true, its reporter answers for, and the leaf names the reporter.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from remit import names
from remit.api.audit.v1 import audit_service_pb2, event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.api.options.v1.options_pb2 import Caller
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.parties import caller_label
from remit.rpc.remits import Remit

MAX_EVENT_ID_CHARS: Final = 128
_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}")
_MAX_NANOS: Final = 999_999_999
_FIRST_SECOND: Final = int(datetime(1970, 1, 1, tzinfo=UTC).timestamp())
_LAST_SECOND: Final = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())

_ENFORCEMENT: Final = frozenset({options_pb2.CALLER_INFERENCE, options_pb2.CALLER_TOOLS})
_MESH: Final = frozenset(
    {
        options_pb2.CALLER_AGENT,
        options_pb2.CALLER_INFERENCE,
        options_pb2.CALLER_TOOLS,
        options_pb2.CALLER_POLICY,
        options_pb2.CALLER_COST,
        options_pb2.CALLER_AUDIT,
    }
)
_REPORTERS: Final = {
    event_pb2.EVENT_KIND_INTENT: _ENFORCEMENT,
    event_pb2.EVENT_KIND_OUTCOME: _ENFORCEMENT | {options_pb2.CALLER_AGENT},
    event_pb2.EVENT_KIND_ADMIN: _MESH,
    event_pb2.EVENT_KIND_READ: _MESH,
    event_pb2.EVENT_KIND_ALERT: frozenset({options_pb2.CALLER_COST}),
    event_pb2.EVENT_KIND_ACCESS: frozenset({options_pb2.CALLER_POLICY}),
}
"""Which services may report which kind of event."""

_OF_EFFECTS: Final = frozenset({event_pb2.EVENT_KIND_INTENT, event_pb2.EVENT_KIND_OUTCOME})


@dataclass(frozen=True)
class Limits:
    """The bounds of a request and of an event."""

    max_entries: int
    max_detail_bytes: int
    max_text_chars: int
    max_future_s: float


def check_count(count: int, limits: Limits) -> None:
    """Check the number of entries of a request.

    Raises:
        RemitError: INVALID_REQUEST for none or too many.

    """
    if not 1 <= count <= limits.max_entries:
        fault = f"has {count} entries; 1 to {limits.max_entries} are accepted"
        raise invalid_request([Violation("entries", fault)])


def check_entry(
    entry: audit_service_pb2.Entry, caller: Caller.ValueType, now: datetime, limits: Limits
) -> None:
    """Check an entry by itself: form, bounds, and whether its reporter may report it.

    Raises:
        RemitError: INVALID_REQUEST with every fault, or CALLER_NOT_ALLOWED.

    """
    violations = check_event(entry.event, now, limits)
    if bool(entry.remit) != (entry.event.kind == event_pb2.EVENT_KIND_INTENT):
        violations.append(Violation("remit", "accompanies an INTENT, and nothing else"))
    if violations:
        raise invalid_request(violations)
    if caller not in _REPORTERS[entry.event.kind]:
        kind = event_pb2.EventKind.Name(entry.event.kind).removeprefix("EVENT_KIND_")
        raise RemitError(
            error_reason_pb2.ERROR_REASON_CALLER_NOT_ALLOWED,
            f"the service `{caller_label(caller)}` may not report an event of kind {kind}",
        )


def check_remit(event: event_pb2.Event, remit: Remit, caller: Caller.ValueType) -> None:
    """Check that an intent is covered by the remit under which its effect would start.

    Raises:
        RemitError: REMIT_INVALID: it is not for the caller, or of another subject, org or run.

    """
    if caller not in remit.audience:
        raise _uncovered(f"the remit is not meant for {caller_label(caller)}")
    for field, stated, allowed in (
        ("subject", event.subject, remit.subject),
        ("org", event.org, remit.org),
        ("run", event.run, remit.run),
    ):
        if stated != allowed:
            raise _uncovered(f"the intent's {field} is not the {field} of its remit")


def check_event(event: event_pb2.Event, now: datetime, limits: Limits) -> list[Violation]:
    """Return every fault of an event, with paths inside the entry."""
    faults = [
        *_text_faults(event, limits),
        *_kind_faults(event),
        *_name_faults(event),
        *_time_faults(event, now, limits),
        *_detail_faults(event, limits),
    ]
    return [Violation(f"event.{field}", fault) for field, fault in faults]


Fault = tuple[str, str]


def _text_faults(event: event_pb2.Event, limits: Limits) -> list[Fault]:
    faults = []
    bounds = (
        ("event_id", event.event_id, 1, MAX_EVENT_ID_CHARS),
        ("action", event.action, 1, MAX_EVENT_ID_CHARS),
        ("resource", event.resource, 0, limits.max_text_chars),
    )
    for field, value, least, most in bounds:
        if not least <= len(value) <= most:
            faults.append((field, f"has {len(value)} characters; {least} to {most} are accepted"))
        if not value.isprintable():
            faults.append((field, "holds a character that cannot be printed"))
    if event.trace_id and not _TRACE_ID.fullmatch(event.trace_id):
        faults.append(("trace_id", "does not have 32 hex digits in lower case"))
    return faults


def _kind_faults(event: event_pb2.Event) -> list[Fault]:
    faults = []
    if event.kind not in _REPORTERS:
        faults.append(("kind", f"{event.kind} is not a kind of event"))
    if event.outcome not in event_pb2.Outcome.values():
        faults.append(("outcome", f"{event.outcome} is not an outcome"))
    ended = event.outcome != event_pb2.OUTCOME_UNSPECIFIED
    if event.kind == event_pb2.EVENT_KIND_INTENT and ended:
        faults.append(("outcome", "an intent has not ended"))
    if event.kind == event_pb2.EVENT_KIND_OUTCOME and not ended:
        faults.append(("outcome", "must say how the effect ended"))
    if event.attempt < 0:
        faults.append(("attempt", "must not be negative"))
    return faults


def _name_faults(event: event_pb2.Event) -> list[Fault]:
    faults = []
    for field, kind, value, needed in (
        ("org", "org", event.org, True),
        ("subject", "user", event.subject, True),
        ("run", "run", event.run, False),
        ("claim", "claim", event.claim, event.kind in _OF_EFFECTS),
    ):
        if (value or needed) and not names.is_name(kind, value):
            faults.append((field, f"is not the name of a {kind}"))
    if not faults and names.org_of(event.subject) != event.org:
        faults.append(("subject", "is not a user of the event's org"))
    return faults


def _time_faults(event: event_pb2.Event, now: datetime, limits: Limits) -> list[Fault]:
    time = event.event_time
    if not event.HasField("event_time"):
        return [("event_time", "must be set")]
    if not _FIRST_SECOND <= time.seconds < _LAST_SECOND or not 0 <= time.nanos <= _MAX_NANOS:
        return [("event_time", "is not a time between 1970 and 9999")]
    ahead_s = time.seconds - now.timestamp()
    if ahead_s > limits.max_future_s:
        limit = f"{limits.max_future_s:.0f} s are accepted"
        return [("event_time", f"is {ahead_s:.0f} s in the future; {limit}")]
    return []


def _detail_faults(event: event_pb2.Event, limits: Limits) -> list[Fault]:
    size = len(event.detail_json.encode())
    if size > limits.max_detail_bytes:
        return [("detail_json", f"has {size} bytes; the limit is {limits.max_detail_bytes}")]
    if not event.detail_json:
        return []
    try:
        json.loads(event.detail_json)
    except (ValueError, RecursionError):
        return [("detail_json", "is not JSON")]
    return []


def _uncovered(message: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_REMIT_INVALID, message)
