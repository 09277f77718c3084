"""A replay finds no difference in what this code journalled, and the first one in anything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from remit.agent.definitions import OnDoubt
from remit.agent.differences import MAX_VALUE_CHARS, parts_that_differ, shown
from remit.agent.fallback import FallbackRule, Rules
from remit.agent.forks import after_sequence, base_of
from remit.agent.journal import Progress, fold
from remit.agent.logbook import Draft
from remit.agent.replay import Replay, Script
from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.inference.v1 import inference_service_pb2, message_pb2
from remit.rpc.errors import RemitError
from tests.agent.histories import (
    DEFINITION,
    OFFER,
    RUN,
    FixedClock,
    Player,
    begin,
    definition_of,
    ruled_histories,
)

plain_histories = ruled_histories((Rules(),)).map(lambda history: history[1])
"""Of an agent without rules."""
SCRIPT = Script(DEFINITION, OFFER, (), max_doubt_attempts=10)


def replayed(
    events: list[run_pb2.RunEvent], script: Script = SCRIPT, base: Progress | None = None
) -> tuple[agent_service_pb2.Divergence | None, Replay]:
    replay = Replay(script, base or Progress())
    for event in events:
        found = replay.take(event)
        if found is not None:
            return found, replay
    return None, replay


def asked(events: list[run_pb2.RunEvent]) -> list[run_pb2.RunEvent]:
    return [event for event in events if event.HasField("model_call_ended")]


@given(ruled_histories())
def test_what_this_code_journalled_does_not_differ(
    history: tuple[Rules, list[run_pb2.RunEvent]],
) -> None:
    rules, events = history
    script = replace(SCRIPT, definition=definition_of(rules))
    for cut in range(1, len(events) + 1):
        found, replay = replayed(events[:cut], script)
        assert found is None
        assert replay.progress == fold(events[:cut], Progress(rules=rules))
        assert replay.requests_compared == len(asked(events[:cut]))
        assert replay.requests_unrecorded == 0


@given(st.data(), plain_histories)
def test_a_fork_s_own_journal_does_not_differ_either(
    data: st.DataObject, events: list[run_pb2.RunEvent]
) -> None:
    source = fold(events[: data.draw(st.integers(min_value=1, max_value=len(events)))])
    base = base_of(source, after_sequence(source).turns)
    draft = Draft(RUN, base, FixedClock())
    run = run_pb2.Run()
    run.CopyFrom(source.accepted)
    draft.add(run_pb2.RunCreated(run=run))
    player = Player(data.draw, draft)
    player.play()
    found, replay = replayed(draft.events, base=base)
    assert found is None
    assert replay.progress == draft.progress


@given(plain_histories)
def test_journals_from_before_digests_say_so(events: list[run_pb2.RunEvent]) -> None:
    for event in asked(events):
        event.model_call_ended.ClearField("request_digest")
    found, replay = replayed(events)
    assert found is None
    assert replay.requests_compared == 0
    failed = [e for e in asked(events) if e.model_call_ended.HasField("error")]
    assert replay.requests_unrecorded == len(asked(events)) - len(failed)


def spoil_digest(event: run_pb2.RunEvent) -> str:
    event.model_call_ended.request_digest = bytes(32)
    return "model_call_ended.request_digest"


def spoil_model(event: run_pb2.RunEvent) -> str:
    event.model_call_started.model = "models/other"
    return "model_call_started.model"


def spoil_stage(event: run_pb2.RunEvent) -> str:
    event.stage_started.stage = "dreaming"
    return "stage_started.stage"


def spoil_cost(event: run_pb2.RunEvent) -> str:
    event.ended.run.cost_nanos += 1
    return "ended.run.cost_nanos"


def spoil_result(event: run_pb2.RunEvent) -> str:
    event.ended.run.result += "!"
    return "ended.run.result"


def spoil_usage(event: run_pb2.RunEvent) -> str:
    event.ended.run.usage.input_tokens += 1
    return "ended.run.usage"


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("model_call_ended", spoil_digest),
        ("model_call_started", spoil_model),
        ("stage_started", spoil_stage),
        ("ended", spoil_cost),
        ("ended", spoil_result),
        ("ended", spoil_usage),
    ],
)
@given(data=st.data(), events=plain_histories)
def test_the_first_thing_that_was_changed_is_named(
    kind: Any, spoil: Callable[[run_pb2.RunEvent], str], data: st.DataObject, events: Any
) -> None:
    of_kind = [event for event in events if event.HasField(kind)]
    if not of_kind:
        return
    first = data.draw(st.sampled_from(of_kind))
    field = spoil(first)
    for later in of_kind[of_kind.index(first) + 1 :]:
        spoil(later)
    found, _ = replayed(events)
    assert found is not None
    assert (found.sequence, found.field) == (first.sequence, field)
    assert found.recorded != found.replayed


@given(plain_histories)
def test_other_instructions_differ_in_the_first_request(events: list[run_pb2.RunEvent]) -> None:
    other = DEFINITION.model_copy(update={"instructions": "Play well."})
    script = replace(SCRIPT, definition=other, recorded=(DEFINITION, OFFER))
    found, _ = replayed(events, script)
    if not asked(events):
        assert found is None
        return
    assert found is not None
    assert found.sequence == asked(events)[0].sequence
    assert found.field == "request.messages[0].text"
    assert (found.recorded[:6], found.replayed[:11]) == ("Play.\n", "Play well.\n")


@given(plain_histories)
def test_other_limits_differ_where_the_run_would_have_ended(
    events: list[run_pb2.RunEvent],
) -> None:
    calls_tools = any(event.HasField("tool_call_started") for event in events)
    wished = run_pb2.Run()
    wished.CopyFrom(events[0].created.run)
    wished.limits.max_steps = 1
    found, _ = replayed(events, replace(SCRIPT, accepted=wished))
    assert (found is not None) == calls_tools
    if found is not None:
        assert (found.step, found.field) == (1, "event")
        assert found.replayed == "end: FAILED RUN_LIMIT_REACHED"


@given(plain_histories)
def test_an_agent_that_repeats_nothing_differs_where_something_was_repeated(
    events: list[run_pb2.RunEvent],
) -> None:
    other = DEFINITION.model_copy(update={"on_doubt": OnDoubt.FAIL})
    found, _ = replayed(events, replace(SCRIPT, definition=other))
    calls = [
        (e.tool_call_started.step, e.tool_call_started.call_id)
        for e in events
        if e.HasField("tool_call_started")
    ]
    assert (found is None) == (len(calls) == len(set(calls)))
    assert found is None or found.recorded == "call again what is in doubt"


@given(ruled_histories((Rules(FallbackRule(model="n")),)))
def test_an_agent_without_a_second_model_differs_where_one_was_asked(
    history: tuple[Rules, list[run_pb2.RunEvent]],
) -> None:
    rules, events = history
    for event in asked(events):  # whether the model measures is part of what it is asked
        event.model_call_ended.ClearField("request_digest")
    fell_back = [event for event in events if event.HasField("model_fallback")]
    found, _ = replayed(events)
    ruled, _ = replayed(events, replace(SCRIPT, definition=definition_of(rules)))
    assert ruled is None
    assert (found is None) == (not fell_back)
    if found is not None:
        assert (found.sequence, found.field) == (fell_back[0].sequence, "event")
        assert found.recorded == "model_fallback"


def test_a_journal_that_cannot_be_is_corrupt() -> None:
    draft = begin()
    draft.events[0].sequence = 2
    with pytest.raises(RemitError, match=r"event 2 .* is not the next in sequence"):
        replayed(draft.events)


def test_the_path_leads_to_the_field() -> None:
    def request(**more: Any) -> inference_service_pb2.GenerateTextRequest:
        return inference_service_pb2.GenerateTextRequest(model="models/m", **more)

    def paths(one: Any, other: Any) -> list[tuple[str, str, str]]:
        return list(parts_that_differ("request", one, other))

    said = message_pb2.Message(text="a")
    assert paths(request(), request(temperature=0.0)) == [("request.temperature", "", "0.0")]
    assert paths(request(), request()) == []
    assert paths(request(messages=[said]), request()) == [
        ("request.messages[0]", '{"text": "a"}', "")
    ]
    tools = [message_pb2.ToolDefinition(name="tools/a")]
    others = [message_pb2.ToolDefinition(name="tools/b")]
    assert paths(request(tools=tools), request(tools=others)) == [
        ("request.tools[0].name", "tools/a", "tools/b")
    ]
    call = message_pb2.ToolCall(id="c")
    other = message_pb2.ToolCall(id="c")
    call.arguments.update({"a": 1})
    other.arguments.update({"a": 2})
    (found,) = parts_that_differ("call", call, other)
    assert found[0] == "call.arguments.fields"


@given(st.text(min_size=1, max_size=1000), st.text(max_size=1000), st.text(max_size=1000))
def test_what_is_shown_is_bounded_and_shows_the_difference(same: str, one: str, other: str) -> None:
    assume(one != other)
    left, right = shown(same + one, same + other)
    assert max(len(left), len(right)) <= MAX_VALUE_CHARS
    assert left != right
