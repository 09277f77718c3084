"""Keeps what was decided until the log has it, in bounded memory.

What is asked for the first time is written at the next look; equal questions are counted from then
on, and written once an interval. A run's questions are few and are written at each look. Where
there is no room, a refusal is counted without its particulars, and what would be allowed is
refused: nothing is let through that the log will not hear of.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from prometheus_client import Counter, Gauge

from remit import telemetry
from remit.access import Access, Occasion, Tally
from remit.api.audit.v1 import audit_service_pb2, audit_service_pb2_grpc, event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError
from remit.rpc.ids import IdSource

_BATCH: Final = 256
"""Entries of one append, by its contract."""
_SHARE_OF_REFUSALS: Final = 0.5
"""Of the room: a flood of refusals must not keep out what is allowed."""
_LAST_LOOK_S: Final = 2.0
_PERMANENT: Final = frozenset(
    {
        error_reason_pb2.ERROR_REASON_INVALID_REQUEST,
        error_reason_pb2.ERROR_REASON_CALLER_NOT_ALLOWED,
        error_reason_pb2.ERROR_REASON_KEY_REUSED,
        error_reason_pb2.ERROR_REASON_TOO_LARGE,
    }
)
"""Answers to an entry that trying again does not change."""

log = telemetry.logger(__name__)


ACCESSES: Final = Counter(
    "remit_accesses_total",
    "Decisions told to the audit log, by who reports them (policy; gateway and audit, whose entries"
    " audit itself makes) and by what came of that: RECORDED, FOLDED where a refusal was counted"
    " without its particulars, REFUSED where there was no room and so nothing was allowed, LOST"
    " where the log does not take the entry.",
    ["reporter", "result"],
)
WAITING: Final = Gauge(
    "remit_accesses_waiting",
    "Entries that this replica keeps for the audit log, by who reports them, those included that"
    " count equal decisions.",
    ["reporter"],
)

Append = Callable[[Sequence[event_pb2.Event]], Awaitable[Sequence[RemitError | None]]]
"""Appends 256 events at most; what kept each from the log. Raises RemitError for all of them."""


class AccessRecorder:
    """Gathers decisions and appends them to the audit log every `flush_s` seconds."""

    def __init__(  # noqa: PLR0913 - its collaborators and bounds, by name
        self,
        append: Append,
        clock: Clock,
        ids: IdSource,
        *,
        reporter: str,
        flush_s: float,
        interval_s: float,
        max_entries: int,
    ) -> None:
        self._append = append
        self._reporter = reporter
        self._clock = clock
        self._ids = ids
        self._flush_s = flush_s
        self._interval_s = interval_s
        self._max_entries = max_entries
        self._tallies: dict[Access, Tally] = {}
        self._waiting: deque[tuple[event_pb2.Event, int]] = deque()
        """Entries as they are sent, until audit has them, with how many they count."""
        self._refusals = 0
        self._may_be_idle = False
        self._is_told = False
        self._flushing = asyncio.Lock()
        self.sent = 0
        """Entries that audit has taken, for benchmarks."""

    def allow(self, access: Access, occasion: Occasion) -> None:
        """Keeps what is about to be allowed. Raises OVERLOADED where that cannot be: refuse it."""
        tally = self._tallies.get(access)
        if tally is None:
            if not self._has_room():
                self._count("REFUSED")
                raise _no_room(self._max_entries)
            tally = self._added(access)
        tally.add(occasion, self._clock.now())

    def deny(self, access: Access, occasion: Occasion) -> None:
        """Keeps a refusal; where there is no room, that there was one."""
        tally = self._tallies.get(access)
        if tally is None and not self._has_room(is_refusal=True):
            self._count("FOLDED")
            access = access.folded()
            occasion = Occasion()
            tally = self._tallies.get(access)
        if tally is None:
            tally = self._added(access)
        tally.add(occasion, self._clock.now())

    async def run(self) -> None:
        """Appends until cancelled, and then once more what was gathered."""
        try:
            while True:
                await asyncio.sleep(self._flush_s)
                await self._look()
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_LOOK_S):
                    await self._look(whole=True)

    async def flush(self, *, whole: bool = False) -> None:
        """Appends what is due, or all. Raises RemitError where audit takes nothing: it stays."""
        async with self._flushing:
            try:
                # While audit takes nothing, equal questions go on sharing what they have.
                if await self._send_waiting():
                    self._gather(whole=whole)
                    await self._send_waiting()
            finally:
                WAITING.labels(self._reporter).set(self._size())

    async def _look(self, *, whole: bool = False) -> None:
        try:
            await self.flush(whole=whole)
        except RemitError as error:
            if not self._is_told:
                log.warning("access_unrecorded", reason=error.reason_name, entries=self._size())
            self._is_told = True
        else:
            self._is_told = False

    def _gather(self, *, whole: bool) -> None:
        """Makes entries of what is due. An entry never changes after: it may be sent again."""
        now = self._clock.monotonic()
        for tally in [each for each in self._tallies.values() if whole or each.due <= now]:
            del self._tallies[tally.access]
            self._refusals -= not tally.access.is_allowed
            if not tally.count:
                continue
            event = tally.event(f"access-{self._ids.uuid7()}")
            self._waiting.append((event, tally.count))
            if not tally.access.run:  # the next equal ones are counted for an interval
                self._added(tally.access, due=now + self._interval_s)
                self._may_be_idle = True

    async def _send_waiting(self) -> bool:
        """Sends all entries that wait; whether audit took all of them."""
        while self._waiting:
            if not await self._send():
                return False
        return True

    async def _send(self) -> bool:
        """Sends the oldest entries; whether audit took all of them."""
        batch = [self._waiting[n] for n in range(min(_BATCH, len(self._waiting)))]
        errors = await self._append([event for event, _ in batch])
        left = []
        for (event, count), error in zip(batch, errors, strict=True):
            self._waiting.popleft()
            if error is None:
                self.sent += 1
                self._count("RECORDED", count)
            elif error.reason in _PERMANENT:
                self._count("LOST", count)
                log.error("access_lost", reason=error.reason_name, action=event.action, count=count)
            else:
                left.append((event, count))
        self._waiting.extendleft(reversed(left))
        return not left

    def _added(self, access: Access, due: float = 0.0) -> Tally:
        tally = self._tallies[access] = Tally(access, due)
        self._refusals += not access.is_allowed
        return tally

    def _has_room(self, *, is_refusal: bool = False) -> bool:
        if not self._is_full(is_refusal=is_refusal):
            return True
        self._forget_idle()
        return not self._is_full(is_refusal=is_refusal)

    def _is_full(self, *, is_refusal: bool) -> bool:
        share = self._max_entries * _SHARE_OF_REFUSALS
        return self._size() >= self._max_entries or (is_refusal and self._refusals >= share)

    def _forget_idle(self) -> None:
        """Drops what only waits whether something equal comes: then it has an entry of its own."""
        if not self._may_be_idle:
            return
        self._may_be_idle = False
        for access in [access for access, tally in self._tallies.items() if not tally.count]:
            del self._tallies[access]
            self._refusals -= not access.is_allowed

    def _size(self) -> int:
        return len(self._tallies) + len(self._waiting)

    def _count(self, result: str, count: int = 1) -> None:
        ACCESSES.labels(self._reporter, result).inc(count)


def by_rpc(audit: audit_service_pb2_grpc.AuditServiceStub) -> Append:
    """Appends by `AppendEvents`."""

    async def append(events: Sequence[event_pb2.Event]) -> Sequence[RemitError | None]:
        entries = [audit_service_pb2.Entry(event=event) for event in events]
        response = await audit.AppendEvents(audit_service_pb2.AppendEventsRequest(entries=entries))
        return [_error(result) for result in response.results]

    return append


def _error(result: audit_service_pb2.AppendResult) -> RemitError | None:
    is_taken = result.WhichOneof("result") == "leaf_index"
    return None if is_taken else RemitError.from_status(result.error)


def _no_room(limit: int) -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_OVERLOADED,
        f"{limit} decisions wait for the audit log, the limit; what it cannot be told of is not"
        " allowed",
    )
