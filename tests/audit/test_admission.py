"""Every fault that keeps an event out of the log, and who may report what."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from google.protobuf import timestamp_pb2
from hypothesis import given
from hypothesis import strategies as st

from remit.api.audit.v1 import audit_service_pb2, event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.audit.admission import Limits, check_count, check_entry, check_event, check_remit
from remit.rpc.errors import RemitError
from remit.rpc.remits import Remit
from tests.audit.events import ALICE, BOB, NOW, ORG, RUN, make_event, outcome_of

LIMITS = Limits(max_entries=256, max_detail_bytes=16_384, max_text_chars=512, max_future_s=300)
TOOLS, AGENT = options_pb2.CALLER_TOOLS, options_pb2.CALLER_AGENT


def late(seconds: float) -> timestamp_pb2.Timestamp:
    time = timestamp_pb2.Timestamp()
    time.FromDatetime(NOW + timedelta(seconds=seconds))
    return time


@pytest.mark.parametrize(
    "event",
    [
        make_event(),
        outcome_of(make_event()),
        make_event(run="", trace_id="", resource="", detail_json="", attempt=0),
        make_event(kind=event_pb2.EVENT_KIND_READ, claim="", run=""),
        make_event(kind=event_pb2.EVENT_KIND_ADMIN, claim="", outcome=event_pb2.OUTCOME_FAILED),
        make_event(event_time=late(299)),
        make_event(event_id="x" * 128),
        make_event(detail_json='"' + "x" * 16_382 + '"'),
    ],
)
def test_what_is_taken(event: event_pb2.Event) -> None:
    assert check_event(event, NOW, LIMITS) == []


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("event_id", {"event_id": ""}),
        ("event_id", {"event_id": "x" * 129}),
        ("event_id", {"event_id": "a\x00b"}),
        ("action", {"action": ""}),
        ("action", {"action": "a\nb"}),
        ("resource", {"resource": "x" * 513}),
        ("resource", {"resource": "a\u202eb"}),
        ("trace_id", {"trace_id": "0AF7651916CD43DD8448EB211C80319C"}),
        ("trace_id", {"trace_id": "0af7"}),
        ("kind", {"kind": 0}),
        ("kind", {"kind": 99}),
        ("outcome", {"outcome": 99}),
        ("outcome", {"outcome": event_pb2.OUTCOME_SUCCEEDED}),
        ("outcome", {"kind": event_pb2.EVENT_KIND_OUTCOME}),
        ("attempt", {"attempt": -1}),
        ("org", {"org": ""}),
        ("org", {"org": "acme"}),
        ("subject", {"subject": ""}),
        ("subject", {"subject": "alice"}),
        ("subject", {"subject": "orgs/other/users/alice"}),
        ("run", {"run": "runs/1"}),
        ("claim", {"claim": ""}),
        ("claim", {"claim": "claims/1"}),
        ("event_time", {"event_time": None}),
        ("event_time", {"event_time": late(302)}),
        ("event_time", {"event_time": timestamp_pb2.Timestamp(seconds=-1)}),
        ("event_time", {"event_time": timestamp_pb2.Timestamp(seconds=1, nanos=-1)}),
        ("event_time", {"event_time": timestamp_pb2.Timestamp(seconds=2**62)}),
        ("detail_json", {"detail_json": "x" * 16_385}),
        ("detail_json", {"detail_json": "é" * 8_192}),
        ("detail_json", {"detail_json": "{"}),
        ("detail_json", {"detail_json": "[" * 16_000}),
    ],
)
def test_what_is_refused(field: str, changes: dict[str, Any]) -> None:
    violations = check_event(make_event(**changes), NOW, LIMITS)
    assert f"event.{field}" in {violation.field for violation in violations}


def test_every_fault_is_listed_at_once() -> None:
    violations = check_event(event_pb2.Event(), NOW, LIMITS)
    named = {violation.field.removeprefix("event.") for violation in violations}
    assert named >= {"event_id", "event_time", "kind", "org", "subject", "action"}


@given(st.binary(max_size=200))
def test_no_message_breaks_the_check(data: bytes) -> None:
    event = event_pb2.Event()
    try:
        event.ParseFromString(data)
    except Exception:  # noqa: BLE001 - not a message at all
        return
    check_event(event, NOW, LIMITS)


@pytest.mark.parametrize("count", [0, 257])
def test_too_few_and_too_many_entries(count: int) -> None:
    with pytest.raises(RemitError, match="entries") as raised:
        check_count(count, LIMITS)
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_INVALID_REQUEST
    check_count(256, LIMITS)


def entry(event: event_pb2.Event, remit: str = "") -> audit_service_pb2.Entry:
    return audit_service_pb2.Entry(event=event, remit=remit)


ADMIN = make_event(kind=event_pb2.EVENT_KIND_ADMIN, claim="")
ALERT = make_event(kind=event_pb2.EVENT_KIND_ALERT, claim="")


@pytest.mark.parametrize(
    ("caller", "subject"),
    [
        (TOOLS, entry(make_event(), "token")),
        (options_pb2.CALLER_INFERENCE, entry(make_event(), "token")),
        (AGENT, entry(outcome_of(make_event()))),
        (options_pb2.CALLER_POLICY, entry(ADMIN)),
        (options_pb2.CALLER_COST, entry(ALERT)),
    ],
)
def test_who_may_report(
    caller: options_pb2.Caller.ValueType, subject: audit_service_pb2.Entry
) -> None:
    check_entry(subject, caller, NOW, LIMITS)


@pytest.mark.parametrize(
    ("caller", "subject", "reason"),
    [
        (AGENT, entry(make_event(), "token"), "CALLER_NOT_ALLOWED"),
        (options_pb2.CALLER_POLICY, entry(make_event(), "token"), "CALLER_NOT_ALLOWED"),
        (options_pb2.CALLER_COST, entry(outcome_of(make_event())), "CALLER_NOT_ALLOWED"),
        (options_pb2.CALLER_PUBLIC, entry(ADMIN), "CALLER_NOT_ALLOWED"),
        (options_pb2.CALLER_POLICY, entry(ALERT), "CALLER_NOT_ALLOWED"),
        (TOOLS, entry(make_event()), "INVALID_REQUEST"),
        (TOOLS, entry(outcome_of(make_event()), "token"), "INVALID_REQUEST"),
    ],
)
def test_who_may_not(
    caller: options_pb2.Caller.ValueType, subject: audit_service_pb2.Entry, reason: str
) -> None:
    with pytest.raises(RemitError) as raised:
        check_entry(subject, caller, NOW, LIMITS)
    assert raised.value.reason_name == reason


def make_remit(**changes: Any) -> Remit:
    fields: dict[str, Any] = {
        "remit_id": "r-1",
        "subject": ALICE,
        "team": "",
        "agent": "agents/assistant",
        "run": RUN,
        "presenter": AGENT,
        "audience": frozenset({TOOLS, options_pb2.CALLER_AUDIT}),
        "tools": frozenset(),
        "models": frozenset(),
        "account": "",
        "max_cost_nanos": None,
        "fencing_token": 1,
        "policy_epoch": 1,
        "roles": frozenset(),
        "key_id": "k",
        "issue_time": NOW,
        "expire_time": NOW,
    }
    return Remit(**(fields | changes))


def test_an_intent_within_its_remit() -> None:
    check_remit(make_event(), make_remit(), TOOLS)


@pytest.mark.parametrize(
    ("event", "remit", "caller", "fault"),
    [
        (make_event(), make_remit(subject=BOB), TOOLS, "subject"),
        (make_event(run=""), make_remit(), TOOLS, "run"),
        (make_event(), make_remit(run=""), TOOLS, "run"),
        (make_event(org="orgs/other"), make_remit(), TOOLS, "org"),
        (make_event(), make_remit(), options_pb2.CALLER_INFERENCE, "not meant for inference"),
    ],
)
def test_an_intent_beyond_its_remit(
    event: event_pb2.Event, remit: Remit, caller: options_pb2.Caller.ValueType, fault: str
) -> None:
    with pytest.raises(RemitError, match=fault) as raised:
        check_remit(event, remit, caller)
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_REMIT_INVALID
    assert ORG
