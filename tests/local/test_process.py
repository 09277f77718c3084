"""One supervised process: restarted with backoff, drained, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from remit.local.process import Backoff, ProcessSpec, Supervised, log_tail
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from tests.waiting import eventually

SLEEPER = "import time\nprint('up', flush=True)\ntime.sleep(600)"
QUICK = Backoff(first_s=0.02, longest_s=0.1, forget_after_s=60)


class Recorder:
    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []

    def part(self, name: str, state: str, detail: str = "") -> None:
        self.events.append((name, state, detail))

    def note(self, message: str) -> None:
        self.events.append(("", "note", message))

    def states(self) -> list[str]:
        return [state for _, state, _ in self.events]


Supervise = Callable[..., Supervised]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def supervise(tmp_path: Path, recorder: Recorder) -> AsyncIterator[Supervise]:
    made: list[Supervised] = []

    def one(code: str, **options: object) -> Supervised:
        log = tmp_path / f"{len(made)}.log"
        spec = ProcessSpec(
            name="part",
            command=(sys.executable, "-I", "-S", "-c", code),
            log=log,
            ready=lambda: printed(log, "up"),
            backoff=QUICK,
            **options,  # type: ignore[arg-type]
        )
        made.append(Supervised(spec, recorder, SystemClock()))
        return made[-1]

    yield one
    for process in made:
        process.kill()
        await process.stop()


async def printed(log: Path, word: str) -> str:
    said = any(word in line for line in log_tail(log))
    return "" if said else f"it has not said {word}"


def alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def test_it_starts_and_stops(supervise: Supervise, recorder: Recorder) -> None:
    process = supervise(SLEEPER)
    await process.start()
    pid = process.pid
    assert alive(pid)
    assert process.is_ready
    await process.stop()
    assert not alive(pid)
    assert recorder.states() == ["starting", "ready", "draining", "stopped"]


async def test_what_dies_is_restarted_and_the_user_told(
    supervise: Supervise, recorder: Recorder
) -> None:
    process = supervise(SLEEPER)
    await process.start()
    first = process.pid
    assert first
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: process.restarts == 1 and process.is_ready)
    assert process.pid != first
    (detail,) = [detail for _, state, detail in recorder.events if state == "died"]
    assert "SIGKILL" in detail
    assert "restarting in" in detail
    assert process.pids == [first, process.pid]


def test_the_backoff_doubles_and_is_bounded() -> None:
    backoff = Backoff(first_s=0.2, longest_s=10.0)
    delays = [backoff.delay_s(deaths) for deaths in range(1, 9)]
    assert delays == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert backoff.delay_s(10_000) == 10.0


async def test_a_start_that_keeps_failing_is_given_up_with_the_reason(
    supervise: Supervise, recorder: Recorder
) -> None:
    process = supervise("print('no database'); raise SystemExit(7)")
    with pytest.raises(RemitError) as caught:
        await process.start()
    assert "exit code 7" in caught.value.message
    assert "no database" in caught.value.message
    assert len(process.pids) == QUICK.attempts_to_start


async def test_a_start_that_hangs_is_given_up(supervise: Supervise) -> None:
    process = supervise("import time; time.sleep(600)", ready_timeout_s=0.2)
    with pytest.raises(RemitError, match="it has not said up"):
        await process.start()
    await process.stop()
    assert not alive(process.pids[0])


async def test_a_program_that_is_not_there_is_said(tmp_path: Path, recorder: Recorder) -> None:
    spec = ProcessSpec(
        name="ghost",
        command=(str(tmp_path / "ghost"),),
        log=tmp_path / "log",
        ready=lambda: printed(tmp_path / "log", "up"),
        backoff=QUICK,
    )
    process = Supervised(spec, recorder, SystemClock())
    with pytest.raises(RemitError, match="No such file"):
        await process.start()
    await process.stop()


async def test_it_may_drain_before_it_ends(supervise: Supervise, tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "def drain(*_):\n time.sleep(0.2); print('drained', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, drain)\nprint('up', flush=True)\ntime.sleep(600)"
    )
    process = supervise(code)
    await process.start()
    await process.stop()
    assert await printed(process.spec.log, "drained") == ""


async def test_what_does_not_end_is_killed(supervise: Supervise, recorder: Recorder) -> None:
    code = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('up', flush=True)\ntime.sleep(600)"
    )
    process = supervise(code, stop_timeout_s=0.2)
    await process.start()
    await process.stop()
    assert not alive(process.pids[0])
    assert "killed" in recorder.states()


async def test_children_of_the_part_end_with_it(supervise: Supervise) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('child', child.pid, 'up', flush=True)\ntime.sleep(600)"
    )
    process = supervise(code)
    await process.start()
    child = int(log_tail(process.spec.log)[-1].split()[1])
    assert alive(child)
    await process.stop()
    await eventually(lambda: not alive(child))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to its parent")
async def test_a_killed_supervisor_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from remit.local.process import ProcessSpec, Supervised
from remit.rpc.clock import SystemClock
class Silent:
    def part(self, *_): pass
    def note(self, *_): pass
async def main():
    log = Path({str(tmp_path / "log")!r})
    async def ready():
        return "" if log.exists() and "up" in log.read_text() else "no"
    spec = ProcessSpec(name="x", command=(sys.executable, "-c", {SLEEPER!r}), log=log, ready=ready)
    part = Supervised(spec, Silent(), SystemClock())
    await part.start()
    print(part.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    with subprocess.Popen(  # noqa: ASYNC220 - the test waits for its first line
        [sys.executable, "-c", code], stdout=subprocess.PIPE
    ) as supervisor:
        assert supervisor.stdout is not None
        pid = int(await asyncio.to_thread(supervisor.stdout.readline))
        assert alive(pid)
        supervisor.kill()
        supervisor.wait()
    await eventually(lambda: not alive(pid))


async def test_the_terminals_ctrl_c_does_not_reach_it(supervise: Supervise) -> None:
    process = supervise(SLEEPER)
    await process.start()
    assert process.pid
    assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
