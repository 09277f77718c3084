"""Gathering text: nothing lost, nothing late, a slow journal holds the model back."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.agent.deltas import DeltaBuffer
from tests.waiting import eventually, in_time


@given(st.lists(st.text(max_size=10), max_size=20))
async def test_what_was_flushed_is_a_prefix_of_what_came(texts: list[str]) -> None:
    flushed: list[str] = []

    async def flush(text: str) -> None:
        await asyncio.sleep(0)
        flushed.append(text)

    buffer = DeltaBuffer(flush, interval_s=0.0, max_chars=7)
    for text in texts:
        await buffer.add(text)
        await asyncio.sleep(0)
    await buffer.close()
    assert "".join(texts).startswith("".join(flushed))


async def test_text_is_handed_on_when_enough_or_old_enough() -> None:
    flushed: list[str] = []

    async def flush(text: str) -> None:
        flushed.append(text)

    buffer = DeltaBuffer(flush, interval_s=0.05, max_chars=4)
    await buffer.add("ab")
    await buffer.add("cd")
    await eventually(lambda: flushed == ["abcd"])
    await buffer.add("e")
    assert flushed == ["abcd"]
    await eventually(lambda: flushed == ["abcd", "e"])
    await buffer.close()


async def test_a_slow_journal_holds_the_model_back() -> None:
    released = asyncio.Event()

    async def flush(_: str) -> None:
        await released.wait()

    buffer = DeltaBuffer(flush, interval_s=0.001, max_chars=1)
    added = 0

    async def pour() -> None:
        nonlocal added
        for _ in range(100):
            await buffer.add("x")
            added += 1
            await asyncio.sleep(0.001)

    pouring = asyncio.create_task(pour())
    await eventually(lambda: added >= 5)
    done, _ = await asyncio.wait([pouring], timeout=0.3)
    assert not done
    assert added < 20
    released.set()
    await pouring
    await buffer.close()


async def test_what_a_flush_raises_reaches_whoever_adds() -> None:
    async def flush(_: str) -> None:
        raise LookupError

    buffer = DeltaBuffer(flush, interval_s=0.0, max_chars=1)

    async def pour() -> None:
        while True:
            await buffer.add("x")
            await asyncio.sleep(0)

    with pytest.raises(LookupError):
        await in_time(pour(), 5)
