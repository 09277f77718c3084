"""Recorded events go in; what a person reads comes out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from remit.api.agent.v1 import confidence_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.cli.run_view import RunView, event_document, summary
from remit.rpc.errors import RemitError
from tests.cli.journals import COST_NANOS, RUN, ended_run, journal
from tests.golden import assert_golden

GOLDEN = Path(__file__).with_name("golden")
FAILURE = RemitError(error_reason_pb2.ERROR_REASON_TOOL_FAILED, "notes.txt does not exist")


def _sure(
    value: float, kind: confidence_pb2.AnswerKind.ValueType = confidence_pb2.ANSWER_KIND_ANSWER
) -> confidence_pb2.Confidence:
    source = confidence_pb2.CONFIDENCE_SOURCE_MEASURED
    return confidence_pb2.Confidence(value=value, source=source, kind=kind)


def shown(events: Iterable[run_pb2.RunEvent]) -> list[str]:
    view = RunView()
    return [line.text for event in events for line in view.apply(event)]


@pytest.mark.golden
def test_a_whole_run_reads_like_this() -> None:
    assert_golden(GOLDEN / "run.txt", "\n".join(shown(journal())) + "\n")


def test_arguments_results_cost_and_position_are_shown() -> None:
    text = "\n".join(shown(journal()))
    assert '→ calculator(expression="17 * 23")' in text
    assert '← calculator: {"result": "391"}' in text
    assert "cost    0.0000768 USD" in text
    assert f"audit   leaf 5; remit audit list --run {RUN}" in text


def test_text_is_kept_while_it_comes_and_the_answer_is_told_once() -> None:
    view = RunView()
    told: list[str] = []
    for event in journal():
        told += [line.text for line in view.apply(event)]
        if event.sequence == 6:
            assert view.text == "I shall calculate."
    assert told.count("17 * 23 = 391") == 1
    assert "  I shall calculate." in told


def test_percent_never_goes_back() -> None:
    view = RunView()
    view.apply(run_pb2.RunEvent(percent=40))
    view.apply(run_pb2.RunEvent(percent=12))
    assert view.percent == 40


def test_a_failed_tool_says_why() -> None:
    event = run_pb2.RunEvent(tool_call_ended=run_pb2.ToolCallEnded(tool="tools/read_file"))
    event.tool_call_ended.error.CopyFrom(FAILURE.to_status())
    assert shown([event]) == ["  ✗ read_file: notes.txt does not exist [TOOL_FAILED]"]


def test_a_failed_model_says_why() -> None:
    event = run_pb2.RunEvent(model_call_ended=run_pb2.ModelCallEnded(model="models/gpt"))
    event.model_call_ended.error.CopyFrom(FAILURE.to_status())
    assert shown([event]) == ["  ✗ models/gpt: notes.txt does not exist [TOOL_FAILED]"]


def test_a_second_model_is_told_with_its_cause_and_whose_turn_is_kept() -> None:
    fallback = run_pb2.ModelFallback(
        from_model="models/gpt",
        to_model="models/local",
        cause=run_pb2.FALLBACK_CAUSE_TIMED_OUT,
    )
    ended = run_pb2.ModelCallEnded(model="models/local", kept_model="models/gpt")
    ended.confidence.CopyFrom(_sure(0.4))
    lines = shown(
        [run_pb2.RunEvent(model_fallback=fallback), run_pb2.RunEvent(model_call_ended=ended)]
    )
    assert lines[0] == "  ↪ models/gpt took too long; asks models/local"
    assert lines[1] == "  keeps the turn of models/gpt"
    assert lines[2].endswith("confidence 0.40 (measured)")


@pytest.mark.parametrize(
    ("confidence", "line"),
    [
        (_sure(0.93), "sure    0.93 (measured)"),
        (
            _sure(0.5, kind=confidence_pb2.ANSWER_KIND_ABSTENTION),
            "sure    0.50 (measured); not enough, so the agent abstains",
        ),
        (
            confidence_pb2.Confidence(kind=confidence_pb2.ANSWER_KIND_ABSTENTION),
            "sure    nobody says; not enough, so the agent abstains",
        ),
        (
            confidence_pb2.Confidence(value=0, kind=confidence_pb2.ANSWER_KIND_CANNED),
            "sure    not at all: every model failed, and this is the agent's canned answer",
        ),
        (confidence_pb2.Confidence(kind=confidence_pb2.ANSWER_KIND_ANSWER), None),
    ],
)
def test_the_end_says_how_sure_the_result_is(
    confidence: confidence_pb2.Confidence, line: str | None
) -> None:
    run = ended_run()
    run.confidence.CopyFrom(confidence)
    told = [text for text in shown(journal(run)) if text.startswith("sure")]
    assert told == ([line] if line else [])
    assert "confidence" in summary(run, 0)


def test_a_sub_run_is_named_and_its_bill_is_told() -> None:
    named = run_pb2.RunEvent(sub_run_started=run_pb2.SubRunStarted(step=1, run="runs/below"))
    ended = run_pb2.ToolCallEnded(tool="agents/clerk", run="runs/below", cost_nanos=COST_NANOS)
    ended.result.update({"answer": "Done."})
    lines = shown([named, run_pb2.RunEvent(tool_call_ended=ended)])
    assert lines[0] == "  ⤷ runs/below"
    assert lines[1] == '  ← clerk: {"answer": "Done."}'
    assert lines[2].endswith("remit runs show runs/below")


def test_waiting_says_until_when_and_for_what() -> None:
    event = run_pb2.RunEvent(waiting=run_pb2.RunWaiting(reason=FAILURE.to_status()))
    event.waiting.retry_time.seconds = 1_795_446_000
    (line,) = shown([event])
    assert line.startswith("  … waits until 2026-11-23")
    assert "notes.txt does not exist" in line


def test_a_takeover_and_a_cancellation_are_told() -> None:
    again = run_pb2.RunEvent(started=run_pb2.RunStarted(fencing_token=2, replica="1"))
    cancel = run_pb2.RunEvent(cancel_requested=run_pb2.CancelRequested(subject="orgs/a/users/b"))
    assert shown([again, cancel]) == [
        "  taken over by replica 1",
        "  cancellation asked for by orgs/a/users/b",
    ]


def test_a_failed_run_tells_its_reason_and_what_to_do() -> None:
    error = RemitError(error_reason_pb2.ERROR_REASON_BUDGET_EXHAUSTED, "nothing is left")
    run = ended_run(run_pb2.RUN_STATE_FAILED, error)
    text = "\n".join(shown(journal(run)))
    assert "failed: nothing is left [BUDGET_EXHAUSTED]" in text
    assert f"  next: {error.next_step}" in text


def test_long_results_are_cut_with_a_mark() -> None:
    event = run_pb2.RunEvent(tool_call_ended=run_pb2.ToolCallEnded(tool="tools/t"))
    event.tool_call_ended.result.update({"text": "x" * 5_000})
    assert "… (5,012 characters)" in shown([event])[0]


def test_an_event_of_a_later_version_is_passed_over() -> None:
    assert shown([run_pb2.RunEvent(sequence=3)]) == []
    assert event_document(run_pb2.RunEvent(sequence=3))["type"] == "unknown"


def test_the_summary_holds_exact_numbers() -> None:
    document = summary(ended_run(), 0)
    assert document["type"] == "summary"
    assert document["run"] == RUN
    assert document["state"] == "RUN_STATE_SUCCEEDED"
    assert document["result"] == "17 * 23 = 391"
    assert document["cost_nanos"] == COST_NANOS
    assert document["last_leaf_index"] == 5
    assert document["usage"]["input_tokens"] == 1_460
    assert document["duration_s"] == pytest.approx(1.42)
    assert document["exit_code"] == 0
    assert "error" not in document
