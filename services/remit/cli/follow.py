"""Following a run to its end across broken streams.

A stream may break (a replica dies, the gateway restarts, its longest life is over); the run goes
on. So it is opened again after the last event seen, with the same request, until the run must have
ended. Nothing is lost and nothing is seen twice, because events are counted. A stream that ends
without an error is over: nothing follows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import grpc

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.cli.wording import moment, seconds
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError
from remit.rpc.mesh import reading

_RESUMABLE: Final = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    # A replica that dies resets the streams that it serves: no error of ours, no error id.
    grpc.StatusCode.INTERNAL,
}


@dataclass(frozen=True)
class Patience:
    """How long and how often a broken stream is opened again."""

    attempts_before_first_event: int = 3
    """Tries while nothing was ever heard: a mesh that is not there is told at once."""
    first_pause_s: float = 0.25
    longest_pause_s: float = 5.0
    longest_run_s: float = 86_400.0
    """Assumed until the run tells its own limit."""
    grace_s: float = 30.0
    """After the run's own limit, for its end to be recorded."""


RunResponse: TypeAlias = agent_service_pb2.StreamRunResponse | agent_service_pb2.WatchRunResponse


class Follower:
    """Follows one run; `open_stream` opens its journal after a sequence."""

    def __init__(
        self,
        open_stream: Callable[[int], AsyncIterator[RunResponse]],
        *,
        clock: Clock,
        on_break: Callable[[RemitError], None],
        after_sequence: int = 0,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        patience: Patience | None = None,
    ) -> None:
        self._open_stream = open_stream
        self._clock = clock
        self._on_break = on_break
        self._pause = pause
        self._patience = patience or Patience()
        self._give_up = clock.monotonic() + self._patience.longest_run_s
        self._failures = 0
        self._ended = False
        self._heard = False
        self.sequence = after_sequence
        """Sequence of the newest event seen."""

    async def events(self) -> AsyncIterator[run_pb2.RunEvent]:
        """Every event once and in order, RunEnded last; none where the run ended before the first.

        Raises:
            RemitError: the server refused, or the stream could not be opened again in time.

        """
        while not self._ended:
            try:
                async with reading(self._open_stream(self.sequence)) as stream:
                    async for response in stream:
                        if self._is_new(response):
                            self._note(response.event)
                            yield response.event
            except RemitError as error:
                if not self._ended:
                    await self._before_next(error)
            else:
                return

    def _is_new(self, response: RunResponse) -> bool:
        return response.HasField("event") and response.event.sequence > self.sequence

    def _note(self, event: run_pb2.RunEvent) -> None:
        self.sequence = event.sequence
        self._failures = 0
        self._heard = True
        self._ended = event.WhichOneof("event") == "ended"
        if event.HasField("created"):
            self._give_up = self._clock.monotonic() + self._left_s(event.created.run)

    def _left_s(self, run: run_pb2.Run) -> float:
        age_s = (self._clock.now() - moment(run.create_time)).total_seconds()
        return max(0.0, seconds(run.limits.max_duration) - age_s) + self._patience.grace_s

    async def _before_next(self, cause: RemitError) -> None:
        """Waits before the stream is opened again. Raises what broke it if it must not be."""
        self._failures += 1
        attempts = self._patience.attempts_before_first_event
        unheard = not self._heard and self._failures >= attempts
        late = self._clock.monotonic() >= self._give_up
        if unheard or late or not is_break(cause):
            raise cause
        if self._heard:
            self._on_break(cause)
        await self._pause(self._pause_s(cause))

    def _pause_s(self, cause: RemitError) -> float:
        patience = self._patience
        pause_s = patience.first_pause_s * 2.0 ** min(self._failures - 1, 16)
        return min(max(pause_s, _asked_s(cause)), patience.longest_pause_s)


def is_break(error: RemitError) -> bool:
    """Whether the transport failed, rather than the server refused."""
    return error.code in _RESUMABLE and "error_id" not in error.metadata


def _asked_s(cause: RemitError) -> float:
    """Seconds that the server asked to wait; a failure of the transport asks for nothing."""
    if cause.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE:
        return 0.0
    return cause.retry_after_s or 0.0
