"""What a request must look like before it may cost anything; every violation is told at once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from google.protobuf import struct_pb2

from remit import names
from remit.api.inference.v1.inference_service_pb2 import GenerateTextRequest
from remit.api.inference.v1.message_pb2 import (
    ROLE_ASSISTANT,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    Message,
    ToolCall,
    ToolDefinition,
)
from remit.rpc.errors import Violation

MAX_MESSAGES: Final = 4_096
MAX_TOOLS: Final = 256
MAX_REQUEST_ID_CHARS: Final = 128
MAX_DESCRIPTION_CHARS: Final = 16_384
MAX_TEMPERATURE: Final = 2.0
MAX_CALL_ID_CHARS: Final = 128
MAX_VIOLATIONS: Final = 64
"""More would not fit into the metadata that carries an error."""

_NOT_CALLABLE: Final = "must be the name of a tool, such as tools/search, or of an agent"
_ROLES: Final = frozenset({ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, ROLE_TOOL})


def violations_of(
    request: GenerateTextRequest, *, max_output_tokens: int | None, prefix: str = ""
) -> list[Violation]:
    """Every fault of the request, at most `MAX_VIOLATIONS`; `prefix` goes before each field.

    `max_output_tokens` is the model's limit, None if the model is not known.
    """
    found = [
        *_scalars(request, max_output_tokens),
        *_tools(request.tools),
        *_messages(request.messages),
    ]
    return [Violation(f"{prefix}{v.field}", v.description) for v in found[:MAX_VIOLATIONS]]


def _scalars(request: GenerateTextRequest, limit: int | None) -> Iterator[Violation]:
    if not names.is_name("model", request.model):
        yield Violation("model", "must be the name of a model, such as models/builtin-rules")
    key = request.request_id
    if not (1 <= len(key) <= MAX_REQUEST_ID_CHARS and key.isprintable()):
        yield Violation("request_id", f"must have 1 to {MAX_REQUEST_ID_CHARS} printable characters")
    if request.max_output_tokens < 0:
        yield Violation("max_output_tokens", "must not be negative")
    elif limit is not None and request.max_output_tokens > limit:
        yield Violation("max_output_tokens", f"must be at most {limit}, the limit of the model")
    temperature = request.temperature
    if not (math.isfinite(temperature) and 0 <= temperature <= MAX_TEMPERATURE):
        yield Violation("temperature", f"must be from 0 to {MAX_TEMPERATURE:g}")


def _tools(tools: Sequence[ToolDefinition]) -> Iterator[Violation]:
    if len(tools) > MAX_TOOLS:
        yield Violation("tools", f"must be at most {MAX_TOOLS}")
        return
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        field = f"tools[{index}]"
        if not _may_be_called(tool.name):
            yield Violation(f"{field}.name", _NOT_CALLABLE)
        elif tool.name in seen:
            yield Violation(f"{field}.name", f"{tool.name} is offered twice")
        seen.add(tool.name)
        if len(tool.description) > MAX_DESCRIPTION_CHARS:
            yield Violation(
                f"{field}.description", f"must have at most {MAX_DESCRIPTION_CHARS} characters"
            )
        if not _is_object_schema(tool.input_schema_json):
            yield Violation(f"{field}.input_schema_json", "must be a JSON object: a JSON Schema")


def _messages(messages: Sequence[Message]) -> Iterator[Violation]:
    if not 1 <= len(messages) <= MAX_MESSAGES:
        yield Violation("messages", f"must be 1 to {MAX_MESSAGES}")
        return
    for index, message in enumerate(messages):
        yield from _message(f"messages[{index}]", message)
    yield from _order(messages)
    yield from _answers(messages)


def _message(field: str, message: Message) -> Iterator[Violation]:
    if message.role not in _ROLES:
        yield Violation(f"{field}.role", "must be SYSTEM, USER, ASSISTANT or TOOL")
    if message.tool_calls and message.role != ROLE_ASSISTANT:
        yield Violation(f"{field}.tool_calls", "only an ASSISTANT turn asks for tools")
    if (message.tool_call_id or message.tool_error) and message.role != ROLE_TOOL:
        yield Violation(f"{field}.tool_call_id", "only a TOOL turn answers a call")
    if message.role in {ROLE_SYSTEM, ROLE_USER} and not message.text.strip():
        yield Violation(f"{field}.text", "must not be empty")
    if message.role == ROLE_ASSISTANT and not (message.text.strip() or message.tool_calls):
        yield Violation(f"{field}.text", "must not be empty in a turn that asks for no tool")
    yield from _tool_calls(field, message.tool_calls)


def _tool_calls(field: str, calls: Sequence[ToolCall]) -> Iterator[Violation]:
    seen: set[str] = set()
    for index, call in enumerate(calls):
        at = f"{field}.tool_calls[{index}]"
        if not 1 <= len(call.id) <= MAX_CALL_ID_CHARS:
            yield Violation(f"{at}.id", f"must have 1 to {MAX_CALL_ID_CHARS} characters")
        elif call.id in seen:
            yield Violation(f"{at}.id", "stands twice in the turn")
        seen.add(call.id)
        if not _may_be_called(call.tool):
            yield Violation(f"{at}.tool", _NOT_CALLABLE)
        if not all(map(_is_json, call.arguments.fields.values())):
            yield Violation(f"{at}.arguments", "must be JSON: every number finite")


def _may_be_called(name: str) -> bool:
    """Whether it is the name of a tool, or of an agent that does a part of the task."""
    return names.is_name("tool", name) or names.is_name("agent", name)


def _is_json(value: struct_pb2.Value) -> bool:
    """Whether JSON has the value; a Struct also holds NaN and infinity."""
    if value.HasField("number_value"):
        return math.isfinite(value.number_value)
    if value.HasField("struct_value"):
        return all(map(_is_json, value.struct_value.fields.values()))
    return all(map(_is_json, value.list_value.values))


def _order(messages: Sequence[Message]) -> Iterator[Violation]:
    """Instructions come first, then a user speaks, and the model is not asked after itself."""
    spoken = [index for index, m in enumerate(messages) if m.role != ROLE_SYSTEM]
    if not spoken:
        yield Violation("messages", "must hold a USER turn")
        return
    late = (i for i, m in enumerate(messages) if m.role == ROLE_SYSTEM and i > spoken[0])
    for index in late:
        yield Violation(f"messages[{index}].role", "SYSTEM turns stand before all others")
    if messages[spoken[0]].role != ROLE_USER:
        yield Violation(f"messages[{spoken[0]}].role", "the first turn must be the USER's")
    if messages[spoken[-1]].role == ROLE_ASSISTANT:
        yield Violation(f"messages[{spoken[-1]}].role", "the last turn must be USER's or TOOL's")


def _answers(messages: Sequence[Message]) -> Iterator[Violation]:
    """Every call is answered by one TOOL turn right after it, and every TOOL turn answers one."""
    waiting: list[str] = []
    for index, message in enumerate(messages):
        if message.role == ROLE_TOOL:
            if message.tool_call_id in waiting:
                waiting.remove(message.tool_call_id)
            else:
                text = "must be a call of the ASSISTANT turn before that is not answered yet"
                yield Violation(f"messages[{index}].tool_call_id", text)
            continue
        yield from _unanswered(waiting, index)
        waiting = [call.id for call in message.tool_calls]
    yield from _unanswered(waiting, len(messages))


def _unanswered(waiting: Iterable[str], index: int) -> Iterator[Violation]:
    missing = list(waiting)
    if missing:
        yield Violation(
            f"messages[{index}]", f"{len(missing)} tool calls before it have no TOOL turn"
        )


def _is_object_schema(text: str) -> bool:
    """Whether it is a JSON object; an empty text stands for a tool without arguments."""
    try:
        return not text or isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
