"""A line between a client and the gateway that breaks by chance, as a bad network does.

Each connection passes some bytes of answers, then it is cut or, a few times, falls silent for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

_HOST: Final = "127.0.0.1"
_CHUNK_BYTES: Final = 512
_LEAST_BYTES: Final = 300
_MOST_BYTES: Final = 6_000


@dataclass
class Weather:
    """What lines may do, and what they did."""

    chance: random.Random
    stalls_left: int = 0
    stall_share: float = 0.02
    cuts: int = 0
    stalls: int = 0

    def stalls_now(self) -> bool:
        """Whether the connection that would be cut falls silent instead."""
        if not self.stalls_left or self.chance.random() >= self.stall_share:
            return False
        self.stalls_left -= 1
        self.stalls += 1
        return True


@dataclass
class Line:
    """Passes bytes between its clients and `target` until chance says otherwise."""

    target: str
    weather: Weather
    address: str = ""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def accept(self, down: asyncio.StreamReader, up: asyncio.StreamWriter) -> None:
        """Serves one connection in a task of its own."""
        task = asyncio.create_task(self._serve(down, up))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ends what is still open."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, down: asyncio.StreamReader, up: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        passing: list[asyncio.Task[None]] = []
        writers = [up]
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
            writers.append(writer)
            passing.append(asyncio.create_task(_pass(down, writer)))
            passing.append(asyncio.create_task(self._answer(reader, up)))
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # the gateway is not there, and so the client's connection ends
        finally:
            for task in passing:
                task.cancel()
            await asyncio.gather(*passing, return_exceptions=True)
            for writer in writers:
                writer.transport.abort()

    async def _answer(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        """Passes answers on until the cut."""
        left = self.weather.chance.randint(_LEAST_BYTES, _MOST_BYTES)
        with contextlib.suppress(ConnectionError):
            while chunk := await source.read(_CHUNK_BYTES):
                left -= len(chunk)
                if left <= 0:
                    if self.weather.stalls_now():
                        await asyncio.Event().wait()
                    self.weather.cuts += 1
                    return
                to.write(chunk)
                await to.drain()


async def _pass(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while chunk := await source.read(_CHUNK_BYTES):
            to.write(chunk)
            await to.drain()


@contextlib.asynccontextmanager
async def bad_line(target: str, weather: Weather) -> AsyncIterator[Line]:
    """A line to `host:port` for the body."""
    line = Line(target, weather)
    server = await asyncio.start_server(line.accept, _HOST, 0)
    line.address = f"{_HOST}:{server.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        server.close()
        await line.close()
