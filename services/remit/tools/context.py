"""What a tool may know about the call it serves, and nothing more.

A tool that declares a parameter annotated `ToolContext` is given one; the parameter is no part of
its schema. The remit and its token are left out on purpose: a tool acts, it does not authorise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError


class ToolError(Exception):
    """A failure that a tool explains itself.

    The message reaches the caller and the model as it is, so it must name what went wrong and hold
    no secret. Any other exception reaches them by its type alone.
    """


class NothingDoneError(ToolError):
    """What a tool raises that was stopped before it had done anything, and knows so for certain.

    The call counts as cancelled, not as in doubt, and may be made again whatever the tool is. From
    a tool that nobody stopped it is a failure as any other.
    """


class Cancellation:
    """Asks a running tool to stop; safe between threads.

    A coroutine is stopped by its task being cancelled. A blocking tool looks at `requested`, or
    leaves with `on_request` something that wakes it, such as closing a socket.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requested = False
        self._callbacks: list[Callable[[], None]] = []

    @property
    def requested(self) -> bool:
        """Whether the tool should stop."""
        return self._requested

    def request(self) -> None:
        """Ask the tool to stop; a second request changes nothing."""
        with self._lock:
            if self._requested:
                return
            self._requested = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_request(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when a stop is asked for, from whichever thread asks."""
        with self._lock:
            if not self._requested:
                self._callbacks.append(callback)
                return
        callback()


@dataclass(frozen=True)
class ToolContext:
    """One call, as its tool sees it.

    `key` names the effect and stays the same when it is made again: a tool hands it on to whatever
    can deduplicate by it. `workspace_path` is the folder of the subject, the only one that a tool
    may write to; it may not exist yet. `deadline` is in seconds of `clock.monotonic()`.
    """

    key: str
    tool: str
    clock: Clock
    deadline: float
    workspace_path: Path
    org: str
    subject: str
    run: str
    logger: Any  # a structlog logger; they are duck-typed
    cancellation: Cancellation = field(default_factory=Cancellation)

    def workspace(self) -> Path:
        """The folder of the subject, made if it does not exist. Raises OSError if it cannot be."""
        self.workspace_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.workspace_path

    def remaining_s(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(self.deadline - self.clock.monotonic(), 0.0)

    @property
    def is_stopped(self) -> bool:
        """Whether the tool's time is up or it was asked to stop."""
        return self.cancellation.requested or self.remaining_s() <= 0

    def check(self) -> None:
        """Stop a blocking tool whose time is up.

        Raises:
            RemitError: DEADLINE_EXCEEDED past the deadline, CANCELLED after a request to stop.

        """
        if self.remaining_s() <= 0:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
                f"{self.tool} did not end before its deadline",
            )
        if self.cancellation.requested:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_CANCELLED, f"{self.tool} was asked to stop"
            )
