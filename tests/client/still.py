"""Time and chance that move only when a test says so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from remit.client.resumption import Patience, Resumption
from tests.cli.journals import CREATED_S


class StillClock:
    """Time that moves only when somebody waits."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self.pauses_s: list[float] = []

    def now(self) -> datetime:
        return datetime.fromtimestamp(CREATED_S, UTC) + timedelta(seconds=self._now_s)

    def monotonic(self) -> float:
        return self._now_s

    async def pause(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self._now_s += seconds

    def resumption(self, patience: Patience | None = None, chance: float = 1.0) -> Resumption:
        """Patience by this clock; a chance of 1 makes every pause its longest."""
        return Resumption(patience or Patience(), self, self.pause, lambda: chance)
