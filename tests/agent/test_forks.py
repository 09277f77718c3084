"""What a fork begins with: all that its source knew at a point, nothing that it paid or held."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf import duration_pb2
from hypothesis import given
from hypothesis import strategies as st

from remit.agent.conversation import Offer, model_key, model_request, tool_key
from remit.agent.decisions import AskModel, AwaitSubRuns, CallTools, End, next_action
from remit.agent.definitions import load_catalog
from remit.agent.forks import (
    Point,
    after_sequence,
    base_of,
    before_step,
    begun,
    check_goes_on,
    check_overrides,
    differences,
    overridden,
    request_of,
)
from remit.agent.journal import Progress, Turn, fold
from remit.agent.summary import run_of
from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.usage.v1 import usage_pb2
from remit.rpc.errors import RemitError
from tests.agent.histories import RUN, FixedClock, begin, histories, struct

ASSISTANT = load_catalog(None).get("agents/assistant")
OFFER = Offer(())
FORK = "runs/01981a2b-3c4d-7e5f-8a9b-000000000002"


def fork_of(source: Progress, turns: int) -> Progress:
    run = run_pb2.Run()
    run.CopyFrom(source.accepted)
    run.name = FORK
    return begun(base_of(source, turns), run)


def undisturbed(progress: Progress) -> Progress:
    """A run without what came from outside, a turn that does not count, and what is another's."""
    turns = progress.turns
    if turns and not turns[-1].is_recorded:
        turns = turns[:-1]
    elif turns:
        calls = tuple(c if c.ended else replace(c, run="") for c in turns[-1].calls)
        turns = (*turns[:-1], replace(turns[-1], calls=calls))
    return replace(
        progress, turns=turns, ended=None, cancelled_by="", paused_by="", fencing_token=0
    )


def keys_of(events: list[run_pb2.RunEvent]) -> set[str]:
    """Every idempotency key that a run used."""
    keys: set[str] = set()
    for cut in range(1, len(events) + 1):
        progress = fold(events[:cut])
        turn = progress.turn
        if turn is not None:
            keys.add(model_key(progress.accepted.name, turn.step))
            keys |= {tool_key(progress.accepted.name, turn.step, call) for call in turn.calls}
    return keys


@given(histories())
def test_a_fork_does_next_what_its_source_would_have_done_under_keys_of_its_own(
    events: list[run_pb2.RunEvent],
) -> None:
    used = keys_of(events)
    for cut in range(1, len(events) + 1):
        source = fold(events[:cut])
        point = after_sequence(source)
        fork = fork_of(source, point.turns)
        expected, action = next_action(undisturbed(source)), next_action(fork)
        assert type(action) is type(expected)
        if isinstance(action, AskModel) and isinstance(expected, AskModel):
            assert action.step == expected.step
            asked = model_request(fork, ASSISTANT, OFFER, action.step)
            would_have_asked = model_request(undisturbed(source), ASSISTANT, OFFER, expected.step)
            assert asked.request_id not in used
            would_have_asked.request_id = asked.request_id
            assert asked == would_have_asked
        elif isinstance(action, CallTools) and isinstance(expected, CallTools):
            assert [(c.call_id, c.tool, c.arguments) for c in action.calls] == [
                (c.call_id, c.tool, c.arguments) for c in expected.calls
            ]
            assert not {tool_key(FORK, action.step, call) for call in action.calls} & used


@given(histories())
def test_a_fork_has_paid_nothing_and_holds_nothing(events: list[run_pb2.RunEvent]) -> None:
    for cut in range(1, len(events) + 1):
        source = fold(events[:cut])
        fork = fork_of(source, after_sequence(source).turns)
        run = run_of(fork)
        assert (run.cost_nanos, run.usage, run.last_leaf_index) == (0, usage_pb2.Usage(), 0)
        assert not run.HasField("last_leaf_index")
        assert run.state == run_pb2.RUN_STATE_QUEUED
        assert (fork.sequence, fork.fencing_token, fork.sub_runs, fork.retry_time) == (
            0,
            0,
            (),
            None,
        )
        kept = undisturbed(source).turns
        assert {a.name for a in run.artifacts} == {
            a.name for t in kept for c in t.calls if c.ended for a in c.ended.artifacts
        }


@given(histories(), st.data())
def test_a_step_may_be_tried_again(events: list[run_pb2.RunEvent], data: st.DataObject) -> None:
    source = fold(events)
    began: dict[int, int] = {}
    for event in events:
        if event.HasField("model_call_started"):
            began.setdefault(event.model_call_started.step, event.sequence)
    step = data.draw(st.integers(min_value=1, max_value=max(len(source.turns), 1)))
    point = before_step(source, began, step)
    assert point.turns == step - 1
    then = fold(events[: point.sequence])
    assert after_sequence(then) == point
    assert next_action(fork_of(then, point.turns)) == AskModel(step, is_journalled=False)
    with pytest.raises(RemitError, match="from_step: must be from 1 to"):
        before_step(source, began, len(source.turns) + 2)
    with pytest.raises(RemitError, match="from_step: must be from 1 to"):
        before_step(source, began, 0)


