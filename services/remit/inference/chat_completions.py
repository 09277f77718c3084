"""The OpenAI chat completions protocol: a request as its JSON body, and an answer from its chunks.

Pure; see https://platform.openai.com/docs/api-reference/chat. Whatever a provider sends that is not
an answer is a `NotAnAnswer`, never a guess.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

from google.protobuf import json_format

from remit import names
from remit.api.inference.v1.inference_service_pb2 import GenerateTextRequest
from remit.api.inference.v1.message_pb2 import (
    FINISH_REASON_CONTENT_FILTER,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    ROLE_ASSISTANT,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    FinishReason,
    Message,
    Role,
    ToolCall,
    ToolDefinition,
)
from remit.api.usage.v1.usage_pb2 import Usage
from remit.inference.engine import EXACT_INTEGER_LIMIT, arguments_json
from remit.inference.token_probabilities import TokenProbabilities

MAX_TOOL_CALLS: Final = 128
MAX_ARGUMENT_DEPTH: Final = 60
_MAX_FUNCTION_NAME_CHARS: Final = 64
_MAX_COUNT: Final = 2**62
_FUNCTION_NAME: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{_MAX_FUNCTION_NAME_CHARS}}}")
_TOOL_PREFIX: Final = "tools/"
_ROLES: Final[dict[Role.ValueType, str]] = {
    ROLE_SYSTEM: "system",
    ROLE_USER: "user",
    ROLE_ASSISTANT: "assistant",
    ROLE_TOOL: "tool",
}
_FINISH_REASONS: Final[dict[str, FinishReason.ValueType]] = {
    "stop": FINISH_REASON_STOP,
    "length": FINISH_REASON_LENGTH,
    "tool_calls": FINISH_REASON_TOOL_CALLS,
    "function_call": FINISH_REASON_TOOL_CALLS,
    "content_filter": FINISH_REASON_CONTENT_FILTER,
}


class NotAnAnswer(Exception):  # noqa: N818 - the name says it
    """The provider sent something that is no answer; the message says what, without quoting it."""


class FunctionNames:
    """Tools as functions: the protocol allows only 64 of `A-Z a-z 0-9 _ -` in a name.

    A tool's name is used as it is where it fits; else what does not fit becomes `_` and a digest of
    the whole name keeps it unique.
    """

    def __init__(self, request: GenerateTextRequest) -> None:
        mentioned = {tool.name for tool in request.tools}
        mentioned |= {call.tool for message in request.messages for call in message.tool_calls}
        self._functions = {tool: _function_name(tool) for tool in sorted(mentioned)}
        self._tools = {function: tool for tool, function in self._functions.items()}

    def function(self, tool: str) -> str:
        """The function's name for a tool of the request."""
        return self._functions[tool]

    def tool(self, function: str) -> str:
        """The tool behind a function that a model named.

        A function that was not offered keeps its name: the tools service tells the model that there
        is none. Raises NotAnAnswer for what cannot be a tool's name.
        """
        known = self._tools.get(function)
        if known is not None:
            return known
        name = f"{_TOOL_PREFIX}{function}"
        if not names.is_name("tool", name):
            message = "it asks for a tool whose name is malformed"
            raise NotAnAnswer(message)
        return name


