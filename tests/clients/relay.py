"""A relay before the gateway that cuts a connection in the middle, as a bad network does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

# Asked of each chunk of answers before it is passed on: whether the connection is cut here.
Cut = Callable[[bytes], bool]

_CHUNK_BYTES = 512
_HOST = "127.0.0.1"
_LINGER_S = 5.0


@dataclass
class Relay:
    """Passes bytes on to `target`; cuts each of the first connections where its cut says."""

    target: str
    pending: list[Cut]
    ready: Callable[[], Awaitable[object]]
    """Waited for before a cut: a browser throws away what it received and has not handed out."""
    address: str = ""
    cuts: int = 0
    connections: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def accept(self, down: asyncio.StreamReader, up: asyncio.StreamWriter) -> None:
        """Relays one connection in a task of its own."""
        self.connections += 1
        cut = self.pending.pop(0) if self.pending else _never
        self._tasks.add(asyncio.create_task(self._serve(down, up, cut)))

    async def close(self) -> None:
        """Ends what is still open."""
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks)

    async def _serve(self, down: asyncio.StreamReader, up: asyncio.StreamWriter, cut: Cut) -> None:
        host, _, port = self.target.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        self._writers |= {up, writer}
        upwards = asyncio.create_task(_pass(down, writer, _never))
        if await _pass(reader, up, cut):
            await self.ready()
            self.cuts += 1
        writer.transport.abort()
        # What was passed on must arrive: a reset would overtake it, so the client closes first.
        with contextlib.suppress(ConnectionError, TimeoutError):
            up.write_eof()
            await asyncio.wait_for(upwards, _LINGER_S)
        up.transport.abort()
        await asyncio.gather(upwards, return_exceptions=True)


async def _at_once() -> None:
    """Waits for nothing."""


@contextlib.asynccontextmanager
async def relay(
    target: str, *cuts: int | Cut, ready: Callable[[], Awaitable[object]] = _at_once
) -> AsyncIterator[Relay]:
    """A relay to `host:port` whose first connections are cut; a number: after so many bytes."""
    pending = [after_bytes(cut) if isinstance(cut, int) else cut for cut in cuts]
    made = Relay(target, pending, ready)
    server = await asyncio.start_server(made.accept, _HOST, 0)
    made.address = f"{_HOST}:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        await made.close()


def after_bytes(limit: int) -> Cut:
    """Cuts where more than so many bytes would have been passed on."""
    passed = 0

    def cut(chunk: bytes) -> bool:
        nonlocal passed
        passed += len(chunk)
        return passed > limit

    return cut


def before(words: bytes) -> Cut:
    """Cuts before these bytes, plain in the frames of HTTP/2, have wholly arrived."""
    tail = b""

    def cut(chunk: bytes) -> bool:
        nonlocal tail
        tail = tail[-len(words) :] + chunk
        return words in tail

    return cut


def _never(_: bytes) -> bool:
    return False


async def _pass(source: asyncio.StreamReader, to: asyncio.StreamWriter, cut: Cut) -> bool:
    """Copies until the end, or until the cut; whether the cut ended it."""
    with contextlib.suppress(ConnectionError):
        while chunk := await source.read(_CHUNK_BYTES):
            if cut(chunk):
                return True
            with contextlib.suppress(ConnectionError):
                to.write(chunk)
                await to.drain()
    return False
