"""Following the log: events in the order of the log, from the past into the present.

The log in the database is the truth, and a follower reads it at its own pace from its own position,
so a slow one gets back-pressure and never a gap. That there is more, one look at the log's size
tells all who follow it here: it costs appends nothing, wherever they are made, and a look that
fails is made again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass

from remit import telemetry
from remit.audit.filters import EventFilter, Walk
from remit.audit.log import AuditLog, LoggedEvent
from remit.audit.store import LogStore
from remit.postgres import unavailable
from remit.rpc.errors import RemitError

log = telemetry.logger(__name__)


class LogHead:
    """How far the log reaches, looked at every `every_s` seconds while somebody follows it."""

    def __init__(self, store: LogStore, *, every_s: float) -> None:
        self._store = store
        self._every_s = every_s
        self._size = 0
        self._followers = 0
        self._followed = asyncio.Event()
        self._changed = asyncio.Event()
        self._closed = False

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            await self._followed.wait()
            try:
                self._learn(await self._store.size())
            except RemitError as error:
                log.warning("tail_delayed", reason=error.reason_name)
            await asyncio.sleep(self._every_s)

    async def close(self) -> None:
        """Ends every tail; clients resume at another replica."""
        self._closed = True
        self._changed.set()

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """Looks at the log at least as long as the body lasts."""
        self._followers += 1
        self._followed.set()
        try:
            yield
        finally:
            self._followers -= 1
            if not self._followers:
                self._followed.clear()

    async def reaches(self, size: int, within_s: float) -> bool:
        """Return whether the log has more than so many leaves, or comes to it in that time.

        Raises:
            RemitError: DEPENDENCY_UNAVAILABLE when this replica drains.

        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self._size <= size:
                    self._check_open()
                    await self._changed.wait()
        self._check_open()
        return self._size > size

    def _learn(self, size: int) -> None:
        if size > self._size:
            self._size = size
            self._changed.set()
            self._changed = asyncio.Event()

    def _check_open(self) -> None:
        if self._closed:
            raise unavailable("this replica is stopping; resume after the last sequence")


@dataclass(frozen=True)
class Piece:
    """What comes next of a tail: the log is looked at up to `size` leaves, and these are wanted."""

    size: int
    events: list[LoggedEvent]


class Tail:
    """Follows the log."""

    def __init__(
        self, events: AuditLog, head: LogHead, *, page: int, looked_at: int, heartbeat_s: float
    ) -> None:
        self._events = events
        self._head = head
        self._page = page
        self._looked_at = looked_at
        self._heartbeat_s = heartbeat_s

    async def follow(
        self, wanted: EventFilter, start: int, *, end: int | None
    ) -> AsyncGenerator[Piece, None]:
        """Yield the events from index `start` on, for ever or up to and without index `end`.

        A piece without events is a heartbeat, and the first piece is one.

        Raises:
            RemitError: DEPENDENCY_UNAVAILABLE when the replica drains or a database is away.

        """
        place = start
        yield Piece(place, [])
        with self._head.followed():
            while end is None or place < end:
                size = await self._events.store.size()
                piece = await self._next(wanted, place, size if end is None else min(size, end))
                place = piece.size
                if piece.events:
                    yield piece
                if place >= size and not await self._head.reaches(place, self._heartbeat_s):
                    yield Piece(place, [])
        yield Piece(place, [])

    async def _next(self, wanted: EventFilter, place: int, stop: int) -> Piece:
        """Return the piece from `place` on, of events below `stop`, all of which are there."""
        walk = Walk(place, self._looked_at, is_backward=False, stop_index=stop)
        found = await self._events.list_events(wanted, walk, limit=self._page)
        if len(found) == self._page:
            return Piece(found[-1].leaf_index + 1, found)
        last = await self._events.store.walked_to(wanted, walk)
        return Piece(stop if last is None else last + 1, found)
