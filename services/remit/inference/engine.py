"""What an engine is: it turns a prompt into pieces of one assistant turn, and can bound its bill.

Engines are small and know nothing of remits, budgets or claims. The gate asks for the bound before
anything starts and posts the usage afterwards.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from google.protobuf import json_format, struct_pb2

from remit.api.inference.v1.inference_service_pb2 import GenerateTextRequest
from remit.api.inference.v1.message_pb2 import ROLE_TOOL, FinishReason, Message, ToolDefinition
from remit.api.usage.v1.usage_pb2 import Usage
from remit.rpc.clock import Clock, SystemClock

# What a provider's chat template puts around a prompt, in tokens, generously: the published
# templates use 3 to 8 tokens a message and under 20 for the tool preamble.
PROMPT_FRAMING_TOKENS: Final = 64
MESSAGE_FRAMING_TOKENS: Final = 16
TOOL_FRAMING_TOKENS: Final = 32
BYTES_PER_COUNTED_TOKEN: Final = 4
EXACT_INTEGER_LIMIT: Final = 2**53
_MAX_REMEMBERED: Final = 256
_MAX_REMEMBERED_CHARS: Final = 16_384


@dataclass(frozen=True)
class TextDelta:
    """More text of the turn; never empty."""

    text: str


@dataclass(frozen=True)
class Turn:
    """The whole turn, the last piece of every generation that does not fail."""

    message: Message
    finish_reason: FinishReason.ValueType
    usage: Usage
    confidence: float | None = None
    """How sure the answer is, from 0 to 1; None where the engine does not know."""


@dataclass(frozen=True)
class Growth:
    """The turn has come to, or is about to come to, so many output tokens at most.

    An engine that waits for its reader says so before it generates them, any other once they came.
    It is asked for the next piece when they are held.
    """

    tokens: int


Piece = TextDelta | Growth | Turn


@dataclass
class Progress:
    """How far a generation got, kept up by the engine: what is owed if it fails or is stopped."""

    owed: bool = False
    """Whether the engine may charge for it. False again once a provider refused the request."""
    generated_bytes: int = 0
    """UTF-8 bytes of what was generated so far, tool calls and reasoning included."""
    reported: Usage | None = None
    """What the provider says that it used."""
    uncounted_bytes: int = 0
    """Of `generated_bytes`, what came after that."""
    clock: Clock = field(default_factory=SystemClock)
    first_chunk_time: float | None = None
    """When the stream's first chunk came, by the monotonic clock; None while none has."""

    def chunk_received(self) -> None:
        """Told of each chunk of the stream, whether it holds text or not."""
        if self.first_chunk_time is None:
            self.first_chunk_time = self.clock.monotonic()


class Engine(Protocol):
    """Serves one declared model."""

    @property
    def stop_stops_bill(self) -> bool:
        """Whether a generation that is stopped costs nothing more from then on."""
        ...

    @property
    def unsent_tokens(self) -> int:
        """The most that it may have generated and not sent when it is stopped; 0: it waits."""
        ...

    @property
    def measures_confidence(self) -> bool:
        """Whether it can say how sure its answers are."""
        ...

    def bound(self, request: GenerateTextRequest) -> Usage:
        """The most that `request` can use. `max_output_tokens` must be set."""
        ...

    def generate(
        self, request: GenerateTextRequest, progress: Progress
    ) -> AsyncGenerator[Piece, None]:
        """Yields deltas and how far they go, then exactly one `Turn`, and keeps `progress` up.

        `max_output_tokens` must be set. Cancelling the task that iterates stops the engine. Raises
        PROVIDER_UNAVAILABLE for what may pass, PROVIDER_FAILED for what will not.
        """
        ...

    def used(self, request: GenerateTextRequest, progress: Progress) -> Usage:
        """What a generation used that failed or was stopped after `progress`."""
        ...

    def not_ready_reason(self) -> str:
        """Why the engine cannot serve now and what to do; empty when it can."""
        ...

    async def close(self) -> None:
        """Lets go of connections."""
        ...


def prompt_texts(request: GenerateTextRequest) -> Iterable[str]:
    """Every text of the request that a model reads."""
    for message in request.messages:
        yield message.text
        yield message.tool_call_id
        for call in message.tool_calls:
            yield from (call.id, call.tool, arguments_json(call.arguments))
    for tool in request.tools:
        yield from (tool.name, tool.description, tool.input_schema_json)


def upper_bound(request: GenerateTextRequest) -> Usage:
    """The most that any tokenizer can make of the request: one token for each byte of the prompt.

    Byte-level tokenizers never make more tokens than bytes. Bytes are those of the widest form that
    chat templates give a part: text is UTF-8, but tools, arguments and results may be printed as
    indented JSON in ASCII. Framing is added for each message, tool call and tool. All of
    `max_output_tokens` counts as generated.
    """
    prompt_bytes = sum(_message_bytes(message) for message in request.messages)
    prompt_bytes += sum(_definition_bytes(tool) for tool in request.tools)
    calls = sum(len(message.tool_calls) for message in request.messages)
    framing = (
        PROMPT_FRAMING_TOKENS
        + MESSAGE_FRAMING_TOKENS * (len(request.messages) + calls)
        + TOOL_FRAMING_TOKENS * len(request.tools)
    )
    return Usage(
        input_tokens=prompt_bytes + framing, output_tokens=request.max_output_tokens, calls=1
    )


def _message_bytes(message: Message) -> int:
    text = json.dumps(message.text) if message.role == ROLE_TOOL else message.text
    size = len(text.encode()) + len(message.tool_call_id.encode())
    for call in message.tool_calls:
        size += len(call.id.encode()) + len(call.tool.encode())
        size += len(json.dumps(json_format.MessageToDict(call.arguments), indent=4))
    return size


def _definition_bytes(tool: ToolDefinition) -> int:
    """Bytes of a definition; small ones are remembered, for the same come with every call."""
    small = len(tool.input_schema_json) <= _MAX_REMEMBERED_CHARS
    count = _remembered_bytes if small else _json_bytes
    return count(tool.name, tool.description, tool.input_schema_json)


def _json_bytes(name: str, description: str, schema_json: str) -> int:
    """Bytes of a tool's definition as indented JSON."""
    function = {"name": name, "description": description, "parameters": schema_json}
    # Beside a schema that is no JSON, its bare text is the widest form.
    with contextlib.suppress(ValueError, RecursionError):
        function["parameters"] = json.loads(schema_json or "{}")
    return len(json.dumps({"type": "function", "function": function}, indent=4))


_remembered_bytes = functools.lru_cache(maxsize=_MAX_REMEMBERED)(_json_bytes)


def counted_tokens(texts: Iterable[str]) -> int:
    """UTF-8 bytes of all texts, divided by 4 and rounded up: a count without a tokenizer."""
    return tokens_of_bytes(sum(len(text.encode()) for text in texts))


def tokens_of_bytes(size_bytes: int) -> int:
    """A size in bytes, divided by 4 and rounded up."""
    return -(-size_bytes // BYTES_PER_COUNTED_TOKEN)


def turn_texts(message: Message) -> Iterable[str]:
    """Every text that a model generated for this turn."""
    yield message.text
    for call in message.tool_calls:
        yield from (call.tool, arguments_json(call.arguments))


def arguments_json(arguments: struct_pb2.Struct) -> str:
    """Arguments as compact JSON, keys sorted, whole numbers without a fraction."""
    plain = _whole(json_format.MessageToDict(arguments))
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _whole(value: object) -> object:
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_INTEGER_LIMIT:
        return int(value)
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value
