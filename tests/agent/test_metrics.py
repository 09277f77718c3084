"""What comes in and out of runs is counted by things that are few: agents, fields, reasons."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from remit.agent import metrics
from remit.agent.journal import ToolCall, Turn
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.telemetry import logs
from remit.telemetry.logs import WITHHELD
from tests.monitoring.values import gained, value

AGENT = "agents/measured"
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def an_ended_run(state: run_pb2.RunState.ValueType) -> run_pb2.Run:
    run = run_pb2.Run(agent=AGENT, state=state)
    run.create_time.FromDatetime(NOW - timedelta(seconds=3))
    run.end_time.FromDatetime(NOW)
    run.usage.input_tokens = 10
    run.usage.cached_input_tokens = 4
    run.usage.output_tokens = 5
    return run


def test_an_accepted_request_tells_how_complex_it_is() -> None:
    created = gained("agent_runs_created_total", agent=AGENT)
    characters = gained("agent_task_characters_sum", agent=AGENT)
    entries = gained("agent_context_entries_sum", agent=AGENT)
    metrics.count_created(run_pb2.Run(agent=AGENT, task="1234", context={"ab": "cde", "f": ""}))
    assert (created(), characters(), entries()) == (1, 10, 2)


@pytest.mark.parametrize(
    ("error", "field"),
    [
        (invalid_request([Violation("task", "is empty")]), "task"),
        (invalid_request([Violation("context[secret of alice]", "is long")]), "context"),
        (invalid_request([Violation("limits.max_steps", "is high")]), "limits"),
        (invalid_request([Violation("whatever a client sent", "is odd")]), "request"),
        (RemitError(error_reason_pb2.ERROR_REASON_INVALID_REQUEST, "no field"), "request"),
    ],
)
def test_a_refusal_is_counted_by_the_field_and_no_more(error: RemitError, field: str) -> None:
    refused = gained("agent_input_errors_total", field=field, reason="INVALID_REQUEST")
    with pytest.raises(RemitError), metrics.refusals_counted():
        raise error
    assert refused() == 1


def test_an_ended_run_is_counted_with_what_it_used() -> None:
    ended = gained("agent_requests_total", agent=AGENT, state="SUCCEEDED")
    seconds = gained("agent_execution_seconds_sum", agent=AGENT)
    kinds = ("input", "cached_input", "output")
    tokens = [gained("agent_tokens_total", agent=AGENT, kind=kind) for kind in kinds]
    models = gained("agent_calls_sum", agent=AGENT, kind="model")
    tools = gained("agent_calls_sum", agent=AGENT, kind="tool")
    after = gained("agent_post_processing_seconds_sum", agent=AGENT)
    last = run_pb2.RunEvent(model_call_ended=run_pb2.ModelCallEnded(step=2))
    last.event_time.FromDatetime(NOW - timedelta(milliseconds=250))
    call = ToolCall("c", "tools/t", run_pb2.ToolCallStarted().arguments)
    turns = [Turn(1, 1, calls=(call, call)), Turn(2, 1)]
    metrics.count_ended(an_ended_run(run_pb2.RUN_STATE_SUCCEEDED), turns, [last], NOW)
    assert (ended(), seconds(), models(), tools(), after()) == (1, 3, 2, 2, 0.25)
    assert [gain() for gain in tokens] == [10, 4, 5]


def test_a_failed_run_gives_its_reason() -> None:
    failed = gained("agent_errors_total", agent=AGENT, reason="RUN_LIMIT_REACHED")
    run = an_ended_run(run_pb2.RUN_STATE_FAILED)
    error = RemitError(error_reason_pb2.ERROR_REASON_RUN_LIMIT_REACHED, "too long")
    run.error.CopyFrom(error.to_status())
    metrics.count_ended(run, [], [], NOW)
    assert failed() == 1


@pytest.mark.parametrize("content", [False, True])
def test_a_failed_run_has_its_line(*, content: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs._asked, "content", content)
    run = an_ended_run(run_pb2.RUN_STATE_FAILED)
    run.name, run.subject, run.cost_nanos = "runs/a", "orgs/acme/users/alice", 7
    error = RemitError(error_reason_pb2.ERROR_REASON_PROVIDER_FAILED, "you wrote: secret")
    run.error.CopyFrom(error.to_status())
    call = ToolCall("c", "tools/t", run_pb2.ToolCallStarted().arguments)
    with capture_logs() as lines:
        metrics.count_ended(run, [Turn(1, 1, calls=(call,))], [], NOW)
    assert lines == [
        {
            "event": "agent_execution_failed",
            "log_level": "warning",
            "logger_name": "remit.agent.metrics",
            "error_type": "PROVIDER_FAILED",
            "error": "you wrote: secret" if content else WITHHELD,
            "run": "runs/a",
            "agent": AGENT,
            "user": "orgs/acme/users/alice",
            "state": "FAILED",
            "success": False,
            "duration_s": 3.0,
            "tool_calls": 1,
            "output_tokens": 5,
            "cost_nanos": 7,
        }
    ]


def test_a_run_waits_for_a_reason_while_it_waits() -> None:
    with metrics.waiting_for("SOME_REASON"):
        assert value("agent_runs_waiting", reason="SOME_REASON") == 1
    assert value("agent_runs_waiting", reason="SOME_REASON") == 0


def test_taken_runs_are_told_apart() -> None:
    orphans = gained("agent_runs_claimed_total", origin="orphan")
    queued = gained("agent_runs_claimed_total", origin="queue")
    metrics.count_claimed([True, False, False])
    assert (orphans(), queued()) == (1, 2)
