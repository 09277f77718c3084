"""Running one tool: in bounded time, in bounded room, with errors that a caller may see.

A coroutine that does not stop when it is cancelled, and a thread that cannot be stopped at all, are
left behind once their time is up: the caller is answered, and what was left behind keeps its place
among the running tools until it ends, so that it can never pile up past the bound.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from remit import telemetry
from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.calls import spawn
from remit.rpc.errors import RemitError
from remit.tools.context import NothingDoneError, ToolContext, ToolError
from remit.tools.definition import ToolDefinition
from remit.tools.results import Outcome, ResultLimits, to_outcome

STOP_GRACE_S: Final = 0.5
"""Time that a cancelled coroutine has to clean up before it is left behind."""

# What a tool may say of itself. Anything else, a retryable reason above all, would be believed by
# the gate as if the service had said it.
_REASONS_OF_TOOLS: Final = frozenset(
    {
        error_reason_pb2.ERROR_REASON_CANCELLED,
        error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
        error_reason_pb2.ERROR_REASON_EFFECT_IN_DOUBT,
        error_reason_pb2.ERROR_REASON_TOO_LARGE,
        error_reason_pb2.ERROR_REASON_TOOL_FAILED,
    }
)

_logger = telemetry.logger(__name__)


@dataclass(frozen=True)
class ExecutionLimits:
    """Bounds of all running tools of this process."""

    max_running: int
    max_blocking: int


class NotStartedError(RemitError):
    """The tool did not begin: the same call may be made again, whatever the tool is."""


class StoppedInTimeError(RemitError):
    """The tool was stopped and says that it did nothing: the same call may be made again."""


class Execution:
    """Runs tools. At most `max_running` at once, `max_blocking` of them in threads."""

    def __init__(self, limits: ExecutionLimits, result_limits: ResultLimits) -> None:
        self._limits = limits
        self._result_limits = result_limits
        self._running: set[asyncio.Future[Any]] = set()
        self._free_threads = asyncio.Semaphore(limits.max_blocking)

    @property
    def running(self) -> int:
        """Tools now running, those left behind included."""
        return len(self._running)

    def check_room(self) -> None:
        """Refuse what could not run now, before anything is paid for it.

        Raises:
            NotStartedError: OVERLOADED, to be tried again later.

        """
        if self.running >= self._limits.max_running:
            raise NotStartedError(
                error_reason_pb2.ERROR_REASON_OVERLOADED,
                f"{self.running} tools are running, the limit of this replica",
            )

    async def run(
        self, definition: ToolDefinition, keywords: dict[str, Any], context: ToolContext
    ) -> Outcome:
        """Run a tool once, until `context.deadline` at the latest.

        Raises:
            NotStartedError: OVERLOADED.
            StoppedInTimeError: CANCELLED or DEADLINE_EXCEEDED.
            RemitError: DEADLINE_EXCEEDED, TOO_LARGE, TOOL_FAILED with the tool's own message, or
                what the tool itself raised of these.
            asyncio.CancelledError: the caller was cancelled; the tool was asked to stop.

        """
        self.check_room()
        if definition.context_parameter is not None:
            keywords = {**keywords, definition.context_parameter: context}
        start = self._run_blocking if definition.blocking else _run_coroutine
        # spawn: the tool sees neither the call in progress nor its remit
        task = spawn(start(definition, keywords), name=definition.resource_name)
        returned = await self._until_deadline(definition, task, context)
        return to_outcome(definition.resource_name, returned, self._result_limits)

    async def _until_deadline(
        self, definition: ToolDefinition, task: asyncio.Task[object], context: ToolContext
    ) -> object:
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            done, _ = await asyncio.wait({task}, timeout=context.remaining_s())
        except asyncio.CancelledError:
            if not await _stopped(task, context):
                raise
            return _returned(definition, task, context)
        if not done and not await _stopped(task, context):
            raise _too_slow(context)
        return _returned(definition, task, context)

    async def _run_blocking(self, definition: ToolDefinition, keywords: dict[str, Any]) -> object:
        """Run a blocking tool in a thread. Its place is free again when the thread ends."""
        try:
            await self._free_threads.acquire()
        except asyncio.CancelledError:
            raise NotStartedError(
                error_reason_pb2.ERROR_REASON_OVERLOADED,
                f"no thread was free for {definition.resource_name} in time",
            ) from None
        thread = _start_thread(definition, keywords)
        thread.add_done_callback(lambda _: self._free_threads.release())
        thread.add_done_callback(self._ended)
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            await asyncio.wait({thread}, timeout=STOP_GRACE_S / 2)
            if thread.done():
                return thread.result()  # it was asked to stop, and tells how far it came
            self._running.add(thread)
            raise

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # retrieved here so that what a tool left behind raises is not reported as lost
            _logger.debug("tool_ended_with_error", error_type=type(task.exception()).__name__)

    async def close(self, drain_s: float) -> None:
        """Wait for running tools, at most `drain_s` seconds, then leave them behind."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=drain_s)
        if self._running:
            _logger.warning("tools_left_behind", count=self.running)


