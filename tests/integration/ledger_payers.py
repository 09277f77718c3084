"""Clients that spend money, as a process: they call models and tools, leave, come back and hang up.

A process gets its orders as JSON and writes what became of each operation as JSON. An operation
that breaks is asked for again under the same key, as the contracts say, until it is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import inference_service_pb2 as inference
from remit.api.inference.v1 import inference_service_pb2_grpc, message_pb2
from remit.api.tools.v1 import tool_service_pb2 as tools
from remit.api.tools.v1 import tool_service_pb2_grpc
from remit.client import is_break
from remit.rpc.errors import RemitError
from tests.integration.clients import bearer

MODEL: Final = "models/counted"
TOOL: Final = "tools/calculator"
MOST_TOKENS: Final = 48
"""Also what a call may make at most, so that every model call holds the same."""
_TRIES: Final = 200
_MOST_PIECES: Final = 12
"""Of a stream, before somebody leaves it."""
_CALL_LIMIT_S: Final = 30.0
_LONGEST_PAUSE_S: Final = 1.0
_BREAKS: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.CANCELLED,
    }
)


@dataclass(frozen=True)
class Orders:
    """What one process does."""

    address: str
    keys: dict[str, str]
    """API key of each user."""
    operations: int
    clients: int
    seed: int
    file: str
    """Where it writes what became of it."""


@dataclass
class Told:
    """What a process was told."""

    ends: dict[str, dict[str, int]] = field(default_factory=dict)
    """How often an operation of a user ended in what way."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Output tokens of each model call that was answered, by its key."""
    refusals: dict[str, str] = field(default_factory=dict)
    """One refusal of each account that refused: its quota and when to come again."""
    tries: int = 0

    def count(self, user: str, end: str) -> None:
        """One operation more that ended so."""
        ends = self.ends.setdefault(user, {})
        ends[end] = ends.get(end, 0) + 1


class Payer:
    """One client with a connection of its own, which it sometimes drops."""

    def __init__(self, orders: Orders, told: Told, chance: random.Random) -> None:
        self._orders = orders
        self._told = told
        self._chance = chance
        self._channel = grpc.aio.insecure_channel(orders.address)

    async def work(self, numbers: Iterator[int]) -> None:
        """Does one operation after another."""
        users = sorted(self._orders.keys)
        try:
            for number in numbers:
                user = users[number % len(users)]
                self._told.count(user, await self._operation(user, number))
        finally:
            await self._channel.close()

    async def _operation(self, user: str, number: int) -> str:
        whim, key = self._chance.random(), f"{self._orders.seed}-{number}"
        request = self._a_request(key)
        if whim < 0.25 and not await self._left(user, key, request, hang_up=whim < 0.08):
            return "left"
        for tries in range(_TRIES):
            self._told.tries += 1
            try:
                return await self._asked(user, key, request)
            except grpc.aio.AioRpcError as error:
                if end := self._end_of(RemitError.from_rpc(error)):
                    return end
            await asyncio.sleep(self._chance.uniform(0, min(0.05 * 2**tries, _LONGEST_PAUSE_S)))
        return "never answered"

    def _a_request(self, key: str) -> Any:
        whim = self._chance.random()
        if whim < 0.3:
            request = tools.CallToolRequest(tool=TOOL, request_id=key)
            request.arguments.update({"expression": f"{self._chance.randrange(99)} * 17"})
            return request
        count = self._chance.randint(0, MOST_TOKENS)
        pause_ms = self._chance.choice([0, 1, 8])
        text = f"Say {count} tokens, {pause_ms} ms each"
        prompt = inference.GenerateTextRequest(
            model=MODEL,
            messages=[message_pb2.Message(role=message_pb2.ROLE_USER, text=text)],
            max_output_tokens=MOST_TOKENS,
            request_id=key,
        )
        streamed = whim < 0.7
        return inference.StreamGenerateTextRequest(request=prompt) if streamed else prompt

    async def _left(self, user: str, key: str, request: Any, *, hang_up: bool) -> bool:
        """Leaves in the midst of it; says whether it comes back."""
        after = self._chance.randint(1, _MOST_PIECES)
        calling = asyncio.create_task(self._asked(user, key, request, leave_after=after))
        streams = isinstance(request, inference.StreamGenerateTextRequest)
        limit_s = _CALL_LIMIT_S if streams else self._chance.uniform(0, 1.0)
        await asyncio.wait({calling}, timeout=limit_s)
        if hang_up:
            await self._channel.close()
            self._channel = grpc.aio.insecure_channel(self._orders.address)
        calling.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError, grpc.aio.UsageError):
            await calling
        return self._chance.random() < 0.5

    async def _asked(self, user: str, key: str, request: Any, leave_after: int = 0) -> str:
        """Asks; leaves a stream after so many pieces, if it has them, with the engine at work."""
        options: dict[str, Any] = {
            "metadata": bearer(self._orders.keys[user]),
            "timeout": _CALL_LIMIT_S,
        }
        if isinstance(request, tools.CallToolRequest):
            await tool_service_pb2_grpc.ToolServiceStub(self._channel).CallTool(request, **options)
            return "tool"
        stub = inference_service_pb2_grpc.InferenceServiceStub(self._channel)
        answer = inference.GenerateTextResponse()
        if isinstance(request, inference.GenerateTextRequest):
            answer = await stub.GenerateText(request, **options)
        else:
            number, stream = 0, stub.StreamGenerateText(request, **options)
            async for piece in stream:
                number += 1
                if number == leave_after:
                    stream.cancel()
                    return "left"
                answer = piece.response
        self._told.tokens[key] = answer.usage.output_tokens
        return "model"

    def _end_of(self, error: RemitError) -> str:
        """How an operation ended that will not be answered; empty if it may be."""
        if error.reason == reasons.ERROR_REASON_BUDGET_EXHAUSTED:
            quota = [f"{violation.subject}: {violation.description}" for violation in error.quota]
            again = f"come again in {error.retry_after_s or 0:.0f} s"
            self._told.refusals[error.metadata["account"]] = "; ".join([*quota, again])
            return "refused"
        if error.reason == reasons.ERROR_REASON_EFFECT_IN_DOUBT:
            return "in doubt"
        if error.reason == reasons.ERROR_REASON_DEADLINE_EXCEEDED and not is_break(error):
            return "too late"  # for good: asked again, it would be told the same
        goes_on = error.retryable or error.code in _BREAKS
        return "" if goes_on else f"{error.reason_name}: {error.message}"


async def _main(orders: Orders) -> None:
    told, chance = Told(), random.Random(orders.seed)  # noqa: S311 - a test's dice
    numbers = iter(range(orders.operations))
    async with asyncio.TaskGroup() as group:
        for _ in range(orders.clients):
            payer = Payer(orders, told, random.Random(chance.random()))  # noqa: S311
            group.create_task(payer.work(numbers))
    Path(orders.file).write_text(json.dumps(asdict(told)))  # noqa: ASYNC240 - at the end


if __name__ == "__main__":
    asyncio.run(_main(Orders(**json.loads(sys.argv[1]))))
