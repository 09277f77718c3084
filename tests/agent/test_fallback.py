"""The rules of falling back: nothing good is lost, nobody is asked without bound."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from remit.agent.decisions import AskModel, End, FallBack, next_action
from remit.agent.fallback import (
    MAX_TRIES,
    FallbackRule,
    Rules,
    TookTooLong,
    cause_of,
    gives_up,
    is_better,
)
from remit.agent.forks import base_of
from remit.agent.journal import Progress, fold
from remit.api.agent.v1 import confidence_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from tests.agent.histories import MODEL as FIRST
from tests.agent.histories import RULES, SECOND, begin, ruled_histories

RULE = FallbackRule(model="n")
OF_THE_RUN = (
    reasons.ERROR_REASON_BUDGET_EXHAUSTED,
    reasons.ERROR_REASON_FENCED,
    reasons.ERROR_REASON_KEY_REUSED,
)


def ended(
    *,
    confidence: float | None = None,
    tool_calls: int = 0,
    reason: reasons.ErrorReason.ValueType | None = None,
) -> run_pb2.ModelCallEnded:
    end = run_pb2.ModelCallEnded(step=1, model=FIRST, tool_calls=tool_calls)
    if reason is not None:
        end.error.CopyFrom(RemitError(reason, "no").to_status())
    if confidence is not None:
        end.confidence.value = confidence
        end.confidence.source = confidence_pb2.CONFIDENCE_SOURCE_MEASURED
    return end


confidences = st.one_of(st.none(), st.floats(min_value=0, max_value=1))
failures = st.sampled_from(
    [
        reasons.ERROR_REASON_PROVIDER_FAILED,
        reasons.ERROR_REASON_DEADLINE_EXCEEDED,
        reasons.ERROR_REASON_PERMISSION_DENIED,
        *OF_THE_RUN,
    ]
)
answers = st.builds(lambda c: ended(confidence=c), confidences)
failed = st.builds(lambda r: ended(reason=r), failures)
wishes = st.builds(lambda n: ended(tool_calls=n), st.integers(min_value=1, max_value=3))
ends = st.one_of(answers, failed, wishes)


@given(second=failed, answer=answers, may_call=st.booleans())
def test_a_second_that_fails_never_replaces_an_answer(
    second: run_pb2.ModelCallEnded, answer: run_pb2.ModelCallEnded, *, may_call: bool
) -> None:
    assert not is_better(second, answer, may_call=may_call)


@given(second=wishes, answer=answers, may_call=st.booleans())
def test_an_unsure_answer_gives_way_to_tools_while_there_is_a_step_for_them(
    second: run_pb2.ModelCallEnded, answer: run_pb2.ModelCallEnded, *, may_call: bool
) -> None:
    assert is_better(second, answer, may_call=may_call) == may_call


@given(st.floats(min_value=0, max_value=1), confidences)
def test_of_two_answers_the_one_that_is_known_to_be_surer_is_kept(
    first: float, second: float | None
) -> None:
    is_surer = second is not None and second > first
    one, other = ended(confidence=second), ended(confidence=first)
    assert is_better(one, other, may_call=True) == is_surer


@given(first=failed, second=answers | wishes, may_call=st.booleans())
def test_whatever_is_no_failure_replaces_one(
    first: run_pb2.ModelCallEnded, second: run_pb2.ModelCallEnded, *, may_call: bool
) -> None:
    assert is_better(second, first, may_call=may_call)


@given(ends)
def test_without_a_rule_nothing_is_a_reason(end: run_pb2.ModelCallEnded) -> None:
    assert cause_of(Rules(), end) is None


@given(confidences)
def test_an_answer_is_a_reason_only_if_it_is_known_to_be_unsure(confidence: float | None) -> None:
    is_unsure = confidence is not None and confidence < RULE.min_confidence
    cause = cause_of(Rules(RULE), ended(confidence=confidence))
    assert cause == (run_pb2.FALLBACK_CAUSE_LOW_CONFIDENCE if is_unsure else None)


@pytest.mark.parametrize("reason", OF_THE_RUN)
def test_what_is_not_the_models_fault_asks_no_other(reason: reasons.ErrorReason.ValueType) -> None:
    assert cause_of(Rules(RULE), ended(reason=reason)) is None


def test_the_cause_says_what_happened() -> None:
    rules = Rules(RULE)
    late, broken = reasons.ERROR_REASON_DEADLINE_EXCEEDED, reasons.ERROR_REASON_PROVIDER_FAILED
    assert cause_of(rules, ended(reason=late)) == run_pb2.FALLBACK_CAUSE_TIMED_OUT
    assert cause_of(rules, ended(reason=broken)) == run_pb2.FALLBACK_CAUSE_FAILED
    assert cause_of(rules, ended(tool_calls=1)) is None


@pytest.mark.parametrize(
    ("reason", "refusals", "advice_s", "final"),
    [
        (reasons.ERROR_REASON_PROVIDER_UNAVAILABLE, 0, None, False),
        (reasons.ERROR_REASON_PROVIDER_UNAVAILABLE, MAX_TRIES - 1, None, True),
        (reasons.ERROR_REASON_PROVIDER_UNAVAILABLE, 0, 31.0, True),
        (reasons.ERROR_REASON_PROVIDER_UNAVAILABLE, 0, 29.0, False),
        (reasons.ERROR_REASON_DEADLINE_EXCEEDED, 0, None, False),
        (reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, 100, 3600.0, False),
        (reasons.ERROR_REASON_OVERLOADED, 100, None, False),
    ],
)
def test_only_the_models_own_outage_is_given_up(
    reason: reasons.ErrorReason.ValueType, refusals: int, advice_s: float | None, *, final: bool
) -> None:
    error = RemitError(reason, "no", retry_after_s=advice_s)
    assert gives_up(RULE, error, refusals) == final
    assert gives_up(RULE, TookTooLong(FIRST, 30), 0)


@given(ruled_histories())
def test_a_step_asks_two_models_at_most_and_keeps_the_better_turn(
    history: tuple[Rules, list[run_pb2.RunEvent]],
) -> None:
    rules, events = history
    progress = fold(events, Progress(rules=rules))
    for turn in progress.turns:
        asked = {
            event.model_call_started.model
            for event in events
            if event.HasField("model_call_started") and event.model_call_started.step == turn.step
        }
        assert asked in ({FIRST}, {FIRST, SECOND})
        assert turn.model_calls >= len(asked)
        if turn.aside is None or turn.ended is None:
            continue
        first, second = turn.ended, turn.aside.ended
        if first.model != FIRST:
            first, second = second, first
        assert cause_of(rules, first) is not None
        may_call = turn.step < progress.max_steps
        assert (turn.ended.model == SECOND) == is_better(second, first, may_call=may_call)


@given(ruled_histories())
def test_no_answer_is_lost_to_a_worse_end(
    history: tuple[Rules, list[run_pb2.RunEvent]],
) -> None:
    rules, events = history
    progress, run = fold(events, Progress(rules=rules)), events[-1].ended.run
    if progress.reserve is None or run.state == run_pb2.RUN_STATE_CANCELLED:
        return
    if run.state == run_pb2.RUN_STATE_FAILED:
        assert any(
            call.ended is not None and call.ended.HasField("error")
            for turn in progress.turns
            for call in turn.calls
        ), "a tool in doubt or a budget that is used up, and nothing that a model did"
        return
    assert run.confidence.kind != confidence_pb2.ANSWER_KIND_CANNED
    assert run.confidence.value >= progress.reserve.ended.confidence.value


@given(ruled_histories())
def test_a_run_that_succeeds_says_how_sure_it_is_and_by_its_rules(
    history: tuple[Rules, list[run_pb2.RunEvent]],
) -> None:
    rules, events = history
    run = events[-1].ended.run
    if run.state != run_pb2.RUN_STATE_SUCCEEDED:
        assert not run.HasField("confidence")
        return
    kind, value = run.confidence.kind, run.confidence.value
    assert run.confidence.source
    if kind == confidence_pb2.ANSWER_KIND_CANNED:
        assert run.result == "Nobody knows."
        assert value == 0.0
        assert rules == RULES
    elif kind == confidence_pb2.ANSWER_KIND_ABSTENTION:
        assert rules == RULES
        assert value < 0.8
    elif rules.confidence is not None:
        assert value >= 0.8


def test_a_crash_between_an_end_and_what_follows_is_made_good() -> None:
    draft = begin(rules=RULES)
    draft.add(
        run_pb2.RunStarted(fencing_token=1),
        run_pb2.ModelCallStarted(step=1, model=FIRST),
        run_pb2.TextDelta(step=1, text="perhaps"),
        ended(confidence=0.3),
    )
    action = next_action(draft.progress)
    assert isinstance(action, FallBack)
    assert action.event.cause == run_pb2.FALLBACK_CAUSE_LOW_CONFIDENCE
    draft.announce_next(FIRST)
    assert [event.WhichOneof("event") for event in draft.events[-3:]] == [
        "model_fallback",
        "stage_started",
        "model_call_started",
    ]
    assert draft.events[-1].model_call_started.model == SECOND
    assert next_action(draft.progress) == AskModel(1, is_journalled=True)


def test_the_text_of_the_kept_turn_is_the_answer() -> None:
    draft = begin(rules=Rules(RULE))
    draft.add(
        run_pb2.RunStarted(fencing_token=1),
        run_pb2.ModelCallStarted(step=1, model=FIRST),
        run_pb2.TextDelta(step=1, text="perhaps"),
        ended(confidence=0.6),
    )
    draft.announce_next(FIRST)
    second = ended(confidence=0.5)
    second.model, second.kept_model = SECOND, FIRST
    draft.add(run_pb2.TextDelta(step=1, text="no idea"), second)
    action = next_action(draft.progress)
    assert isinstance(action, End)
    assert action.result == "perhaps"
    assert action.confidence is not None
    assert action.confidence.value == 0.6


@given(ruled_histories())
def test_a_fork_takes_over_the_turns_that_were_kept_and_pays_for_none(
    history: tuple[Rules, list[run_pb2.RunEvent]],
) -> None:
    rules, events = history
    source = fold(events, Progress(rules=rules))
    base = base_of(source, len(source.turns))
    assert [turn.text for turn in base.turns] == [turn.text for turn in source.turns]
    assert base.tally.cost_nanos == base.tally.input_tokens == 0
    assert sum(turn.model_calls for turn in base.turns) == 0


def test_both_failing_without_a_canned_answer_is_the_first_ones_error() -> None:
    draft = begin(rules=Rules(RULE))
    draft.add(
        run_pb2.RunStarted(fencing_token=1),
        run_pb2.ModelCallStarted(step=1, model=FIRST),
        ended(reason=reasons.ERROR_REASON_PROVIDER_FAILED),
    )
    draft.announce_next(FIRST)
    second = ended(reason=reasons.ERROR_REASON_MODEL_NOT_FOUND)
    second.model, second.kept_model = SECOND, FIRST
    draft.add(second)
    action = next_action(draft.progress)
    assert isinstance(action, End)
    assert action.error is not None
    assert RemitError.from_status(action.error).reason == reasons.ERROR_REASON_PROVIDER_FAILED


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "needs a model"),
        ({"canned_answer": "  "}, "needs a model"),
        ({"model": "not a name"}, "short name of a model"),
        ({"model": "n", "timeout_s": 0}, "timeout_s"),
        ({"model": "n", "min_confidence": 1.5}, "min_confidence"),
        ({"model": "n", "wings": 2}, "wings"),
    ],
)
def test_what_is_wrong_in_a_rule_is_said(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FallbackRule(**fields)
