"""A relay before the gateway that cuts a connection in the middle, as a bad network does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

_CHUNK_BYTES = 512
_HOST = "127.0.0.1"


@dataclass
class Relay:
    """Passes bytes on to `target`; cuts each of the first connections after so many bytes down."""

    target: str
    cut_after_bytes: list[int]
    address: str = ""
    cuts: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, down: asyncio.StreamReader, up: asyncio.StreamWriter) -> None:
        """Relays one connection to its end."""
        limit = self.cut_after_bytes.pop(0) if self.cut_after_bytes else None
        host, _, port = self.target.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        upwards = asyncio.create_task(_pass(down, writer, None))
        try:
            self.cuts += await _pass(reader, up, limit)
        finally:
            upwards.cancel()
            writer.transport.abort()
            up.transport.abort()


@contextlib.asynccontextmanager
async def relay(target: str, *cut_after_bytes: int) -> AsyncIterator[Relay]:
    """A relay to `host:port` whose first connections are cut after so many bytes of answers."""
    made = Relay(target, list(cut_after_bytes))
    server = await asyncio.start_server(made.serve, _HOST, 0)
    made.address = f"{_HOST}:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()


async def _pass(source: asyncio.StreamReader, to: asyncio.StreamWriter, limit: int | None) -> bool:
    """Copies until the end, or until `limit` bytes; whether the limit ended it."""
    passed = 0
    with contextlib.suppress(ConnectionError):
        while chunk := await source.read(_CHUNK_BYTES):
            passed += len(chunk)
            if limit is not None and passed > limit:
                return True
            to.write(chunk)
            await to.drain()
    return False
