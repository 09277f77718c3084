"""What users and models wrote is on spans only where a setting asks for it, and bounded."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from google.protobuf import struct_pb2

from remit.api.inference.v1 import message_pb2
from remit.api.inference.v1.inference_service_pb2 import GenerateTextRequest
from remit.api.usage.v1.usage_pb2 import Usage
from remit.effects import EffectResult, Outcome, Permit
from remit.inference import spans
from remit.inference.declarations import SHIPPED_FILE, load_models
from remit.inference.engine import Turn
from remit.inference.models import DeclaredModel, build_catalog
from remit.telemetry import table
from tests.telemetry.tracing import recorded

SECRET = "a text that only its owner should read"


def a_permit() -> Permit:
    return Permit("key", "claims/1", 1, 0.0, asyncio.Event())


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


def chatted(content_chars: int) -> dict[str, Any]:
    """The attributes of one model call's span."""
    turn = Turn(
        message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, text=SECRET),
        message_pb2.FINISH_REASON_STOP,
        Usage(input_tokens=7, output_tokens=3),
    )
    with recorded(content_chars=content_chars) as recorder:
        with spans.chat(a_model(), a_prompt(), a_permit()) as opened:
            spans.ended(opened, EffectResult(Outcome.SUCCEEDED, turn.usage), turn)
        (made,) = recorder.spans().values()
    return dict(made.attributes or {})


def test_counts_and_lengths_are_there_and_no_content() -> None:
    attributes = chatted(0)
    assert SECRET not in str(attributes)
    assert not set(attributes) & table.CONTENT
    assert attributes[table.GEN_AI_OUTPUT_TOKENS] == 3
    assert attributes[table.MESSAGES] == 3
    assert attributes[table.TEXT_BYTES] == len(SECRET)
    assert attributes[table.GEN_AI_FINISH_REASONS] == ("stop",)


def test_content_that_is_asked_for_has_the_form_of_the_conventions() -> None:
    attributes = chatted(4096)
    messages = json.loads(attributes[table.GEN_AI_INPUT_MESSAGES])
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[0]["parts"] == [{"type": "text", "content": SECRET}]
    assert messages[1]["parts"][0]["arguments"] == {"expression": SECRET}
    assert messages[2]["parts"] == [
        {"type": "tool_call_response", "id": "call-1", "response": SECRET}
    ]
    (answer,) = json.loads(attributes[table.GEN_AI_OUTPUT_MESSAGES])
    assert answer["parts"] == [{"type": "text", "content": SECRET}]


def test_content_is_cut_at_its_bound() -> None:
    attributes = chatted(20)
    for name in (table.GEN_AI_INPUT_MESSAGES, table.GEN_AI_OUTPUT_MESSAGES):
        assert len(attributes[name]) == 20
        assert attributes[name].endswith("…")
