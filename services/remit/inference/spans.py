"""The span of a model call: around the engine itself, whoever asked for the turn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from google.protobuf import json_format

from remit.api.inference.v1 import message_pb2
from remit.api.inference.v1.inference_service_pb2 import GenerateTextRequest
from remit.effects import EffectResult, Permit
from remit.inference.engine import Turn, prompt_texts
from remit.inference.models import DeclaredModel
from remit.telemetry import Span, span, table
from remit.telemetry.content import capture
from remit.telemetry.spans import Kind


@contextlib.contextmanager
def chat(model: DeclaredModel, request: GenerateTextRequest, permit: Permit) -> Iterator[Span]:
    """The span of one generation, with the counts and lengths of its prompt."""
    name = model.name.removeprefix("models/")
    with span(f"{table.CHAT} {name}", kind=Kind.CLIENT) as opened:
        if opened.place is not None:
            opened.set(table.GEN_AI_OPERATION, table.CHAT)
            opened.set(table.GEN_AI_PROVIDER, model.declaration.engine)
            opened.set(table.GEN_AI_REQUEST_MODEL, name)
            opened.set(table.GEN_AI_REQUEST_MAX_TOKENS, request.max_output_tokens)
            opened.set(table.MESSAGES, len(request.messages))
            opened.set(table.PROMPT_BYTES, sum(len(t.encode()) for t in prompt_texts(request)))
            opened.set(table.CLAIM, permit.claim)
            opened.set(table.ATTEMPT, permit.attempt)
            capture(opened, table.GEN_AI_INPUT_MESSAGES, lambda: _messages(request.messages))
        yield opened


def ended(opened: Span, result: EffectResult, turn: Turn | None) -> None:
    """What came of it: what it used, and why it ended."""
    if opened.place is None:
        return
    opened.set(table.GEN_AI_INPUT_TOKENS, result.used.input_tokens)
    opened.set(table.GEN_AI_CACHED_TOKENS, result.used.cached_input_tokens)
    opened.set(table.GEN_AI_OUTPUT_TOKENS, result.used.output_tokens)
    opened.set(table.OUTCOME, result.outcome)
    if result.error is not None:
        opened.failed(result.error.reason_name)
    if turn is not None:
        reason = message_pb2.FinishReason.Name(turn.finish_reason)
        opened.set(table.GEN_AI_FINISH_REASONS, (reason.removeprefix("FINISH_REASON_").lower(),))
        opened.set(table.TOOL_CALLS, len(turn.message.tool_calls))
        opened.set(table.TEXT_BYTES, len(turn.message.text.encode()))
        capture(opened, table.GEN_AI_OUTPUT_MESSAGES, lambda: _messages([turn.message]))


def _messages(messages: Sequence[message_pb2.Message]) -> list[dict[str, object]]:
    """Messages in the form of the conventions: a role and its parts."""
    return [{"role": _role(message), "parts": _parts(message)} for message in messages]


def _role(message: message_pb2.Message) -> str:
    return message_pb2.Role.Name(message.role).removeprefix("ROLE_").lower()


def _parts(message: message_pb2.Message) -> list[dict[str, object]]:
    if message.role == message_pb2.ROLE_TOOL:
        answer = {"id": message.tool_call_id, "response": message.text}
        return [{"type": "tool_call_response", **answer}]
    parts: list[dict[str, object]] = []
    if message.text:
        parts.append({"type": "text", "content": message.text})
    for call in message.tool_calls:
        arguments = json_format.MessageToDict(call.arguments)
        parts.append(
            {"type": "tool_call", "id": call.id, "name": call.tool, "arguments": arguments}
        )
    return parts
