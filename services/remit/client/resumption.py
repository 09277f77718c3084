"""How long and how often what broke is asked again: bounded, spread by chance, never for ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from remit.api.agent.v1 import run_pb2
from remit.client.breaks import asked_wait_s
from remit.rpc.clock import Clock, SystemClock
from remit.rpc.errors import RemitError

_MOST_DOUBLINGS: Final = 16


@dataclass(frozen=True)
class Patience:
    """How long and how often a client asks again."""

    unanswered_s: float = 10.0
    """As long as nothing was ever answered: a mesh that is not there is told then."""
    first_pause_s: float = 0.25
    longest_pause_s: float = 5.0
    """Pauses double from the first to this one; each is spread by chance over its upper half. Where
    the server asks for a longer one, that is kept."""
    silence_s: float = 30.0
    """Without an event or a heartbeat a stream is broken; the contracts promise one in 30 s."""
    longest_run_s: float = 86_400.0
    """Assumed of a run until its own limit is known, and of a pause."""
    grace_s: float = 30.0
    """After a run's own limit, for its end to be recorded."""


@dataclass(frozen=True)
class Resumption:
    """What asking again needs: patience, time and chance."""

    patience: Patience = field(default_factory=Patience)
    clock: Clock = field(default_factory=SystemClock)
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random
    """Gives numbers in [0, 1)."""

    def pause_s(self, failures: int, cause: RemitError) -> float:
        """Seconds before the try after so many failures in a row, the last for `cause`."""
        doubled_s = self.patience.first_pause_s * 2.0 ** min(failures - 1, _MOST_DOUBLINGS)
        ceiling_s = min(doubled_s, self.patience.longest_pause_s)
        return max(ceiling_s * (0.5 + self.chance() / 2), asked_wait_s(cause))


class Horizon:
    """Until when a run may go on, as far as its events tell.

    Its limit counts from its creation or its scheduled time and stands still while it is paused.
    """

    def __init__(self, patience: Patience, clock: Clock) -> None:
        self._patience = patience
        self._clock = clock
        self._end = self._in(patience.longest_run_s)
        self._paused_at: datetime | None = None

    def is_over(self) -> bool:
        """Whether the run must have ended by now."""
        return self._clock.monotonic() >= self._end

    def note(self, event: run_pb2.RunEvent) -> None:
        """Takes one event in."""
        kind = event.WhichOneof("event")
        if kind == "created":
            self._end = self._in(self._left_s(event.created.run) + self._patience.grace_s)
        elif kind == "paused":
            self._paused_at = event.event_time.ToDatetime(UTC)
            self._end += self._patience.longest_run_s
        elif kind == "resumed" and self._paused_at is not None:
            paused_s = (event.event_time.ToDatetime(UTC) - self._paused_at).total_seconds()
            self._end += max(paused_s, 0.0) - self._patience.longest_run_s
            self._paused_at = None

    def _left_s(self, run: run_pb2.Run) -> float:
        begins = run.schedule_time if run.HasField("schedule_time") else run.create_time
        length = timedelta(seconds=run.limits.max_duration.ToNanoseconds() / 1e9)
        left = begins.ToDatetime(UTC) + length - self._clock.now()
        return max(left.total_seconds(), 0.0)

    def _in(self, length_s: float) -> float:
        return self._clock.monotonic() + length_s
