"""The conversation that a journal leads to: stable, delimited, keyed."""

from __future__ import annotations

import json

import pytest
from google.protobuf import json_format, struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from remit.agent.conversation import (
    Offer,
    messages,
    model_key,
    model_request,
    result_text,
    system_text,
    tool_key,
    unique_call_ids,
)
from remit.agent.decisions import AskModel, next_action
from remit.agent.definitions import load_catalog
from remit.agent.fallback import Rules
from remit.agent.journal import Progress, ToolCall, fold
from remit.agent.offers import pinned, unpinned
from remit.api.agent.v1 import run_pb2
from remit.api.inference.v1 import message_pb2
from remit.api.tools.v1 import tool_pb2
from tests.agent.histories import RUN, histories, ruled_histories

ASSISTANT = load_catalog(None).get("agents/assistant")


@given(histories())
def test_turns_alternate_and_every_call_is_answered(events: list[run_pb2.RunEvent]) -> None:
    for cut in range(1, len(events) + 1):
        told = messages(fold(events[:cut]), ASSISTANT)
        assert [m.role for m in told[:2]] == [message_pb2.ROLE_SYSTEM, message_pb2.ROLE_USER]
        open_calls: list[str] = []
        for message in told[2:]:
            if message.role == message_pb2.ROLE_ASSISTANT:
                assert open_calls == []
                open_calls = [call.id for call in message.tool_calls]
            else:
                assert message.tool_call_id == open_calls.pop(0)
        assert open_calls == []


@given(ruled_histories())
def test_the_conversation_that_models_are_told_only_grows(
    history: tuple[Rules, list[run_pb2.RunEvent]],
) -> None:
    rules, events = history
    longest: list[message_pb2.Message] = []
    for cut in range(1, len(events) + 1):
        progress = fold(events[:cut], Progress(rules=rules))
        if not isinstance(next_action(progress), AskModel):
            continue
        told = messages(progress, ASSISTANT)
        assert told[: len(longest)] == longest
        longest = told


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=50), min_size=1, max_size=5))
def test_no_fact_can_leave_its_delimiters(context: dict[str, str]) -> None:
    text = system_text("Do it.", context)
    inside = text.split("<context>")[1].split("</context>")[0]
    assert text.count("<context>") == text.count("</context>") == 1
    assert json.loads(inside) == context


def test_without_context_the_instructions_stand_alone() -> None:
    assert system_text("Do it.", {}) == "Do it."


def test_facts_are_in_one_order() -> None:
    assert system_text("x", {"a": "1", "b": "2"}) == system_text("x", {"b": "2", "a": "1"})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"value": 391}, '{"value": 391}'),
        ({"value": 0.5, "b": [1, 2.5], "a": None}, '{"a": null, "b": [1, 2.5], "value": 0.5}'),
        ({"big": 1e300}, '{"big": 1e+300}'),
        ({"text": "naïve"}, '{"text": "naïve"}'),
    ],
)
def test_results_have_one_form(content: dict[str, object], text: str) -> None:
    struct = struct_pb2.Struct()
    json_format.ParseDict(content, struct)
    assert result_text(struct) == text


@given(st.lists(st.one_of(st.just(""), st.just("same"), st.text(max_size=80)), max_size=8))
def test_call_ids_are_unique_and_fit_a_key(ids: list[str]) -> None:
    found = unique_call_ids([message_pb2.ToolCall(id=i) for i in ids])
    assert len(set(found)) == len(ids)
    for call_id in found:
        call = ToolCall(call_id, "tools/t", struct_pb2.Struct(), attempt=10)
        assert len(tool_key(RUN, 100, call)) <= 128


def test_keys_name_run_step_and_attempt() -> None:
    call = ToolCall("c1", "tools/t", struct_pb2.Struct())
    assert model_key(RUN, 2) == f"{RUN}/steps/2/model"
    assert model_key(RUN, 2, 2) == f"{RUN}/steps/2/model/2"
    assert tool_key(RUN, 2, call) == f"{RUN}/steps/2/tools/c1"


@given(histories())
def test_a_request_is_the_same_after_its_offer_was_stored(events: list[run_pb2.RunEvent]) -> None:
    offer = Offer((tool_pb2.Tool(name="tools/t", description="d", idempotent=True),))
    again = unpinned(pinned(offer).data)
    progress = fold(events[:-1])
    assert again.is_idempotent("tools/t")
    assert not again.is_idempotent("tools/other")
    assert model_request(progress, ASSISTANT, offer, 1) == model_request(
        progress, ASSISTANT, again, 1
    )
