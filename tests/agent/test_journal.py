"""The fold of a journal: consistent for every prefix, closed by its end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.agent.decisions import AskModel, CallTools, End, Rest, next_action
from remit.agent.journal import TERMINAL, Progress, Tally, apply, fold
from remit.agent.logbook import Draft
from remit.agent.summary import run_of
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from tests.agent.histories import RUN, FixedClock, Player, begin, error_of, histories, struct


@given(histories())
def test_every_prefix_folds_and_says_what_comes_next(events: list[run_pb2.RunEvent]) -> None:
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    progress = Progress()
    for number, event in enumerate(events, start=1):
        progress = apply(progress, event)
        assert progress == fold(events[:number])
        assert progress.percent == event.percent
        run = run_of(progress)
        assert run.last_sequence == number
        assert (run.percent, run.stage) == (event.percent, progress.stage)
        is_last = number == len(events)
        is_paused = run.state == run_pb2.RUN_STATE_PAUSED
        assert isinstance(next_action(progress), Rest) == (is_last or is_paused)
        assert (run.state in TERMINAL) == is_last
        assert (event.percent == 100) == is_last
    assert events[-1].ended.run == run_of(progress)
    whole = Tally()
    for turn in progress.turns:
        whole = whole.with_turn(turn)
    assert progress.tally == whole


@given(histories())
def test_nothing_follows_the_end(events: list[run_pb2.RunEvent]) -> None:
    progress = fold(events)
    for event in events[1:]:
        late = run_pb2.RunEvent()
        late.CopyFrom(event)
        late.sequence = len(events) + 1
        with pytest.raises(RemitError) as caught:
            apply(progress, late)
        assert caught.value.reason == reasons.ERROR_REASON_DATA_CORRUPT


@given(histories(), st.data())
def test_a_gap_or_a_repetition_is_detected(
    events: list[run_pb2.RunEvent], data: st.DataObject
) -> None:
    at = data.draw(st.integers(min_value=0, max_value=len(events) - 2))
    with pytest.raises(RemitError):
        fold([*events[:at], *events[at + 1 :]])
    with pytest.raises(RemitError):
        fold([*events[: at + 1], events[at], *events[at + 1 :]])


@given(histories(), st.data())
def test_from_any_prefix_an_adopter_brings_the_run_to_an_end(
    events: list[run_pb2.RunEvent], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(min_value=1, max_value=len(events) - 1))
    draft = Draft(RUN, fold(events[:cut]), FixedClock())
    if draft.progress.paused_by:
        draft.add(run_pb2.RunResumed(subject="orgs/acme/users/alice"))
    player = Player(data.draw, draft)
    player.play()
    assert fold(draft.events, fold(events[:cut])).ended is not None


@given(histories())
def test_the_cost_is_that_of_the_effects_that_count(events: list[run_pb2.RunEvent]) -> None:
    by_effect = {}
    for event in events:
        if event.HasField("model_call_ended"):
            model = event.model_call_ended
            by_effect[model.step, model.model] = model.cost_nanos
        elif event.HasField("tool_call_ended"):
            ended = event.tool_call_ended
            by_effect[ended.step, ended.call_id] = ended.cost_nanos
    assert fold(events).tally.cost_nanos == sum(by_effect.values())


def test_asking_again_begins_the_text_anew() -> None:
    draft = begin()
    draft.add(
        run_pb2.RunStarted(fencing_token=1),
        run_pb2.ModelCallStarted(step=1),
        run_pb2.TextDelta(step=1, text="half a"),
        run_pb2.RunStarted(fencing_token=2),
    )
    assert next_action(draft.progress) == AskModel(1, is_journalled=False)
    draft.add(
        run_pb2.ModelCallStarted(step=1),
        run_pb2.TextDelta(step=1, text="whole"),
        run_pb2.ModelCallEnded(step=1),
    )
    action = next_action(draft.progress)
    assert isinstance(action, End)
    assert action.result == "whole"


def test_the_step_limit_ends_the_run_before_more_tools_are_called() -> None:
    draft = begin(max_steps=1)
    draft.add(
        run_pb2.RunStarted(fencing_token=1),
        run_pb2.ModelCallStarted(step=1),
        run_pb2.ModelCallEnded(step=1, tool_calls=2),
    )
    action = next_action(draft.progress)
    assert isinstance(action, End)
    assert action.error is not None
    error = RemitError.from_status(action.error)
    assert error.reason == reasons.ERROR_REASON_RUN_LIMIT_REACHED


def test_a_turn_whose_calls_were_not_journalled_is_asked_for_again() -> None:
    draft = begin()
    draft.add(
        run_pb2.RunStarted(fencing_token=1),
        run_pb2.ModelCallStarted(step=1),
        run_pb2.ModelCallEnded(step=1, tool_calls=1),
    )
    assert next_action(draft.progress) == AskModel(1, is_journalled=False)


def test_an_empty_turn_is_no_answer() -> None:
    draft = begin()
    draft.add(
        run_pb2.RunStarted(fencing_token=1),
        run_pb2.ModelCallStarted(step=1),
        run_pb2.TextDelta(step=1, text=" \n"),
        run_pb2.ModelCallEnded(step=1),
    )
    action = next_action(draft.progress)
    assert isinstance(action, End)
    assert action.state == run_pb2.RUN_STATE_FAILED


def test_a_call_made_again_after_a_doubt_has_a_new_attempt() -> None:
    draft = begin()
    call = run_pb2.ToolCallStarted(step=1, call_id="c", tool="tools/t", arguments=struct(1))
    draft.add(
        run_pb2.RunStarted(fencing_token=1),
        run_pb2.ModelCallStarted(step=1),
        run_pb2.ModelCallEnded(step=1, tool_calls=1),
        call,
        call,
    )
    action = next_action(draft.progress)
    assert isinstance(action, CallTools)
    assert [c.attempt for c in action.calls] == [2]


@pytest.mark.parametrize(
    "wrong",
    [
        run_pb2.RunCreated(),
        run_pb2.RunStarted(fencing_token=1),
        run_pb2.ModelCallStarted(step=2),
        run_pb2.TextDelta(step=2),
        run_pb2.ModelCallEnded(step=2),
        run_pb2.ToolCallStarted(step=1, call_id="other"),
        run_pb2.ToolCallEnded(step=1, call_id="other"),
        run_pb2.RunEnded(run=run_pb2.Run(state=run_pb2.RUN_STATE_RUNNING)),
    ],
)
def test_an_event_that_cannot_come_next_is_named(wrong: object) -> None:
    draft = begin()
    draft.add(
        run_pb2.RunStarted(fencing_token=1),
        run_pb2.ModelCallStarted(step=1),
    )
    with pytest.raises(RemitError, match=rf"{RUN}: event 4 "):
        draft.add(wrong)  # type: ignore[arg-type]


def test_an_event_of_another_run_is_refused() -> None:
    draft = begin()
    other = Draft(RUN.replace("0198", "0199"), draft.progress, FixedClock())
    with pytest.raises(RemitError, match="is of another run"):
        other.add(run_pb2.RunStarted(fencing_token=1))


def test_only_the_end_follows_a_cancellation() -> None:
    draft = begin()
    draft.add(run_pb2.CancelRequested(subject="orgs/a/users/b"))
    with pytest.raises(RemitError, match="follows a cancellation"):
        draft.add(run_pb2.ModelCallStarted(step=1))
    action = next_action(draft.progress)
    assert isinstance(action, End)
    assert action.state == run_pb2.RUN_STATE_CANCELLED


def test_a_fatal_tool_error_ends_the_run_and_another_is_told() -> None:
    for reason, expected in (
        (reasons.ERROR_REASON_BUDGET_EXHAUSTED, End),
        (reasons.ERROR_REASON_EFFECT_IN_DOUBT, End),
        (reasons.ERROR_REASON_TOOL_FAILED, AskModel),
        (reasons.ERROR_REASON_PERMISSION_DENIED, AskModel),
    ):
        draft = begin()
        ended = error_of(reason)
        ended.step, ended.call_id = 1, "c"
        draft.add(
            run_pb2.RunStarted(fencing_token=1),
            run_pb2.ModelCallStarted(step=1),
            run_pb2.ModelCallEnded(step=1, tool_calls=1),
            run_pb2.ToolCallStarted(step=1, call_id="c", tool="tools/t"),
            ended,
        )
        assert isinstance(next_action(draft.progress), expected)


def test_a_paused_run_goes_on_only_when_it_is_resumed_or_cancelled() -> None:
    draft = begin()
    draft.add(run_pb2.RunPaused(subject="orgs/acme/users/alice"))
    halted = draft.progress
    for body in (run_pb2.RunStarted(fencing_token=9), run_pb2.RunPaused(), run_pb2.TextDelta()):
        later = Draft(RUN, halted, FixedClock())
        with pytest.raises(RemitError, match="follows a pause"):
            later.add(body)
    with pytest.raises(RemitError, match="is not paused"):
        begin().add(run_pb2.RunResumed(subject="orgs/acme/users/alice"))
    cancelled = Draft(RUN, halted, FixedClock())
    cancelled.add(run_pb2.CancelRequested(subject="orgs/acme/users/alice"))
    assert isinstance(next_action(cancelled.progress), End)
