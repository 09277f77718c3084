"""Requests for runs: every violation at once, nothing suspicious, no limit above the agent's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf import duration_pb2, timestamp_pb2
from hypothesis import given
from hypothesis import strategies as st

from remit.agent.definitions import load_catalog
from remit.agent.validation import (
    SHIPPED_GUARDRAILS,
    check_create,
    check_name,
    check_request_id,
    resolve_limits,
)
from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.guardrails import Rules
from remit.guardrails.metrics import FINDINGS
from remit.rpc.errors import RemitError
from tests.agent.conftest import request

ASSISTANT = load_catalog(None).get("agents/assistant")
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def checked(asked: agent_service_pb2.CreateRunRequest) -> None:
    """Checks a request that comes now."""
    check_create(asked, NOW)


def violations(error: RemitError) -> set[str]:
    return {violation.field for violation in error.violations}


def test_a_plain_request_passes() -> None:
    checked(request("What is 17 * 23?", context={"unit": "apples", "note": "a < b, on time"}))


@pytest.mark.parametrize("request_id", ["", "x" * 65, "x\0", "x\n"])
def test_an_id_that_cannot_be_a_key_is_refused(request_id: str) -> None:
    with pytest.raises(RemitError) as caught:
        check_request_id(request_id)
    assert violations(caught.value) == {"request_id"}


def test_every_violation_is_reported_at_once() -> None:
    wrong = request(
        " ",
        agent="assistant",
        request_id="",
        context={"": "x", "long": "y" * 10_001, "bad": "<script>"},
        limits=run_pb2.RunLimits(max_steps=0, max_cost_nanos=-1),
    )
    with pytest.raises(RemitError) as caught:
        checked(wrong)
    assert caught.value.reason == reasons.ERROR_REASON_INVALID_REQUEST
    assert violations(caught.value) == {
        "agent",
        "request_id",
        "task",
        "context[]",
        "context[long]",
        "context[bad]",
        "limits.max_steps",
        "limits.max_cost_nanos",
    }


def test_of_too_many_entries_only_the_number_is_told() -> None:
    wrong = request("ok", context={f"{n:05d}": "<script" for n in range(9_000)})
    with pytest.raises(RemitError) as caught:
        checked(wrong)
    assert [v.field for v in caught.value.violations] == ["context"]


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "< SCRIPT src=x>",
        "</script >",
        "click javascript:alert(1)",
        "click JaVaScRiPt:alert(1)",
        "click java\tscript:alert(1)",
        "<img src=x onerror=alert(1)>",
        "<svg/onload = alert(1)>",
        "<a href='x'onclick=go()>",
        "&lt;scr\u200bipt&gt;",
        "\uff1cSCRIPT\uff1e",
        "&#106;avascript&colon;alert(1)",
    ],
)
def test_markup_that_a_browser_would_run_is_refused(text: str) -> None:
    for wrong, field in (
        (request(text), "task"),
        (request("ok", context={"key": text}), "context[key]"),
    ):
        with pytest.raises(RemitError) as caught:
            checked(wrong)
        assert caught.value.reason == reasons.ERROR_REASON_SUSPICIOUS_INPUT
        assert violations(caught.value) == {field}


def test_what_is_to_be_replaced_is_replaced_in_task_context_and_names() -> None:
    rules = Rules.of("personal_data.input=redact", SHIPPED_GUARDRAILS)
    asked = request("write to alice@example.com", context={"bob@example.com": "+49 30 1234567"})
    screened = check_create(asked, NOW, rules=rules)
    assert screened.task == "write to [email]"
    assert dict(screened.context) == {"[email]": "[phone]"}
    asked.task, asked.request_id = screened.task, screened.request_id
    assert (screened.agent, screened.limits) == (asked.agent, asked.limits)


def test_every_refusal_of_every_detector_is_told_at_once() -> None:
    rules = Rules.of("personal_data.input=refuse, secrets.input=refuse", SHIPPED_GUARDRAILS)
    with pytest.raises(RemitError) as caught:
        check_create(
            request("<script>", context={"a": "AKIAIOSFODNN7EXAMPLE", "bob@example.com": ""}),
            NOW,
            rules=rules,
        )
    assert caught.value.reason == reasons.ERROR_REASON_SUSPICIOUS_INPUT
    assert {(v.field, v.description) for v in caught.value.violations} == {
        ("task", "contains a script tag"),
        ("context[a]", "contains an AWS access key id"),
        ("context", "contains an e-mail address"),
    }
    told = str(caught.value.to_status())
    assert "AKIA" not in told
    assert "bob@" not in told


def test_what_is_found_is_counted_once() -> None:
    series = FINDINGS.labels("secrets", "input", "flag")
    before = series._value.get()
    asked = request("AKIAIOSFODNN7EXAMPLE")
    check_create(asked, NOW)
    assert series._value.get() == before + 1
    asked.task += "<script>"
    with pytest.raises(RemitError):
        check_create(asked, NOW)
    assert series._value.get() == before + 2


@pytest.mark.parametrize(
    "text",
    [
        "Is 3 < 4 and one = two?",
        "describe the word script",
        "if a < b then on = 1",
        "JavaScript is a language",
        "<p>on the one hand</p>",
    ],
)
def test_ordinary_text_passes(text: str) -> None:
    checked(request(text))


def test_the_bounds_of_the_task_are_exact() -> None:
    checked(request("x" * 10_000))
    with pytest.raises(RemitError, match="10001 characters"):
        checked(request("x" * 10_001))


def test_too_many_facts_are_refused() -> None:
    checked(request(context={str(i): "" for i in range(50)}))
    with pytest.raises(RemitError, match="51 entries"):
        checked(request(context={str(i): "" for i in range(51)}))


@given(st.text(max_size=2_000))
def test_checking_ends_and_refuses_only_by_contract(text: str) -> None:
    asked = request(text, context={text[:100]: text})
    refused = None
    try:
        checked(asked)
    except RemitError as error:
        refused = error
    assert refused is None or refused.violations


def test_limits_default_to_the_agents_own() -> None:
    assert resolve_limits(run_pb2.RunLimits(), ASSISTANT) == ASSISTANT.limits()


def test_a_lower_limit_is_taken_and_zero_money_is_a_limit() -> None:
    half_s = duration_pb2.Duration(nanos=500_000_000)
    asked = run_pb2.RunLimits(max_steps=2, max_cost_nanos=0)
    limits = resolve_limits(asked, ASSISTANT)
    assert limits.max_steps == 2
    assert limits.max_cost_nanos == 0
    assert limits.max_duration == ASSISTANT.limits().max_duration
    limits = resolve_limits(run_pb2.RunLimits(max_duration=half_s), ASSISTANT)
    assert limits.max_duration == half_s


def test_a_limit_above_the_agents_own_is_refused() -> None:
    asked = run_pb2.RunLimits(
        max_steps=9, max_duration=duration_pb2.Duration(seconds=301), max_cost_nanos=10**12
    )
    with pytest.raises(RemitError) as caught:
        resolve_limits(asked, ASSISTANT)
    assert violations(caught.value) == {
        "limits.max_steps",
        "limits.max_duration",
        "limits.max_cost_nanos",
    }


@pytest.mark.parametrize("name", ["", "runs/", "runs/1", "runs/../x", "agents/assistant"])
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(RemitError) as caught:
        check_name("run", "name", name)
    assert violations(caught.value) == {"name"}


def at(moment: datetime) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(moment)
    return stamp


@pytest.mark.parametrize("priority", [0, 1, 3, 5])
def test_priorities_that_there_are(priority: int) -> None:
    checked(request(priority=priority))


@pytest.mark.parametrize("priority", [-1, 6, 2**31 - 1])
def test_a_priority_that_there_is_not_is_refused(priority: int) -> None:
    with pytest.raises(RemitError) as caught:
        checked(request(priority=priority))
    assert violations(caught.value) == {"priority"}


def test_a_run_may_be_scheduled_within_thirty_days() -> None:
    checked(request(schedule_time=at(NOW + timedelta(days=30))))
    checked(request(schedule_time=at(NOW - timedelta(days=9999))))


@pytest.mark.parametrize(
    "stamp",
    [
        at(NOW + timedelta(days=30, microseconds=1)),
        timestamp_pb2.Timestamp(seconds=2**63 - 1),
        timestamp_pb2.Timestamp(seconds=-(2**63)),
        timestamp_pb2.Timestamp(nanos=-1),
        timestamp_pb2.Timestamp(nanos=1_000_000_000),
    ],
)
def test_what_is_no_time_or_too_far_is_refused(stamp: timestamp_pb2.Timestamp) -> None:
    with pytest.raises(RemitError) as caught:
        checked(request(schedule_time=stamp))
    assert violations(caught.value) == {"schedule_time"}
