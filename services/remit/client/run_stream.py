"""One run's events across broken streams: each once, in order, to the run's end.

A stream may break (a replica dies, the gateway restarts, its longest life is over); the run goes
on. So it is opened again behind the last event seen, until the run must have ended. Events are
counted: one that comes again is dropped, and a stream that leaves one out is opened again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final, Self, TypeAlias

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.client.breaks import GapError, cut_short, is_break, out_of_time, silent
from remit.client.resumption import Horizon, Resumption
from remit.rpc.errors import RemitError

RunResponse: TypeAlias = agent_service_pb2.StreamRunResponse | agent_service_pb2.WatchRunResponse

_MOST_GAPS: Final = 2
"""Gaps in a row behind the same event: then the journal itself lacks one."""
_SHORTEST_S: Final = 0.001
"""Less than this is no time left: timers may end that much early."""
_LAST_WORD_S: Final = 1.0
"""For a stream to close behind the run's last event."""


class RunStream(AsyncIterator[run_pb2.RunEvent]):
    """The events of a run, to be read by `async for`; `async with` ends it where it is left early.

    Raises RemitError: the server refused, the stream could not be opened again while the run may go
    on, or DEADLINE_EXCEEDED after `timeout_s`. The run itself goes on.
    """

    def __init__(
        self,
        open_stream: Callable[[int], AsyncIterator[RunResponse]],
        resumption: Resumption,
        *,
        after_sequence: int = 0,
        timeout_s: float | None = None,
        on_break: Callable[[RemitError], None] = lambda _: None,
    ) -> None:
        self._open_stream = open_stream
        self._resumption = resumption
        self._clock = resumption.clock
        self._on_break = on_break
        self._timeout_s = timeout_s
        self._began = self._clock.monotonic()
        self._horizon = Horizon(resumption.patience, self._clock)
        self._stream: AsyncIterator[RunResponse] | None = None
        self._brought_events = False
        self._heard = False
        self._over = False
        self._failures = 0
        self._gaps = 0
        self.sequence = after_sequence
        """Sequence of the newest event seen."""
        self.run = ""
        """Name of the run, `runs/{run}`; empty before the first event."""
        self.ended: run_pb2.Run | None = None
        """The run as it ended, once its last event was read. None behind the end of a stream: it
        had ended before."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> run_pb2.RunEvent:
        while not self._over:
            try:
                event = await self._next()
            except RemitError as error:
                await self._close_stream()
                await self._before_next(error)
            except BaseException:  # a stream whose reading was cancelled cannot be read on
                await self._close_stream()
                raise
            else:
                if event is None:
                    break
                return event
        await self._read_out()
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends the stream; the run goes on."""
        self._over = True
        await self._close_stream()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _next(self) -> run_pb2.RunEvent | None:
        """The next new event; None where the run had ended. Raises RemitError."""
        if self._stream is None:
            self._stream = self._open_stream(self.sequence)
            self._brought_events = False
        while (response := await self._response(self._stream)) is not None:
            self._heard = True
            self._failures = 0
            event = response.event if response.HasField("event") else None
            if self._follows(response, event) and event is not None:
                self._note(event)
                return event
        if self._brought_events:
            raise cut_short(self.sequence)
        return None

    async def _response(self, stream: AsyncIterator[RunResponse]) -> RunResponse | None:
        silence_s = self._resumption.patience.silence_s
        try:
            async with asyncio.timeout(min(silence_s, self._left_s())):
                return await anext(stream, None)
        except TimeoutError as error:
            raise silent(silence_s) from error

    def _follows(self, response: RunResponse, event: run_pb2.RunEvent | None) -> bool:
        """Whether an answer brings what is next. Raises DATA_CORRUPT for a gap."""
        told = event.sequence if event is not None else response.sequence
        due = self.sequence + 1 if event is not None else self.sequence
        if told > due:
            raise GapError(self.sequence, told)
        return told == due

    def _note(self, event: run_pb2.RunEvent) -> None:
        self.sequence = event.sequence
        self.run = event.run
        self._brought_events = True
        self._gaps = 0
        self._horizon.note(event)
        if event.HasField("ended"):
            self.ended = event.ended.run
            self._over = True

    async def _before_next(self, cause: RemitError) -> None:
        """Waits before the stream is opened again. Raises what ends the wait if it must not be."""
        self._failures += 1
        self._check_time(cause)
        pause_s = self._resumption.pause_s(self._failures, cause)
        if not self._may_resume(cause, pause_s):
            raise cause
        if self._heard:
            self._on_break(cause)
        await self._resumption.pause(min(pause_s, self._left_s()))
        self._check_time(cause)

    def _may_resume(self, cause: RemitError, pause_s: float) -> bool:
        if isinstance(cause, GapError):
            self._gaps += 1
            return self._gaps <= _MOST_GAPS
        if self._heard:
            return not self._horizon.is_over() and (is_break(cause) or cause.retryable)
        unanswered_s = self._clock.monotonic() + pause_s - self._began
        return is_break(cause) and unanswered_s < self._resumption.patience.unanswered_s

    def _check_time(self, cause: RemitError) -> None:
        if self._timeout_s is not None and self._left_s() < _SHORTEST_S:
            advice = f"it goes on; resume after event {self.sequence}"
            raise out_of_time(self.run or "the run", self._timeout_s, advice) from cause

    def _left_s(self) -> float:
        """Seconds that are left of the caller's timeout; those of the longest run without one."""
        if self._timeout_s is None:
            return self._resumption.patience.longest_run_s
        return max(self._began + self._timeout_s - self._clock.monotonic(), 0.0)

    async def _read_out(self) -> None:
        """Lets the server end the stream by itself behind the last event."""
        if self.ended is not None and self._stream is not None:
            with contextlib.suppress(RemitError, TimeoutError):
                async with asyncio.timeout(_LAST_WORD_S):
                    await anext(self._stream, None)

    async def _close_stream(self) -> None:
        """Cancels the stream at the server, if it is still open."""
        stream, self._stream = self._stream, None
        close = getattr(stream, "aclose", None)
        if close is not None:
            with contextlib.suppress(asyncio.CancelledError, RemitError):
                await close()