def request_body(
    request: GenerateTextRequest,
    *,
    model: str,
    max_tokens_parameter: str,
    functions: FunctionNames,
    logprobs: bool = False,
    continuous_usage: bool = False,
) -> dict[str, Any]:
    """The JSON body of POST /chat/completions; `max_output_tokens` must be set."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message, functions) for message in request.messages],
        max_tokens_parameter: request.max_output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if continuous_usage:
        body["stream_options"]["continuous_usage_stats"] = True
    if request.HasField("temperature"):
        body["temperature"] = request.temperature
    if logprobs:
        body["logprobs"] = True
    if request.tools:
        body["tools"] = [_tool(tool, functions) for tool in request.tools]
    return body


@dataclass
class _CallParts:
    call_id: str = ""
    function: str = ""
    arguments: list[str] = field(default_factory=list)


class Answer:
    """Puts an answer together from the chunks of a stream."""

    def __init__(self, functions: FunctionNames) -> None:
        self._functions = functions
        self._text: list[str] = []
        self._calls: dict[int, _CallParts] = {}
        self._finish_reason = ""
        self.generated_bytes = 0
        """UTF-8 bytes of text, tool calls and reasoning so far."""
        self.uncounted_bytes = 0
        """Of these, what came after the usage that was reported last."""
        self.probabilities = TokenProbabilities()
        """How sure the model was of the tokens so far."""
        self.usage: Usage | None = None
        """What the provider reported last; None if it did not or it makes no sense."""

    def add(self, chunk: object) -> str:
        """Takes a chunk in and returns the text that it brings. Raises NotAnAnswer."""
        content = _mapping(chunk, "a chunk")
        before_bytes = self.generated_bytes
        text = self._choices(content)
        self.uncounted_bytes += self.generated_bytes - before_bytes
        usage = _usage(content.get("usage"))
        if usage is not None:
            self.usage, self.uncounted_bytes = usage, 0
        return text

    def _choices(self, content: Mapping[str, Any]) -> str:
        choices = content.get("choices") or []
        if not isinstance(choices, list):
            message = "its choices are no list"
            raise NotAnAnswer(message)
        # The chunk with the usage has no choice.
        return self._choice(_mapping(choices[0], "a choice")) if choices else ""

    def finished(self) -> tuple[Message, FinishReason.ValueType]:
        """The whole turn and why it ended. Raises NotAnAnswer if it did not end properly."""
        if not self._finish_reason:
            message = "the stream ended without a finish_reason; the answer may be cut off"
            raise NotAnAnswer(message)
        reason = _FINISH_REASONS.get(self._finish_reason)
        if reason is None:
            message = "its finish_reason is not known"
            raise NotAnAnswer(message)
        cut_off = reason in {FINISH_REASON_LENGTH, FINISH_REASON_CONTENT_FILTER}
        calls = list(self._tool_calls(cut_off=cut_off))
        if reason == FINISH_REASON_TOOL_CALLS and not calls:
            message = "it says that it asks for tools and asks for none"
            raise NotAnAnswer(message)
        if calls and reason == FINISH_REASON_STOP:
            reason = FINISH_REASON_TOOL_CALLS
        text = "".join(self._text)
        return Message(role=ROLE_ASSISTANT, text=text, tool_calls=calls), reason

    def _choice(self, choice: Mapping[str, Any]) -> str:
        self._finish_reason = _string(choice.get("finish_reason")) or self._finish_reason
        self.probabilities.add(choice)
        delta = _mapping(choice.get("delta") or {}, "a delta")
        self._count(_string(delta.get("reasoning_content")) + _string(delta.get("reasoning")))
        # A refusal is what the model says instead of an answer.
        text = _string(delta.get("content")) + _string(delta.get("refusal"))
        self._count(text)
        self._text.append(text)
        calls = delta.get("tool_calls") or []
        if not isinstance(calls, list):
            message = "its tool calls are no list"
            raise NotAnAnswer(message)
        for position, part in enumerate(calls):
            self._call_part(_mapping(part, "a tool call"), position)
        return text

    def _call_part(self, part: Mapping[str, Any], position: int) -> None:
        # Servers that send a call in one chunk may leave its index out.
        index = part.get("index", position)
        if not isinstance(index, int) or not 0 <= index < MAX_TOOL_CALLS:
            message = f"a tool call has no index from 0 to {MAX_TOOL_CALLS - 1}"
            raise NotAnAnswer(message)
        call = self._calls.setdefault(index, _CallParts())
        function = _mapping(part.get("function") or {}, "a function")
        call.call_id = call.call_id or _string(part.get("id"))
        call.function = call.function or _string(function.get("name"))
        arguments = function.get("arguments")
        # Some servers send the object itself instead of its text.
        piece = json.dumps(arguments) if isinstance(arguments, dict) else _string(arguments)
        call.arguments.append(piece)
        self._count(piece + _string(function.get("name")))

    def _tool_calls(self, *, cut_off: bool) -> Iterable[ToolCall]:
        for index, parts in sorted(self._calls.items()):
            try:
                yield self._tool_call(index, parts)
            except NotAnAnswer:
                # The finish reason says that the answer was cut: this call was cut with it.
                if not cut_off:
                    raise

    def _tool_call(self, index: int, parts: _CallParts) -> ToolCall:
        call = ToolCall(
            id=parts.call_id or f"call_{index}", tool=self._functions.tool(parts.function)
        )
        arguments = _arguments("".join(parts.arguments))
        try:
            json_format.ParseDict(arguments, call.arguments, max_recursion_depth=MAX_ARGUMENT_DEPTH)
        except json_format.ParseError:
            message = "the arguments of a tool call cannot be represented"
            raise NotAnAnswer(message) from None
        return call

    def _count(self, text: str) -> None:
        self.generated_bytes += len(text.encode(errors="surrogatepass"))


def _message(message: Message, functions: FunctionNames) -> dict[str, Any]:
    body: dict[str, Any] = {"role": _ROLES[message.role], "content": message.text}
    if message.role == ROLE_TOOL:
        body["tool_call_id"] = message.tool_call_id
        if message.tool_error:
            body["content"] = f"Error: {message.text}"
    if message.tool_calls:
        body["content"] = message.text or None
        body["tool_calls"] = [_call(call, functions) for call in message.tool_calls]
    return body


def _call(call: ToolCall, functions: FunctionNames) -> dict[str, Any]:
    function = {"name": functions.function(call.tool), "arguments": arguments_json(call.arguments)}
    return {"id": call.id, "type": "function", "function": function}


def _tool(tool: ToolDefinition, functions: FunctionNames) -> dict[str, Any]:
    parameters = json.loads(tool.input_schema_json or '{"type":"object","properties":{}}')
    function = {
        "name": functions.function(tool.name),
        "description": tool.description,
        "parameters": parameters,
    }
    return {"type": "function", "function": function}


def _function_name(tool: str) -> str:
    name = tool.removeprefix(_TOOL_PREFIX)
    if _FUNCTION_NAME.fullmatch(name):
        return name
    digest = hashlib.sha256(tool.encode()).hexdigest()[:12]
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    return f"{plain[: _MAX_FUNCTION_NAME_CHARS - 13]}_{digest}"


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of a call, an object whose numbers a Struct holds exactly."""
    try:
        arguments = json.loads(text or "{}", parse_int=_exact_integer, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        message = "the arguments of a tool call are not JSON"
        raise NotAnAnswer(message) from None
    if not isinstance(arguments, dict):
        message = "the arguments of a tool call are no JSON object"
        raise NotAnAnswer(message)
    return arguments


def _exact_integer(digits: str) -> int:
    value = int(digits)
    if abs(value) > EXACT_INTEGER_LIMIT:
        message = "an argument of a tool call is a whole number beyond 2^53, which would be rounded"
        raise NotAnAnswer(message)
    return value


def _no_constant(_name: str) -> None:
    message = "an argument of a tool call is not a finite number"
    raise NotAnAnswer(message)


def _usage(reported: object) -> Usage | None:
    """Usage as reported; None if there is none or its counts contradict each other."""
    if not isinstance(reported, Mapping):
        return None
    details = reported.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
    prompt, completion = reported.get("prompt_tokens"), reported.get("completion_tokens")
    counts = [count for count in (prompt, completion, cached or 0) if _is_count(count)]
    if len(counts) < 3 or counts[2] > counts[0]:
        return None
    return Usage(
        input_tokens=counts[0], output_tokens=counts[1], cached_input_tokens=counts[2], calls=1
    )


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _MAX_COUNT


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        message = f"{what} of it is no JSON object"
        raise NotAnAnswer(message)
    return value


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""
