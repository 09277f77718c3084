"""What users and models wrote is on spans only where a setting asks for it, and bounded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from google.protobuf import struct_pb2

from remit.api.inference.v1 import message_pb2
from remit.api.inference.v1.inference_service_pb2 import GenerateTextRequest
from remit.api.usage.v1.usage_pb2 import Usage
from remit.cli.serve import _traced, load_settings
from remit.effects import Callers, EffectResult, Hold, Outcome, Permit
from remit.guardrails import Rules
from remit.inference import spans
from remit.inference.declarations import SHIPPED_FILE, load_models
from remit.inference.engine import Turn
from remit.inference.models import DeclaredModel, build_catalog
from remit.telemetry import fresh, table, within
from remit.telemetry.content import CUT
from remit.tools import tool
from remit.tools.effect import ToolEffect
from tests.telemetry.collector import running_collector
from tests.telemetry.tracing import recorded
from tests.tools.calls import Caller, context_of, struct
from tests.waiting import eventually

SECRET = "a text that only its owner should read"
CHARS = 70
"""Enough for a part of the secret in the form of the conventions."""
CONTENT_OF = {
    "inference": {table.GEN_AI_INPUT_MESSAGES, table.GEN_AI_OUTPUT_MESSAGES},
    "tools": {table.GEN_AI_TOOL_ARGUMENTS, table.GEN_AI_TOOL_RESULT},
}


def a_permit() -> Permit:
    return Permit("key", "claims/1", 1, Callers("token", 0, deadline=0.0), cast("Hold", None))


def a_prompt() -> GenerateTextRequest:
    arguments = struct_pb2.Struct()
    arguments.update({"expression": SECRET})
    call = message_pb2.ToolCall(id="call-1", tool="tools/calculator", arguments=arguments)
    messages = [
        message_pb2.Message(role=message_pb2.ROLE_USER, text=SECRET),
        message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, tool_calls=[call]),
        message_pb2.Message(role=message_pb2.ROLE_TOOL, tool_call_id="call-1", text=SECRET),
    ]
    return GenerateTextRequest(messages=messages, max_output_tokens=100)


def a_model() -> DeclaredModel:
    models = load_models(SHIPPED_FILE)
    catalog = build_catalog(models, max_answer_bytes=1_000_000, max_connections=1)
    return catalog.get("models/builtin-rules")


async def chat() -> None:
    """One model call, as inference makes it."""
    turn = Turn(
        message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, text=SECRET),
        message_pb2.FINISH_REASON_STOP,
        Usage(input_tokens=7, output_tokens=3),
    )
    with spans.chat(a_model(), a_prompt(), a_permit()) as opened:
        spans.ended(opened, EffectResult(Outcome.SUCCEEDED, turn.usage), turn)


async def chatted(content_chars: int) -> dict[str, Any]:
    """The attributes of one model call's span."""
    with recorded(content_chars=content_chars) as recorder:
        await chat()
        (made,) = recorder.spans().values()
    return dict(made.attributes or {})


async def use_a_tool(workspace: Path) -> None:
    """One tool call, as tools makes it."""

    @tool(permission_class="none")
    async def echo(text: str) -> dict[str, str]:
        """Says the text again."""
        return {"again": text}

    caller = Caller(echo, workspace)
    effect = ToolEffect(
        caller.definition,
        {"text": 2 * SECRET},
        caller.execution,
        lambda _: context_of(workspace),
        Rules(),
        struct({"text": 2 * SECRET}),
    )
    assert (await effect(a_permit())).outcome is Outcome.SUCCEEDED


async def test_counts_and_lengths_are_there_and_no_content() -> None:
    attributes = await chatted(0)
    assert SECRET not in str(attributes)
    assert not set(attributes) & table.CONTENT
    assert attributes[table.GEN_AI_OUTPUT_TOKENS] == 3
    assert attributes[table.MESSAGES] == 3
    assert attributes[table.TEXT_BYTES] == len(SECRET)
    assert attributes[table.GEN_AI_FINISH_REASONS] == ("stop",)


async def test_content_that_is_asked_for_has_the_form_of_the_conventions() -> None:
    attributes = await chatted(4096)
    messages = json.loads(attributes[table.GEN_AI_INPUT_MESSAGES])
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[0]["parts"] == [{"type": "text", "content": SECRET}]
    assert messages[1]["parts"][0]["arguments"] == {"expression": SECRET}
    assert messages[2]["parts"] == [
        {"type": "tool_call_response", "id": "call-1", "response": SECRET}
    ]
    (answer,) = json.loads(attributes[table.GEN_AI_OUTPUT_MESSAGES])
    assert answer["parts"] == [{"type": "text", "content": SECRET}]


async def test_content_is_cut_at_its_bound() -> None:
    attributes = await chatted(20)
    for name in (table.GEN_AI_INPUT_MESSAGES, table.GEN_AI_OUTPUT_MESSAGES):
        assert len(attributes[name]) == 20
        assert attributes[name].endswith("…")


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("area", ["inference", "tools"])
async def test_a_setting_of_the_service_decides(
    *, area: str, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_collector() as collector:
        for name, value in (
            ("ENDPOINT", collector.endpoint),
            ("CONTENT", str(asked)),
            ("CONTENT_CHARS", str(CHARS)),
        ):
            monkeypatch.setenv(f"REMIT_{area.upper()}_TRACE_{name}", value)
        with _traced(area, load_settings(area)), within(replace(fresh(), sampled=True)):
            await (chat() if area == "inference" else use_a_tool(tmp_path))
        (made,) = await eventually(collector.everything)
    content = {name: made.attributes[name] for name in made.attributes.keys() & table.CONTENT}
    assert set(content) == (CONTENT_OF[area] if asked else set())
    assert (SECRET[:10] in made.text) is asked
    assert all(len(text) <= CHARS for text in content.values())
    assert any(text.endswith(CUT) for text in content.values()) is asked
