"""The engine `builtin-rules`: small, deterministic, embedded, and not a language model.

It makes the mesh whole on a machine without a model: it asks for real tools with real arguments and
tells what they answered. What no rule covers, it says so and how to connect a model.

A token of this engine is four UTF-8 bytes, the last one perhaps shorter. That is its own definition
and exact, so its usage is never `estimated`. Its confidence is the share of the parts of a task
that it has an answer for: what it has, it has by rule and tool and not by guessing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Final

from remit.api.inference.v1.inference_service_pb2 import GenerateTextRequest
from remit.api.inference.v1.message_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    ROLE_ASSISTANT,
    FinishReason,
    Message,
)
from remit.api.usage.v1.usage_pb2 import Usage
from remit.inference.engine import (
    BYTES_PER_COUNTED_TOKEN,
    Growth,
    Piece,
    Progress,
    TextDelta,
    Turn,
    counted_tokens,
    prompt_texts,
    tokens_of_bytes,
    turn_texts,
    upper_bound,
)
from remit.inference.rules.plan import NextTurn, next_turn

_SHORT_CHARS: Final = 1_000
_PIECE: Final = re.compile(r"\s*\S{1,40}\s*")
"""A word with the space around it; a longer word comes in several pieces."""


class BuiltinRulesEngine:
    """Answers by rules. Stopping it stops its bill: what was not sent is not charged."""

    stop_stops_bill: Final = True
    unsent_tokens: Final = 0
    measures_confidence: Final = True

    def bound(self, request: GenerateTextRequest) -> Usage:
        """One token for each byte is four times what this engine can count."""
        return upper_bound(request)

    def not_ready_reason(self) -> str:
        """It is always ready."""
        return ""

    async def close(self) -> None:
        """It holds nothing."""

    async def generate(
        self, request: GenerateTextRequest, progress: Progress
    ) -> AsyncGenerator[Piece, None]:
        """Yields the answer word by word, then the turn."""
        progress.owed = True
        turn = await self._planned(request)
        for piece in _PIECE.findall(turn.message.text):
            size_bytes = progress.generated_bytes + len(piece.encode())
            yield Growth(tokens_of_bytes(size_bytes))
            progress.chunk_received()
            progress.generated_bytes = size_bytes
            yield TextDelta(piece)
            # Gives other calls their turn on the event loop.
            await asyncio.sleep(0)
        # The tool calls come at once.
        yield Growth(turn.usage.output_tokens)
        yield turn

    def used(self, request: GenerateTextRequest, progress: Progress) -> Usage:
        """The prompt, and the answer as far as it was sent."""
        return _usage(request, tokens_of_bytes(progress.generated_bytes))

    async def _planned(self, request: GenerateTextRequest) -> Turn:
        """The turn; a long text is read in a thread, because other calls must not stand still."""
        if max(len(message.text) for message in request.messages) < _SHORT_CHARS:
            return self._turn(request)
        return await asyncio.to_thread(self._turn, request)

    def _turn(self, request: GenerateTextRequest) -> Turn:
        planned = next_turn(request.messages, request.tools)
        message, finish_reason = _within(planned, request.max_output_tokens)
        usage = _usage(request, counted_tokens(turn_texts(message)))
        return Turn(message, finish_reason, usage, planned.confidence)


def _usage(request: GenerateTextRequest, output_tokens: int) -> Usage:
    input_tokens = counted_tokens(prompt_texts(request))
    return Usage(input_tokens=input_tokens, output_tokens=output_tokens, calls=1)


def _within(planned: NextTurn, max_tokens: int) -> tuple[Message, FinishReason.ValueType]:
    """The turn, cut where it would exceed `max_tokens`; calls are left out whole, never cut."""
    message = Message(role=ROLE_ASSISTANT, text=planned.text)
    for call in planned.calls:
        message.tool_calls.append(call)
        if counted_tokens(turn_texts(message)) > max_tokens:
            del message.tool_calls[-1]
            return message, FINISH_REASON_LENGTH
    if message.tool_calls:
        return message, FINISH_REASON_TOOL_CALLS
    cut = _cut(planned.text, max_tokens * BYTES_PER_COUNTED_TOKEN)
    return Message(role=ROLE_ASSISTANT, text=cut), (
        FINISH_REASON_STOP if cut == planned.text else FINISH_REASON_LENGTH
    )


def _cut(text: str, size_bytes: int) -> str:
    """The longest beginning of `text` of at most `size_bytes` in UTF-8, no character divided."""
    return text.encode()[:size_bytes].decode(errors="ignore")
