"""Text on its way from the engine to the caller.

The engine never waits for a slow reader: what is not read yet is joined, and the answer's own bound
bounds it.
"""

from __future__ import annotations

import asyncio


class Deltas:
    """Text that was generated and not yet read."""

    def __init__(self) -> None:
        self._unread: list[str] = []
        self._news = asyncio.Event()

    def add(self, text: str) -> None:
        """Adds text; the reader wakes up."""
        self._unread.append(text)
        self._news.set()

    def end(self) -> None:
        """Wakes the reader up although nothing came."""
        self._news.set()

    async def take(self, timeout_s: float) -> str:
        """All unread text; empty if `timeout_s` seconds bring none, or at the end."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return ""
        self._news.clear()
        text = "".join(self._unread)
        self._unread.clear()
        return text
