"""Many effects, one RPC: items gather while earlier batches are under way.

An item that finds a free place is sent at once, alone; under load the batches grow by themselves.
That is the same idea as group commit, one level up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypedDict, TypeVar

from google.protobuf.message import Message

from remit.api.errors.v1 import error_reason_pb2
from remit.effects.settings import EffectSettings
from remit.rpc.calls import spawn
from remit.rpc.errors import RemitError
from remit.rpc.mesh import known_contract
from remit.telemetry.trace import Trace, current, together, within

Item = TypeVar("Item", bound=Message)
Answer = TypeVar("Answer")

_FRAME_BYTES: Final = 8
"""Tag and length of an item inside its batch, at most."""


@dataclass
class _Waiting(Generic[Item, Answer]):
    item: Item
    place: Trace | None = field(default_factory=current)
    """In which trace the item is asked for."""
    answer: asyncio.Future[Answer] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Batcher(Generic[Item, Answer]):
    """Sends items in batches; each gets its own answer or its own error."""

    def __init__(  # noqa: PLR0913 - each is a bound, by name
        self,
        send: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | RemitError]]],
        *,
        name: str,
        max_batch: int,
        max_bytes: int,
        max_in_flight: int,
        max_queue: int,
        linger_s: float = 0.0,
    ) -> None:
        """`linger_s` is how long an item waits for company, where nobody waits for its answer."""
        self._send = send
        self._name = name
        self._max_batch = max_batch
        self._max_bytes = max_bytes
        self._max_in_flight = max_in_flight
        self._max_queue = max_queue
        self._linger_s = linger_s
        self._queue: deque[_Waiting[Item, Answer]] = deque()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._draining = 0
        self.sent = 0
        """RPCs sent so far, for benchmarks."""

    def ask(self, item: Item) -> asyncio.Future[Answer]:
        """The item's answer, to be awaited: its error, or OVERLOADED when the queue is full.

        The future is the caller's own: who cancels it gives up the answer and nothing else.
        """
        waiting: _Waiting[Item, Answer] = _Waiting(item)
        if len(self._queue) >= self._max_queue:
            _raise_in(waiting, self._overloaded())
            return waiting.answer
        self._queue.append(waiting)
        if self._draining < self._max_in_flight:
            self._begin()
        return waiting.answer

    def _overloaded(self) -> RemitError:
        return RemitError(
            error_reason_pb2.ERROR_REASON_OVERLOADED,
            f"{len(self._queue)} effects wait for {self._name}, the limit",
        )

    def _begin(self) -> None:
        # Not the caller's deadline: the batch is shared.
        task = spawn(self._drain(), name=f"batch-{self._name}")
        self._draining += 1
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)

    async def _drain(self) -> None:
        try:
            if self._linger_s:
                await asyncio.sleep(self._linger_s)
            while self._queue:
                await self._send_batch(self._take())
        except BaseException:
            _fail(self._queue, _stopping())
            self._queue.clear()
            raise
        finally:
            # At once: whoever is answered runs before the callbacks of a task that has ended, and
            # what it sends would wait for a task that comes no more.
            self._draining -= 1

    async def _send_batch(self, batch: list[_Waiting[Item, Answer]]) -> None:
        self.sent += 1
        try:
            with within(together([waiting.place for waiting in batch])):
                answers = await self._send([waiting.item for waiting in batch])
            self._require_one_each(batch, answers)
        except Exception as error:  # noqa: BLE001 - whatever it is, its callers must hear it
            _fail(batch, error)
        except BaseException:
            _fail(batch, _stopping())
            raise
        else:
            _answer(batch, answers)

    def _take(self) -> list[_Waiting[Item, Answer]]:
        """The oldest that fit into one request; what fits into none goes alone."""
        batch = [self._queue.popleft()]
        size_bytes = _size_bytes(batch[0])
        while self._queue and len(batch) < self._max_batch:
            size_bytes += _size_bytes(self._queue[0])
            if size_bytes > self._max_bytes:
                break
            batch.append(self._queue.popleft())
        return batch

    def _require_one_each(
        self, batch: Sequence[_Waiting[Item, Answer]], answers: Sequence[Answer | RemitError]
    ) -> None:
        if len(answers) != len(batch):
            raise RemitError(
                error_reason_pb2.ERROR_REASON_INTERNAL,
                f"{len(answers)} answers came to {len(batch)} {self._name}",
            )


class Limits(TypedDict):
    """The bounds of a Batcher."""

    max_batch: int
    max_bytes: int
    max_in_flight: int
    max_queue: int
    linger_s: float


def opening_limits(settings: EffectSettings, rpc: str) -> Limits:
    """For the RPC of path `rpc`, on whose answers effects wait. Raises METHOD_UNKNOWN."""
    return Limits(
        max_batch=settings.effect_max_batch,
        max_bytes=known_contract(rpc).max_request_bytes,
        max_in_flight=settings.effect_max_rpcs,
        max_queue=settings.effect_max_queue,
        linger_s=0.0,
    )


def closing_limits(settings: EffectSettings, rpc: str) -> Limits:
    """For the RPC of path `rpc`, which closes what was answered already. Raises METHOD_UNKNOWN.

    Closings gather for a moment and go one batch at a time: an RPC and a commit less for each that
    finds company, at the time when the next effects want the same processors.
    """
    limits = opening_limits(settings, rpc)
    limits["max_in_flight"] = 1
    limits["linger_s"] = settings.effect_closing_linger_s
    return limits


def _size_bytes(waiting: _Waiting[Item, Answer]) -> int:
    return waiting.item.ByteSize() + _FRAME_BYTES


def _answer(batch: list[_Waiting[Item, Answer]], answers: Sequence[Answer | RemitError]) -> None:
    for waiting, answer in zip(batch, answers, strict=True):
        if waiting.answer.done():
            continue
        if isinstance(answer, RemitError):
            _raise_in(waiting, answer)
        else:
            waiting.answer.set_result(answer)


def _fail(batch: Iterable[_Waiting[Item, Answer]], error: Exception) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            _raise_in(waiting, error)


def _raise_in(waiting: _Waiting[Item, Answer], error: Exception) -> None:
    waiting.answer.set_exception(error)
    waiting.answer.exception()  # a caller that left must not make a warning


def _stopping() -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the service is stopping"
    )
