"""Envoy's access-log service: takes from the edge what it refused by itself, best effort.

Nothing here holds the edge up: an entry is read, put into a table in memory and forgotten, and the
table is appended beside that (remit.access_recorder). Equal refusals share an entry; where there is
no room, they are counted without their particulars.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import grpc

from remit.access_recorder import AccessRecorder, Append
from remit.api.audit.v1 import event_pb2
from remit.api.gateway.v1 import access_log_pb2
from remit.audit.edge_entries import read_entry
from remit.audit.log import AuditLog
from remit.audit.metrics import EDGE_ENTRIES
from remit.audit.sealing import Pseudonyms
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError

REPORTER: Final = "gateway"
"""Who reports these entries: the gateway's word is all that there is for them."""

Messages = AsyncIterator[access_log_pb2.StreamAccessLogsRequest]


class EdgeLog:
    """Takes streams until it is closed."""

    def __init__(self, accesses: AccessRecorder, pseudonyms: Pseudonyms, clock: Clock) -> None:
        self._accesses = accesses
        self._pseudonyms = pseudonyms
        self._clock = clock
        self._reading: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def StreamAccessLogs(
        self,
        messages: Messages,
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002 - the servicer's signature
    ) -> access_log_pb2.StreamAccessLogsResponse:
        """Take what comes. The edge never ends a stream; a drain does, and it begins another."""
        response = access_log_pb2.StreamAccessLogsResponse()
        if self._is_closed:
            return response
        reading = asyncio.create_task(self._read(messages), name="edge-log")
        self._reading.add(reading)
        try:
            await asyncio.wait([reading])
            if not reading.cancelled():
                reading.result()
        finally:
            reading.cancel()
            self._reading.discard(reading)
        return response

    @property
    def streams(self) -> int:
        """How many are open."""
        return len(self._reading)

    async def close(self) -> None:
        """Ends the streams in a drain, which they would hold up until its end."""
        self._is_closed = True
        for reading in self._reading:
            reading.cancel()

    async def _read(self, messages: Messages) -> None:
        async for message in messages:
            for entry in message.http_logs.log_entry:
                EDGE_ENTRIES.inc()
                found = read_entry(entry, self._pseudonyms.of_client, self._clock.now())
                self._accesses.deny(*found)


def by_log(log: AuditLog, reporter: str) -> Append:
    """Appends to the log itself; `remit.access_recorder.by_rpc` does so from another service."""

    async def append(events: Sequence[event_pb2.Event]) -> Sequence[RemitError | None]:
        places = await log.append(events, reporter)
        return [place if isinstance(place, RemitError) else None for place in places]

    return append
