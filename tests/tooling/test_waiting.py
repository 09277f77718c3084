"""Waiting returns what became true, and fails with the last value."""

from __future__ import annotations

import asyncio

import pytest

from tests.waiting import eventually


async def test_returns_the_first_true_value() -> None:
    values = iter([0, 0, 7, 8])
    assert await eventually(lambda: next(values)) == 7


async def test_awaits_an_async_condition() -> None:
    async def condition() -> str:
        return "ready"

    assert await eventually(condition) == "ready"


async def test_fails_with_the_last_value() -> None:
    with pytest.raises(AssertionError, match=r"last value was \[\]"):
        await eventually(list, timeout_s=0.02)


async def test_a_hanging_condition_fails_at_the_deadline() -> None:
    with pytest.raises(AssertionError, match="did not return"):
        await eventually(asyncio.Event().wait, timeout_s=0.02)


async def test_an_error_of_the_condition_ends_the_wait() -> None:
    def broken() -> bool:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        await eventually(broken)
