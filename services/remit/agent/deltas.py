"""Gathering the text of a turn, so that a stream of tokens becomes few journal entries."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

_BACKLOG: Final = 8
"""Entries' worth of text that may wait for a commit before the model's stream is held back."""


class DeltaBuffer:
    """Hands text on when enough of it came together or its first piece is old enough."""

    def __init__(
        self, flush: Callable[[str], Awaitable[None]], *, interval_s: float, max_chars: int
    ) -> None:
        self._flush = flush
        self._interval_s = interval_s
        self._max_chars = max_chars
        self._parts: list[str] = []
        self._chars = 0
        self._some = asyncio.Event()
        self._full = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._closed = False
        self._flusher: asyncio.Task[None] | None = None

    async def add(self, text: str) -> None:
        """Takes text; waits while too much of it is waiting. Raises what a flush raised."""
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._run())
        self._parts.append(text)
        self._chars += len(text)
        self._some.set()
        if self._chars >= self._max_chars:
            self._full.set()
        if self._chars >= self._max_chars * _BACKLOG:
            self._room.clear()
            await self._until_room(self._flusher)
        if self._flusher.done():
            self._flusher.result()

    async def close(self) -> None:
        """Lets a flush in progress end; text that still waits is left to the caller."""
        self._closed = True
        self._some.set()
        self._full.set()
        if self._flusher is not None:
            await self._flusher

    def cancel(self) -> None:
        """Gives the text up: the worker stops."""
        if self._flusher is not None:
            self._flusher.cancel()

    async def _until_room(self, flusher: asyncio.Task[None]) -> None:
        room = asyncio.ensure_future(self._room.wait())
        try:
            await asyncio.wait([room, flusher], return_when=asyncio.FIRST_COMPLETED)
        finally:
            room.cancel()

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            await self._until_ripe()
            if self._closed:
                return
            text = "".join(self._parts)
            self._parts.clear()
            self._chars = 0
            self._some.clear()
            self._full.clear()
            await self._flush(text)
            self._room.set()

    async def _until_ripe(self) -> None:
        try:
            async with asyncio.timeout(self._interval_s):
                await self._full.wait()
        except TimeoutError:
            return
