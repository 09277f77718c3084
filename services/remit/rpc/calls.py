"""The call that is being served, and tasks that outlive it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from remit.api.options.v1.options_pb2 import Caller

if TYPE_CHECKING:
    # It brings the JWT library, which a client that only calls does not need.
    from remit.rpc.remits import Remit

T = TypeVar("T")

REMIT_KEY: Final = "remit-token"
"""Metadata key that carries a remit."""

RUNS_KEY: Final = "x-remit-runs"
"""Metadata key by which services tell each other the runs that a call is for, for their logs. The
edge removes whatever clients send under `x-remit-`."""

TRACE_KEY: Final = "traceparent"
"""Metadata key of the trace context (W3C Trace Context)."""


@dataclass(frozen=True)
class Call:
    """What the server knows of the call in progress."""

    method: str
    caller: Caller.ValueType
    remit: Remit | None
    remit_token: str
    deadline: float
    """Monotonic seconds at which the answer must have been given."""
    trace_id: str
    """32 hex digits."""
    monotonic: Callable[[], float] = time.monotonic
    """The clock of `deadline`."""

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - self.monotonic()


_call: contextvars.ContextVar[Call | None] = contextvars.ContextVar("remit_call", default=None)
_token: contextvars.ContextVar[str] = contextvars.ContextVar("remit_token", default="")


def current_call() -> Call:
    """The call being served. Raises LookupError outside of one."""
    call = _call.get()
    if call is None:
        message = "no call is being served"
        raise LookupError(message)
    return call


def current_call_or_none() -> Call | None:
    """The call being served, or None in background work."""
    return _call.get()


def current_remit() -> Remit:
    """The remit of the call being served. Raises LookupError where its contract asks for none."""
    remit = current_call().remit
    if remit is None:
        message = "this RPC is called without a remit"
        raise LookupError(message)
    return remit


@contextlib.contextmanager
def serving(call: Call) -> Iterator[None]:
    """Makes `call` the current one for the body."""
    reset = _call.set(call)
    try:
        yield
    finally:
        # A stream that nobody finished is closed by a task with a context of its own.
        with contextlib.suppress(ValueError):
            _call.reset(reset)


@contextlib.contextmanager
def remit_token(token: str) -> Iterator[None]:
    """Sends `token` with every RPC that the body makes."""
    reset = _token.set(token)
    try:
        yield
    finally:
        _token.reset(reset)


def outgoing_remit_token() -> str:
    """The token to send, or an empty string."""
    return _token.get()


async def shielded(task: asyncio.Task[T]) -> T:
    """Awaits a task that goes on when the caller leaves; what it raises then is no lost error."""
    task.add_done_callback(_retrieved)
    return await asyncio.shield(task)


def _retrieved(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def spawn(work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
    """Starts work that outlives the call in progress: it keeps the trace, not the deadline."""
    context = contextvars.copy_context()
    context.run(_call.set, None)
    context.run(_token.set, "")
    return asyncio.create_task(work, name=name, context=context)
