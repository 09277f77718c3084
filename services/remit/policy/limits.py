"""How often: an exact log of admissions, for limits of so many in any so many seconds.

A limit of 10 in 60 s holds for every window of 60 s, wherever it begins: an admission at `t` counts
against all that come before `t` + 60 s, and against none from then on. Counters and buckets admit
up to twice as many about the edge of their windows; what is exact keeps the times themselves.

An admission counts against several limits at once, and is admitted by all of them or counts
against none. Time is the caller's, in whole microseconds, so that nothing is lost in rounding.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MICROS: Final = 1_000_000
"""Microseconds in a second."""


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `most` admissions in any `window_s` seconds; both are 1 or more."""

    most: int
    window_s: int

    @property
    def window_us(self) -> int:
        """The window in microseconds."""
        return self.window_s * MICROS


@dataclass(frozen=True, slots=True)
class Meter:
    """A limit and whom it limits."""

    kind: str
    """`user`, `api_key` or `org`."""
    principal: str
    """Full name of the user, key or org."""
    limit: Limit


@dataclass(frozen=True, slots=True)
class Refusal:
    """A limit that is used up, and the microseconds until it has a place again."""

    meter: Meter
    wait_us: int


class LogFullError(Exception):
    """The log holds as many admissions as it may, and every one still counts.

    `wait_us`: microseconds until the first of them does not.
    """

    def __init__(self, wait_us: int) -> None:
        super().__init__("the log of admissions is full")
        self.wait_us = wait_us


class SlidingLog:
    """The admissions that still count, of one process.

    It holds `max_entries` of them at most, each until the window is over in which it was admitted.
    Nothing that still counts is ever dropped to make room: then nobody is admitted.
    """

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._times: dict[str, deque[int]] = {}
        self._ends: list[tuple[int, str]] = []
        """When each entry ceases to count, and whose it is; a heap."""
        self._now = 0

    def __len__(self) -> int:
        """How many admissions are remembered."""
        return len(self._ends)

    def admit(self, now_us: int, meters: Sequence[Meter]) -> tuple[Refusal, ...]:
        """Count one admission against every meter, or against none.

        Returns the meters that refuse; none means admitted. Time does not go backwards: an earlier
        `now_us` than the last counts as the last.

        Raises:
            LogFullError: there is no room to remember it.

        """
        self._now = max(self._now, now_us)
        self._forget()
        refusals = tuple(
            Refusal(meter, wait_us) for meter in meters if (wait_us := self._wait_us(meter)) > 0
        )
        if not refusals:
            self._remember(meters)
        return refusals

    def _wait_us(self, meter: Meter) -> int:
        times = self._times.get(meter.principal, ())
        if len(times) < meter.limit.most:
            return 0
        return times[-meter.limit.most] + meter.limit.window_us - self._now

    def _remember(self, meters: Sequence[Meter]) -> None:
        if len(self._ends) + len(meters) > self._max_entries:
            raise LogFullError(self._ends[0][0] - self._now if self._ends else 0)
        for meter in meters:
            self._times.setdefault(meter.principal, deque()).append(self._now)
            heapq.heappush(self._ends, (self._now + meter.limit.window_us, meter.principal))

    def _forget(self) -> None:
        # After a limit was changed, ends may come in another order than times. The oldest goes
        # first all the same, so what is kept is newer, and the limit rather too strict.
        while self._ends and self._ends[0][0] <= self._now:
            _, principal = heapq.heappop(self._ends)
            times = self._times[principal]
            times.popleft()
            if not times:
                del self._times[principal]
