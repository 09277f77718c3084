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
from pathlib import Path
from typing import TypeVar, overload

FIRST_PAUSE_S = 0.005
LONGEST_PAUSE_S = 0.1
PATIENCE = 4
"""How much slower than a quiet machine one may be.

Times in tests are those of a quiet machine: what waits is given so many times more.
"""

T = TypeVar("T")


@overload
async def eventually(condition: Callable[[], Awaitable[T]], timeout_s: float = 10.0) -> T: ...


@overload
async def eventually(condition: Callable[[], T], timeout_s: float = 10.0) -> T: ...


async def eventually(condition: Callable[[], T | Awaitable[T]], timeout_s: float = 10.0) -> T:
    """Poll ``condition`` until what it returns is true, and return that.

    ``timeout_s`` is what suffices on a quiet machine.

    An exception that the condition raises ends the wait: a condition that may fail for a while says
    so by catching what it expects.

    Raises:
        AssertionError: it was not true in time; the message holds the last value.

    """
    timeout_s *= PATIENCE
    deadline = time.monotonic() + timeout_s
    pause_s = FIRST_PAUSE_S
    value: T | None = None
    while True:
        try:
            value = await _evaluate(condition, deadline)
        except _HungError:
            message = f"{_named(condition)} did not return within {timeout_s} s;"
            raise AssertionError(f"{message} the last value was {value!r}") from None
        if value:
            return value
        if time.monotonic() >= deadline:
            message = f"{_named(condition)} was not true within {timeout_s} s;"
            raise AssertionError(f"{message} the last value was {value!r}")
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


async def in_time(awaitable: Awaitable[T], timeout_s: float) -> T:
    """Await it for so long on a quiet machine. Raises TimeoutError."""
    return await asyncio.wait_for(awaitable, timeout_s * PATIENCE)


class _HungError(Exception):
    """A condition did not return before the deadline."""


async def _evaluate(condition: Callable[[], T | Awaitable[T]], deadline: float) -> T:
    """Return the condition's value; one that hangs past the deadline fails the wait."""
    value = condition()
    if not inspect.isawaitable(value):
        return value
    limit = asyncio.timeout(max(deadline - time.monotonic(), FIRST_PAUSE_S))
    try:
        async with limit:
            return await value
    except TimeoutError:
        if not limit.expired():
            raise
        raise _HungError from None


def _named(condition: Callable[..., object]) -> str:
    """Which condition it was, and where it stands."""
    code = getattr(condition, "__code__", None)
    where = f" ({Path(code.co_filename).name}:{code.co_firstlineno})" if code else ""
    return f"{getattr(condition, '__qualname__', condition)}{where}"
