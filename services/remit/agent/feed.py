"""Following journals: push within a replica and between replicas, without losing an event.

The journal in the database is the truth; what is pushed only says that there is more, and saves the
read where the events were written here. A reader pulls at its own pace from its own position, so a
slow one gets back-pressure and never a gap. Other replicas' commits arrive by LISTEN; a look at
every heartbeat covers a notice that was lost with a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import asyncpg

from remit import names, telemetry
from remit.agent.reading import RunReader
from remit.agent.store import CHANNEL, PAUSED, QUEUED, STOPPED, TOLD
from remit.api.agent.v1 import run_pb2
from remit.postgres import unavailable

_RECONNECT_S: Final = 0.2
_PING_S: Final = 5.0
_KEPT_EVENT_BYTES: Final = 16_384
"""Larger events are read back from the journal, so that what is kept in memory stays bounded."""

log = telemetry.logger(__name__)


@dataclass
class _Topic:
    """One run that somebody here follows."""

    recent: deque[run_pb2.RunEvent]
    latest: int = 0
    losses: int = 0
    """How often notices may have been lost: each follower then looks at the journal itself."""
    followers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """Ends every wait in progress; later waits see a new event."""
        self.changed.set()
        self.changed = asyncio.Event()

    def add(self, events: Sequence[run_pb2.RunEvent]) -> None:
        for event in events:
            if self.recent and event.sequence != self.recent[-1].sequence + 1:
                self.recent.clear()
            if event.ByteSize() > _KEPT_EVENT_BYTES:
                self.recent.clear()
            else:
                self.recent.append(event)
        self.latest = max(self.latest, events[-1].sequence)
        self.wake()

    def after(self, sequence: int) -> list[run_pb2.RunEvent] | None:
        """Events after a sequence, without a gap; None if they are not all here."""
        if not self.recent or self.recent[0].sequence > sequence + 1:
            return None
        return [event for event in self.recent if event.sequence > sequence]


class Feed:
    """The runs that this replica's clients follow."""

    def __init__(
        self, reader: RunReader, *, page: int, recent_events: int, heartbeat_s: float
    ) -> None:
        self._reader = reader
        self._page = page
        self._recent_events = recent_events
        self._heartbeat_s = heartbeat_s
        self._topics: dict[str, _Topic] = {}
        self._closed = False

    def publish(self, events: Sequence[run_pb2.RunEvent]) -> None:
        """Hands events that were committed here to whoever follows their run."""
        topic = self._topics.get(events[0].run)
        if topic is not None:
            topic.add(events)

    def announce(self, run: str, sequence: int) -> None:
        """Says that a run's journal reaches a sequence, wherever it was written."""
        topic = self._topics.get(run)
        if topic is not None and sequence > topic.latest:
            topic.latest = sequence
            topic.wake()

    def close(self) -> None:
        """Ends every stream; clients resume at another replica."""
        self._closed = True
        self.wake_all()

    def wake_all(self) -> None:
        """Makes every follower look at the journal itself."""
        for topic in self._topics.values():
            topic.recent.clear()
            topic.losses += 1
            topic.wake()

    async def follow(
        self, run: str, after: int, known: Sequence[run_pb2.RunEvent] = ()
    ) -> AsyncIterator[run_pb2.RunEvent | None]:
        """Yields a run's events after a sequence, to the run's end; None is a heartbeat.

        `known` are events that the caller has just committed. Raises DEPENDENCY_UNAVAILABLE when
        the replica drains or the database is away.
        """
        with self._followed(run) as topic:
            if known:
                topic.add(known)
            look, losses = not known, topic.losses
            while True:
                changed = topic.changed
                look, losses = look or topic.losses > losses, topic.losses
                self._check_open()
                events = await self._more(topic, run, after, look=look)
                for event in events:
                    yield event
                    after = event.sequence
                    if event.HasField("ended"):
                        return
                # A full page may not be all; a short one is, unless a notice says otherwise.
                look = len(events) == self._page
                if not events and not await _within(changed, self._heartbeat_s):
                    look = True
                    yield None

    async def _more(
        self, topic: _Topic, run: str, after: int, *, look: bool
    ) -> list[run_pb2.RunEvent]:
        recent = topic.after(after)
        if recent or (topic.latest <= after and not look):
            return recent or []
        return await self._reader.events(run, after=after, limit=self._page)

    def _check_open(self) -> None:
        if self._closed:
            raise unavailable("this replica is stopping; resume after the last sequence")

    @contextlib.contextmanager
    def _followed(self, run: str) -> Iterator[_Topic]:
        topic = self._topics.setdefault(run, _Topic(deque(maxlen=self._recent_events)))
        topic.followers += 1
        try:
            yield topic
        finally:
            topic.followers -= 1
            if topic.followers == 0:
                self._topics.pop(run, None)


class Orders(Protocol):
    """Who works on runs and must hear what others do to them."""

    def wake(self) -> None:
        """A run may be waiting for a worker."""
        ...

    def token_raised(self, run: str, fencing_token: int) -> None:
        """A run's token is at least this."""
        ...

    def paused(self, run: str, fencing_token: int) -> None:
        """A run was paused under this token."""
        ...

    def stopped(self, run: str, fencing_token: int) -> None:
        """A run was cancelled under this token."""
        ...


class Listener:
    """Hears of every replica's commits over a connection of its own."""

    def __init__(
        self,
        dsn: str,
        feed: Feed,
        *,
        origin: str,
        orders: Orders,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        """`tell` is called when the end of a run is to be told."""
        self._dsn = dsn
        self._feed = feed
        self._origin = origin
        self._orders = orders
        self._tell = tell
        self.connected = asyncio.Event()

    async def listen(self) -> None:
        """Runs until cancelled; connects again whenever the connection is lost."""
        while True:
            try:
                await self._listen_once()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("listener_lost", error=type(error).__name__)
            self.connected.clear()
            await asyncio.sleep(_RECONNECT_S)

    async def _listen_once(self) -> None:
        connection = await asyncpg.connect(self._dsn, timeout=_PING_S)
        lost = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(CHANNEL, self._heard)
            self.connected.set()
            # Whatever was told while nobody listened is looked for.
            self._feed.wake_all()
            self._orders.wake()
            self._tell()
            # A server that ends says so; one that only falls silent is found out by asking.
            while not await _within(lost, _PING_S):
                await connection.execute("SELECT 1", timeout=_PING_S)
            raise ConnectionResetError
        finally:
            connection.terminate()

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: Any) -> None:  # noqa: ANN401
        first, *rest = str(payload).split(" ", 3)
        if first == QUEUED:
            self._orders.wake()
        elif first == TOLD:
            self._tell()
        elif first == PAUSED:
            self._orders.paused(names.run_name(rest[0]), int(rest[1]))
        elif first == STOPPED:
            self._orders.stopped(names.run_name(rest[0]), int(rest[1]))
        else:
            self._committed(first, *rest)

    def _committed(self, run_id: str, sequence: str, token: str, origin: str) -> None:
        run = names.run_name(run_id)
        if origin != self._origin:
            # What was committed here is published here, with the events themselves.
            self._feed.announce(run, int(sequence))
        self._orders.token_raised(run, int(token))


async def _within(event: asyncio.Event, limit_s: float) -> bool:
    """Whether the event is set before the limit."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await event.wait()
            return True
    return False
