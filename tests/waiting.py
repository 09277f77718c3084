"""Waiting for a condition with a deadline: the only place in the tests that sleeps.

A fixed sleep is either too short on a busy machine or too long on an idle one, and says nothing
when it was too short. A condition is polled until it holds, and its last value tells what went
wrong.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

FIRST_PAUSE_S = 0.005
LONGEST_PAUSE_S = 0.1

T = TypeVar("T")


@overload
async def eventually(condition: Callable[[], Awaitable[T]], timeout_s: float = 10.0) -> T: ...


@overload
async def eventually(condition: Callable[[], T], timeout_s: float = 10.0) -> T: ...


async def eventually(condition: Callable[[], T | Awaitable[T]], timeout_s: float = 10.0) -> T:
    """Poll ``condition`` until what it returns is true, and return that.

    An exception that the condition raises ends the wait: a condition that may fail for a while says
    so by catching what it expects.

    Raises:
        AssertionError: it was not true in time; the message holds the last value.

    """
    deadline = time.monotonic() + timeout_s
    pause_s = FIRST_PAUSE_S
    value = await _evaluate(condition, deadline)
    while not value:
        if time.monotonic() >= deadline:
            message = f"not true within {timeout_s} s; the last value was {value!r}"
            raise AssertionError(message)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        value = await _evaluate(condition, deadline)
    return value


async def _evaluate(condition: Callable[[], T | Awaitable[T]], deadline: float) -> T:
    """Return the condition's value; one that hangs past the deadline fails the wait."""
    value = condition()
    if not inspect.isawaitable(value):
        return value
    limit = asyncio.timeout(max(deadline - time.monotonic(), FIRST_PAUSE_S))
    try:
        async with limit:
            return await value
    except TimeoutError as error:
        if not limit.expired():
            raise
        message = "the condition itself did not return before the deadline"
        raise AssertionError(message) from error
