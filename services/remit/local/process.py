"""One supervised process: started, watched, restarted with backoff, stopped.

Each process is tethered, so that it dies with the supervisor however that dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from remit.api.errors.v1 import error_reason_pb2
from remit.local.tethered import Tie, signal_session, spawn_tethered
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError

_POLL_S: Final = 0.15
_LOG_TAIL_BYTES: Final = 4096
_LOG_TAIL_LINES: Final = 5


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a restart: doubling, bounded, forgotten after a good while."""

    first_s: float = 0.2
    longest_s: float = 10.0
    forget_after_s: float = 30.0
    attempts_to_start: int = 3
    """Deaths before a process was ever ready after which the start is given up."""

    def delay_s(self, deaths_in_a_row: int) -> float:
        """Seconds before the restart that follows this many deaths."""
        return min(self.first_s * float(2 ** min(deaths_in_a_row - 1, 30)), self.longest_s)


@dataclass(frozen=True)
class ProcessSpec:
    """What to run and how to treat it."""

    name: str
    command: tuple[str, ...]
    log: Path
    ready: Callable[[], Awaitable[str]]
    """Empty once it can do its work, else why not."""
    describe: str = ""
    environment: Mapping[str, str] | None = None
    """The whole environment; None passes on the supervisor's own."""
    ready_timeout_s: float = 180.0
    """A machine that is busy with much else takes minutes to read ten processes' modules."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout_s: float = 15.0
    """After this long it is killed."""
    tie: Tie = field(default_factory=Tie)
    backoff: Backoff = field(default_factory=Backoff)


class Reporter(Protocol):
    """Tells the user what happens to the parts."""

    def part(self, name: str, state: str, detail: str = "") -> None:
        """A part changed: starting, ready, died, restarting, draining, stopped."""
        ...

    def note(self, message: str) -> None:
        """Something about the whole."""
        ...


class Supervised:
    """A process kept running until `stop`."""

    def __init__(self, spec: ProcessSpec, reporter: Reporter, clock: Clock) -> None:
        self.spec = spec
        self.restarts = 0
        self.pids: list[int] = []
        """Every process id it ever had, for the check that nothing is left."""
        self._reporter = reporter
        self._clock = clock
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._first_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self.is_ready = False

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    async def start(self) -> None:
        """Starts it and waits until it is ready for the first time.

        Raises:
            RemitError: DEPENDENCY_UNAVAILABLE with the last lines of its log.

        """
        self._keeper = asyncio.create_task(self._keep(), name=f"keep-{self.spec.name}")
        await self._first_ready

    async def stop(self) -> None:
        """Asks it to end, kills it when it does not, and leaves nothing of its session."""
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            self._reporter.part(self.spec.name, "draining")
            await self._end(process)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if process is not None:
            self._reporter.part(self.spec.name, "stopped")

    def kill(self) -> None:
        """Ends it at once; `stop` still has to be awaited."""
        if self.pid is not None:
            signal_session(self.pid, signal.SIGKILL)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(self.spec.stop_signal)
        try:
            await asyncio.wait_for(process.wait(), self.spec.stop_timeout_s)
        except TimeoutError:
            limit = f"{self.spec.stop_timeout_s:.0f} s"
            self._reporter.part(self.spec.name, "killed", f"it did not end within {limit}")
            signal_session(process.pid, signal.SIGKILL)
            await process.wait()
        signal_session(process.pid, signal.SIGKILL)

    async def _keep(self) -> None:
        deaths = 0
        while not self._stopping:
            began = self._clock.monotonic()
            code = await self._run_once()
            if self._stopping:
                return
            lived_s = self._clock.monotonic() - began
            deaths = 1 if lived_s > self.spec.backoff.forget_after_s else deaths + 1
            if self._give_up(deaths, code):
                return
            delay_s = self.spec.backoff.delay_s(deaths)
            cause = f"{_cause(code)}; restarting in {delay_s:.1f} s, see {self.spec.log}"
            self._reporter.part(self.spec.name, "died", cause)
            await asyncio.sleep(delay_s)
            self.restarts += 1

    def _give_up(self, deaths: int, code: int) -> bool:
        """Whether it died too often before it was ever ready."""
        if self._first_ready.done() or deaths < self.spec.backoff.attempts_to_start:
            return False
        self._first_ready.set_exception(self._failed(_cause(code)))
        return True

    async def _run_once(self) -> int:
        self._reporter.part(self.spec.name, "starting", self.spec.describe)
        process = await self._spawn()
        self._process = process
        self.pids.append(process.pid)
        watcher = asyncio.create_task(self._watch_start(), name=f"start-{self.spec.name}")
        try:
            code = await process.wait()
        finally:
            self.is_ready = False
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        signal_session(process.pid, signal.SIGKILL)
        return code

    async def _spawn(self) -> asyncio.subprocess.Process:
        spec = self.spec
        descriptor = os.open(spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return await spawn_tethered(
                spec.command, spec.tie, descriptor, environment=spec.environment
            )
        finally:
            os.close(descriptor)

    async def _watch_start(self) -> None:
        give_up = self._clock.monotonic() + self.spec.ready_timeout_s
        while reason := await self.spec.ready():
            if self._clock.monotonic() >= give_up:
                break
            await asyncio.sleep(_POLL_S)
        if not reason:
            self.is_ready = True
            self._reporter.part(self.spec.name, "ready")
            if not self._first_ready.done():
                self._first_ready.set_result(None)
        elif not self._first_ready.done():
            limit = f"{self.spec.ready_timeout_s:.0f} s"
            self._first_ready.set_exception(self._failed(f"is not ready after {limit}: {reason}"))

    def _failed(self, cause: str) -> RemitError:
        lines = " | ".join(log_tail(self.spec.log))
        return RemitError(
            error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
            f"{self.spec.name} {cause}; its log {self.spec.log} ends with: {lines}",
        )


def log_tail(log: Path) -> list[str]:
    """The last lines of a log, for people."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()][-_LOG_TAIL_LINES:]


def _cause(code: int) -> str:
    if code < 0:
        return f"died of {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