@asynccontextmanager
async def open_execution(
    limits: ExecutionLimits, result_limits: ResultLimits, *, drain_s: float
) -> AsyncIterator[Execution]:
    """An Execution whose tools are waited for at the end, at most `drain_s` seconds."""
    execution = Execution(limits, result_limits)
    try:
        yield execution
    finally:
        await execution.close(drain_s)


async def _run_coroutine(definition: ToolDefinition, keywords: dict[str, Any]) -> object:
    try:
        returned: Any = definition.function(**keywords)
        return await returned
    except SystemExit:  # out of a task it would end the whole service
        raise ToolError("it tried to end the process") from None


def _start_thread(definition: ToolDefinition, keywords: dict[str, Any]) -> asyncio.Future[object]:
    """Call a blocking function in a daemon thread, which no exit of the process waits for."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[object] = loop.create_future()
    context = contextvars.copy_context()

    def report(settle: Callable[[Any], None], outcome: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, outcome)

    def work() -> None:
        try:
            returned = context.run(definition.function, **keywords)
        except (SystemExit, KeyboardInterrupt, StopIteration) as error:  # a future takes none
            report(ended.set_exception, ToolError(f"it raised {type(error).__name__}"))
        except BaseException as error:  # noqa: BLE001 - reported to whoever waits
            report(ended.set_exception, error)
        else:
            report(ended.set_result, returned)

    threading.Thread(target=work, name=definition.resource_name, daemon=True).start()
    return ended


async def _stopped(task: asyncio.Future[Any], context: ToolContext) -> bool:
    """Ask a tool to stop, give it a moment, and tell whether it still said how it ended."""
    context.cancellation.request()
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=STOP_GRACE_S)
    if not done:
        context.logger.warning("tool_left_behind", tool=context.tool)
    return bool(done) and not task.cancelled()


def _too_slow(context: ToolContext) -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
        f"{context.tool} did not end within its time limit",
    )


def _stopped_in_time(
    name: str, error: NothingDoneError, context: ToolContext
) -> StoppedInTimeError:
    """The error of a tool that had done nothing yet, with the reason why it was stopped."""
    is_late = context.remaining_s() <= 0
    late, left = (
        error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
        error_reason_pb2.ERROR_REASON_CANCELLED,
    )
    return StoppedInTimeError(late if is_late else left, f"{name}: {error}")


def _returned(
    definition: ToolDefinition, task: asyncio.Future[Any], context: ToolContext
) -> object:
    """What the tool returned. An exception becomes an error that a caller may see.

    Only a ToolError speaks for itself: the text of any other exception may hold a credential or a
    path, so it goes to the log and the caller learns its type.
    """
    name = definition.resource_name
    if task.cancelled():
        raise RemitError(error_reason_pb2.ERROR_REASON_TOOL_FAILED, f"{name} cancelled itself")
    error = task.exception()
    if error is None:
        return task.result()
    if isinstance(error, NotStartedError):
        raise error
    if isinstance(error, RemitError) and error.reason in _REASONS_OF_TOOLS:
        raise error
    if isinstance(error, NothingDoneError) and context.is_stopped:
        raise _stopped_in_time(name, error, context) from None
    if isinstance(error, ToolError):
        raise RemitError(error_reason_pb2.ERROR_REASON_TOOL_FAILED, f"{name}: {error}") from None
    _logger.error("tool_raised", tool=name, exc_info=error)
    raise RemitError(
        error_reason_pb2.ERROR_REASON_TOOL_FAILED,
        f"{name} failed with {type(error).__name__}; the service's log tells more",
    ) from None
