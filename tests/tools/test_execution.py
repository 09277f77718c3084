"""Running tools: bounded in time and number, with errors that may be shown."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.api.errors.v1.error_reason_pb2 import ErrorReason
from remit.rpc.calls import current_call_or_none
from remit.rpc.errors import RemitError
from remit.tools import NothingDoneError, ToolContext, ToolError, tool
from remit.tools.definition import define
from remit.tools.execution import (
    Execution,
    ExecutionLimits,
    NotStartedError,
    StoppedInTimeError,
    open_execution,
)
from remit.tools.results import Outcome
from tests.effects.world import a_call
from tests.tools.calls import LIMITS, context_of
from tests.waiting import eventually

Function = Callable[..., object]


def declared(function: Function) -> Function:
    return tool(permission_class="none")(function)


async def run(
    function: Function,
    tmp_path: Path,
    *,
    limit_s: float = 10.0,
    execution: Execution | None = None,
    **keywords: Any,
) -> Outcome:
    definition = define(declared(function))
    execution = execution or Execution(ExecutionLimits(8, 2), LIMITS)
    return await execution.run(definition, keywords, context_of(tmp_path, limit_s=limit_s))


async def error_of(function: Function, tmp_path: Path, limit_s: float = 10.0) -> RemitError:
    with pytest.raises(RemitError) as caught:
        await run(function, tmp_path, limit_s=limit_s)
    return caught.value


async def says_why() -> None:
    """Fail."""
    raise ToolError("the paper tray is empty")


def says_why_blocking() -> None:
    """Fail."""
    raise ToolError("the paper tray is empty")


async def leaks() -> None:
    """Fail."""
    raise ValueError("password=hunter2")


def leaks_blocking() -> None:
    """Fail."""
    raise ValueError("password=hunter2")


async def pretends_to_be_overloaded() -> None:
    """Fail."""
    raise RemitError(error_reason_pb2.ERROR_REASON_OVERLOADED, "password=hunter2")


async def exits() -> None:
    """Exit."""
    sys.exit(3)


def exits_blocking() -> None:
    """Exit."""
    sys.exit(3)


def stops_iterating() -> None:
    """Raise what no future takes."""
    raise StopIteration


async def cancels_itself() -> None:
    """Cancel."""
    raise asyncio.CancelledError


async def returns_nonsense() -> object:
    """Return what is not JSON."""
    return object()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (says_why, "the paper tray is empty"),
        (says_why_blocking, "the paper tray is empty"),
        (leaks, "failed with ValueError"),
        (leaks_blocking, "failed with ValueError"),
        (pretends_to_be_overloaded, "failed with RemitError"),
        (exits, "it tried to end the process"),
        (exits_blocking, "it raised SystemExit"),
        (stops_iterating, "it raised StopIteration"),
        (cancels_itself, "cancelled itself"),
        (returns_nonsense, "returned something that is not JSON"),
    ],
)
async def test_a_failure_is_told_by_the_tool_or_by_its_type_alone(
    function: Function, message: str, tmp_path: Path
) -> None:
    error = await error_of(function, tmp_path)
    assert error.reason == error_reason_pb2.ERROR_REASON_TOOL_FAILED
    assert error.message.startswith("tools/")
    assert message in error.message
    assert "hunter2" not in str(error.to_status())
    assert "Traceback" not in error.message


@pytest.mark.parametrize(
    "reason",
    [error_reason_pb2.ERROR_REASON_EFFECT_IN_DOUBT, error_reason_pb2.ERROR_REASON_TOO_LARGE],
)
async def test_a_tool_may_say_what_a_tool_can_know(
    reason: ErrorReason.ValueType, tmp_path: Path
) -> None:
    async def fails() -> None:
        """Fail."""
        raise RemitError(reason, "as the tool says")

    error = await error_of(fails, tmp_path)
    assert (error.reason, error.message) == (reason, "as the tool says")


async def test_a_coroutine_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    stopped = asyncio.Event()

    async def waits() -> None:
        """Wait."""
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    error = await error_of(waits, tmp_path, limit_s=0.05)
    assert error.reason == error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    assert error.message == "tools/test did not end within its time limit"
    assert stopped.is_set()


async def test_a_coroutine_that_will_not_stop_is_left_behind_and_counted(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def stubborn() -> None:
        """Swallow every request to stop."""
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    execution = Execution(ExecutionLimits(1, 1), LIMITS)
    started = time.monotonic()
    with pytest.raises(RemitError) as caught:
        await run(stubborn, tmp_path, limit_s=0.05, execution=execution)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    assert time.monotonic() - started < 20
    assert execution.running == 1
    with pytest.raises(RemitError) as caught:
        execution.check_room()
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_OVERLOADED
    assert caught.value.retry_after_s
    release.set()
    await eventually(lambda: execution.running == 0)


async def test_a_thread_that_will_not_stop_is_left_behind_and_keeps_its_place(
    tmp_path: Path,
) -> None:
    release = threading.Event()

    def stubborn() -> None:
        """Wait for the test alone."""
        release.wait(timeout=30)

    def quick() -> str:
        """Answer."""
        return "quick"

    execution = Execution(ExecutionLimits(8, 1), LIMITS)
    with pytest.raises(RemitError) as caught:
        await run(stubborn, tmp_path, limit_s=0.05, execution=execution)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    with pytest.raises(NotStartedError) as not_started:
        await run(stubborn, tmp_path, limit_s=0.05, execution=execution)
    assert not_started.value.reason == error_reason_pb2.ERROR_REASON_OVERLOADED
    assert execution.running == 1
    release.set()
    outcome = await run(quick, tmp_path, execution=execution)
    assert outcome.result["value"] == "quick"
    await eventually(lambda: execution.running == 0)


async def test_a_blocking_tool_that_listens_tells_how_far_it_came(tmp_path: Path) -> None:
    def listens(context: ToolContext) -> str:
        """Stop when asked to."""
        woken = threading.Event()
        context.cancellation.on_request(woken.set)
        woken.wait(timeout=30)
        return f"stopped: {context.cancellation.requested}"

    outcome = await run(listens, tmp_path, limit_s=0.05)
    assert outcome.result["value"] == "stopped: True"


async def test_a_tool_that_was_stopped_may_say_that_it_did_nothing(tmp_path: Path) -> None:
    def nothing_yet(context: ToolContext) -> None:
        """Stop before anything is done."""
        woken = threading.Event()
        context.cancellation.on_request(woken.set)
        woken.wait(timeout=30)
        raise NothingDoneError("nothing was printed")

    async def nobody_stopped_it() -> None:
        """Fail."""
        raise NothingDoneError("nothing was printed")

    with pytest.raises(StoppedInTimeError) as caught:
        await run(nothing_yet, tmp_path, limit_s=0.05)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    assert caught.value.message == "tools/nothing_yet: nothing was printed"
    error = await error_of(nobody_stopped_it, tmp_path)
    assert not isinstance(error, StoppedInTimeError)
    assert error.reason == error_reason_pb2.ERROR_REASON_TOOL_FAILED


async def test_a_cancelled_call_asks_the_tool_to_stop(tmp_path: Path) -> None:
    seen: list[ToolContext] = []

    async def waits(context: ToolContext) -> None:
        """Wait."""
        seen.append(context)
        await asyncio.Event().wait()

    task = asyncio.create_task(run(waits, tmp_path))
    await eventually(lambda: seen)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen[0].cancellation.requested


async def test_no_more_tools_run_than_allowed(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def waits() -> str:
        """Wait."""
        await release.wait()
        return "done"

    execution = Execution(ExecutionLimits(2, 1), LIMITS)
    tasks = [asyncio.create_task(run(waits, tmp_path, execution=execution)) for _ in range(2)]
    await eventually(lambda: execution.running == 2)
    with pytest.raises(RemitError) as caught:
        await run(waits, tmp_path, execution=execution)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_OVERLOADED
    release.set()
    assert [(await task).result["value"] for task in tasks] == ["done", "done"]
    assert execution.running == 0


async def test_closing_waits_for_tools_so_long_and_no_longer(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def waits() -> None:
        """Wait."""
        await release.wait()

    limits = ExecutionLimits(2, 1)
    async with open_execution(limits, LIMITS, drain_s=0.05) as execution:
        task = asyncio.create_task(run(waits, tmp_path, execution=execution))
        await eventually(lambda: execution.running)
    assert execution.running == 1
    release.set()
    await task


async def test_a_context_stops_a_tool_whose_time_is_over(tmp_path: Path) -> None:
    context = context_of(tmp_path, limit_s=0)
    assert context.remaining_s() == 0
    with pytest.raises(RemitError) as caught:
        context.check()
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    context = context_of(tmp_path)
    context.check()
    context.cancellation.request()
    context.cancellation.request()
    with pytest.raises(RemitError) as caught:
        context.check()
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_CANCELLED
    called: list[int] = []
    context.cancellation.on_request(lambda: called.append(1))
    assert called == [1]


async def test_the_workspace_is_made_on_demand(tmp_path: Path) -> None:
    context = context_of(tmp_path / "a" / "b")
    assert not context.workspace_path.exists()
    assert context.workspace().is_dir()
    assert context.workspace().stat().st_mode & 0o777 == 0o700


async def test_threads_see_no_call_in_progress(tmp_path: Path) -> None:
    def looks() -> str:
        """Look for a remit."""
        return str(current_call_or_none())

    with a_call():
        assert current_call_or_none() is not None
        outcome = await run(looks, tmp_path)
    assert outcome.result["value"] == "None"
