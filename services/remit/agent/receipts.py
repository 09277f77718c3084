"""Telling inference and tools which results are in a journal, so that they are stored there alone.

Nothing waits for it and nothing is lost without it: what is not told, because this process died or
the other side was away for too long, is stored twice and no more. Claims gather for a moment, so
that many runs share one call; a worker that adopts a run tells all of its journal again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final

from google.rpc import status_pb2

from remit import telemetry
from remit.agent.failures import backoff_s
from remit.agent.journal import Progress
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from remit.api.tools.v1 import tool_service_pb2, tool_service_pb2_grpc
from remit.rpc.calls import spawn
from remit.rpc.errors import RemitError

MAX_CLAIMS: Final = 256
"""Of one call."""

_RETRY_CAP_S: Final = 30.0
_MAY_PASS: Final = frozenset(
    {
        reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        reasons.ERROR_REASON_DEADLINE_EXCEEDED,
        reasons.ERROR_REASON_OVERLOADED,
    }
)

Tell = Callable[[Sequence[str]], Awaitable[Sequence[status_pb2.Status]]]

log = telemetry.logger(__name__)


class Receipts:
    """What journals hold, on its way to the services that need not keep it any more."""

    def __init__(
        self,
        inference: inference_service_pb2_grpc.InferenceServiceStub,
        tools: tool_service_pb2_grpc.ToolServiceStub,
        *,
        linger_s: float,
        max_waiting: int,
    ) -> None:
        """`linger_s`: how long a claim waits for company; `max_waiting`: claims of one service."""

        async def tell_inference(claims: Sequence[str]) -> Sequence[status_pb2.Status]:
            request = inference_service_pb2.AcknowledgeResultsRequest(claims=claims)
            return (await inference.AcknowledgeResults(request)).results

        async def tell_tools(claims: Sequence[str]) -> Sequence[status_pb2.Status]:
            request = tool_service_pb2.AcknowledgeResultsRequest(claims=claims)
            return (await tools.AcknowledgeResults(request)).results

        self._turns = _Teller("inference", tell_inference, linger_s, max_waiting)
        self._calls = _Teller("tools", tell_tools, linger_s, max_waiting)

    def committed(self, events: Sequence[run_pb2.RunEvent]) -> None:
        """These events, one entry of a journal, are durable."""
        self._turns.add(recorded_turns(events))
        self._calls.add(recorded_calls(events))

    def adopted(self, progress: Progress) -> None:
        """All of a journal is durable; who wrote it may not have said so."""
        for turn in progress.turns:
            if turn.is_recorded and turn.ended is not None and not turn.ended.HasField("error"):
                self._turns.add([turn.ended.claim])
            ends = (call.ended for call in turn.calls if call.ended is not None)
            self._calls.add(end.claim for end in ends if not end.HasField("error"))

    async def drain(self) -> None:
        """Tells what waits, now and once; what cannot be told is left."""
        await asyncio.gather(self._turns.drain(), self._calls.drain())

    def close(self) -> None:
        """Gives up what waits."""
        self._turns.close()
        self._calls.close()


def recorded_turns(events: Sequence[run_pb2.RunEvent]) -> Iterator[str]:
    """Claims of model turns that are whole in an entry.

    A turn at the step limit is not: the calls that it asks for are nowhere but in its result.
    """
    started = Counter(
        event.tool_call_started.step for event in events if event.HasField("tool_call_started")
    )
    for event in events:
        ended = event.model_call_ended
        if not event.HasField("model_call_ended") or ended.HasField("error"):
            continue
        if ended.tool_calls == started[ended.step]:
            yield ended.claim


def recorded_calls(events: Iterable[run_pb2.RunEvent]) -> Iterator[str]:
    """Claims of tool calls whose result is in an entry."""
    for event in events:
        if event.HasField("tool_call_ended") and not event.tool_call_ended.HasField("error"):
            yield event.tool_call_ended.claim


class _Teller:
    """The way to one service."""

    def __init__(self, area: str, tell: Tell, linger_s: float, max_waiting: int) -> None:
        self._area = area
        self._tell = tell
        self._linger_s = linger_s
        self._max_waiting = max_waiting
        self._waiting: dict[str, None] = {}
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, claims: Iterable[str]) -> None:
        """Takes claims; the oldest give way where there are too many."""
        self._waiting.update((claim, None) for claim in claims if claim)
        while len(self._waiting) > self._max_waiting:
            del self._waiting[next(iter(self._waiting))]
        if self._waiting and (self._task is None or self._task.done()):
            self._task = spawn(self._run(), name=f"receipts-{self._area}")

    async def drain(self) -> None:
        self._hurry.set()
        if self._task is not None:
            await asyncio.wait({self._task})

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        failures = 0
        while self._waiting:
            await self._linger(failures)
            batch = list(self._waiting)[:MAX_CLAIMS]
            try:
                results = await self._tell(batch)
            except RemitError as error:
                log.warning("receipts_delayed", area=self._area, reason=error.reason_name)
                if error.reason in _MAY_PASS:
                    if self._hurry.is_set():
                        return
                    failures += 1
                    continue
            else:
                self._report(batch, results)
            failures = 0
            for claim in batch:
                self._waiting.pop(claim, None)

    async def _linger(self, failures: int) -> None:
        pause_s = self._linger_s
        if failures:
            pause_s = backoff_s(
                failures, None, base_s=max(pause_s, 0.1), cap_s=_RETRY_CAP_S, chance=lambda: 0.5
            )
        try:
            async with asyncio.timeout(pause_s):
                await self._hurry.wait()
        except TimeoutError:
            return

    def _report(self, claims: Sequence[str], results: Sequence[status_pb2.Status]) -> None:
        refused = [pair for pair in zip(claims, results, strict=False) if pair[1].code]
        if refused:
            claim, result = refused[0]
            log.warning(
                "receipts_refused",
                area=self._area,
                count=len(refused),
                claim=claim,
                reason=RemitError.from_status(result).reason_name,
            )