def with_a_sub_run() -> Progress:
    draft = begin()
    draft.add(
        run_pb2.RunStarted(fencing_token=1, replica="r"),
        run_pb2.ModelCallStarted(step=1, model="models/m"),
        run_pb2.ModelCallEnded(step=1, model="models/m", tool_calls=2),
    )
    for call_id in ("c0", "c1"):
        draft.add(
            run_pb2.ToolCallStarted(
                step=1, call_id=call_id, tool="agents/clerk", arguments=struct(1)
            ),
        )
    for number, call_id in enumerate(("c0", "c1")):
        draft.add(run_pb2.SubRunStarted(step=1, call_id=call_id, run=f"{RUN[:-1]}{number}"))
    draft.add(
        run_pb2.ToolCallEnded(
            step=1,
            call_id="c0",
            tool="agents/clerk",
            result=struct(1),
            run=f"{RUN[:-1]}0",
            usage=usage_pb2.Usage(calls=7),
            cost_nanos=9,
        )
    )
    return draft.progress


def test_a_sub_run_that_ended_counts_and_one_that_goes_on_is_started_anew() -> None:
    source = with_a_sub_run()
    assert isinstance(next_action(source), AwaitSubRuns)
    fork = fork_of(source, after_sequence(source).turns)
    action = next_action(fork)
    assert isinstance(action, CallTools)
    assert [(call.call_id, call.run, call.attempt) for call in action.calls] == [("c1", "", 1)]
    assert fork.tally.cost_nanos == fork.tally.calls == 0


def test_nothing_left_to_do_is_said_with_what_would_have_something() -> None:
    answered = Turn(2, 1, "42", run_pb2.ModelCallEnded(step=2))
    failing = run_pb2.ModelCallEnded(step=2)
    failing.error.code = 13
    accepted = run_pb2.Run(name=FORK, limits=run_pb2.RunLimits(max_steps=1))
    first = with_a_sub_run().turns[0]
    for turn, words in (
        (answered, "step 2 gave the answer; fork from an earlier event, or with from_step 2"),
        (replace(answered, ended=failing), "step 2 failed"),
    ):
        progress = begun(base_of(Progress(turns=(turn,)), 1), accepted)
        with pytest.raises(RemitError, match=words) as caught:
            check_goes_on(RUN, Point(9, 1), progress, field="from_sequence")
        assert caught.value.violations[0].field == "from_sequence"
    with pytest.raises(RemitError, match=r"overrides.limits.max_steps: the fork begins with 1 st"):
        check_goes_on(
            RUN, Point(9, 1), begun(base_of(Progress(turns=(first,)), 1), accepted), field="x"
        )


def test_overrides_are_named_and_the_rest_stays_as_it_was() -> None:
    limits = ASSISTANT.limits()
    limits.max_steps = 3
    source = run_pb2.Run(
        agent=ASSISTANT.full_name, task="t", context={"a": "b"}, limits=limits, priority=4
    )
    overrides = agent_service_pb2.RunOverrides(
        context=agent_service_pb2.RunContext(),
        limits=run_pb2.RunLimits(max_duration=duration_pb2.Duration(nanos=5)),
    )
    request = request_of(source, ASSISTANT, overrides, "r1")
    assert (request.task, dict(request.context), request.priority) == ("t", {}, 4)
    assert not request.limits.HasField("max_cost_nanos"), "the agent's own follows the agent"
    resolved = overridden(source, ASSISTANT, ASSISTANT, overrides, FixedClock().now()).limits
    assert (resolved.max_steps, resolved.max_duration.ToNanoseconds()) == (3, 5)
    fork = run_pb2.Run(
        task=request.task, context=request.context, limits=resolved, priority=request.priority
    )
    assert differences(source, fork) == ["context", "limits.max_duration"]
    overrides.limits.max_steps = 99
    with pytest.raises(RemitError, match=r"max_steps: must not be above") as caught:
        overridden(source, ASSISTANT, ASSISTANT, overrides, FixedClock().now())
    assert caught.value.violations[0].field == "overrides.limits.max_steps"


def test_no_other_version_can_be_asked_for() -> None:
    check_overrides(agent_service_pb2.RunOverrides(agent_version="current"))
    with pytest.raises(RemitError, match=r"overrides.agent_version: must be `current`"):
        check_overrides(agent_service_pb2.RunOverrides(agent_version="0" * 64))


def test_an_end_is_no_action_to_take_over() -> None:
    source = fold(begin().events)
    assert isinstance(next_action(fork_of(source, 0)), AskModel)
    assert not isinstance(next_action(fork_of(source, 0)), End)
