"""Text between an engine that never waits and a reader that may be slow."""

from __future__ import annotations

import asyncio

from remit.inference.streaming import Deltas


async def test_what_is_not_read_is_joined() -> None:
    deltas = Deltas()
    deltas.add("a")
    deltas.add("b")
    assert await deltas.take(1) == "ab"
    assert await deltas.take(0) == ""


async def test_a_waiting_reader_wakes_up_for_text_and_for_the_end() -> None:
    deltas = Deltas()
    reading = asyncio.create_task(deltas.take(5))
    await asyncio.sleep(0)
    deltas.add("x")
    assert await reading == "x"
    reading = asyncio.create_task(deltas.take(5))
    await asyncio.sleep(0)
    deltas.end()
    assert await reading == ""


async def test_silence_ends_the_wait() -> None:
    assert await Deltas().take(0.01) == ""
