"""Processes that die with this one: how a part is started, and how a helper is run to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TETHER: Final = Path(__file__).with_name("tether.py")


@dataclass(frozen=True)
class Tie:
    """How a process hangs on this one, and as whom it runs; id -1 keeps the user."""

    orphan_signal: signal.Signals = signal.SIGKILL
    """Sent by the kernel when this process dies."""
    uid: int = -1
    gid: int = -1
    folder: Path | None = None
    """Where it runs; None: where this process does."""


async def spawn_tethered(
    command: Sequence[str],
    tie: Tie,
    output: int,
    *,
    environment: Mapping[str, str] | None = None,
) -> asyncio.subprocess.Process:
    """Starts a program in a session of its own; `output` takes what it prints.

    A session of its own keeps the terminal's Ctrl-C away, so that a drain keeps its order.
    """
    ties = (int(tie.orphan_signal), os.getpid(), tie.uid, tie.gid)
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(TETHER)),
        *(str(value) for value in ties),
        *command,
        env=None if environment is None else dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=tie.folder,
        start_new_session=True,
    )


async def run_tethered(command: Sequence[str], tie: Tie | None = None) -> tuple[int, str]:
    """Runs a program to its end; returns its exit code and what it printed.

    Cancelling the call ends the program.
    """
    process = await spawn_tethered(command, tie or Tie(), subprocess.PIPE)
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            signal_session(process.pid, signal.SIGKILL)
            await process.wait()
    return await process.wait(), output.decode(errors="replace").strip()


def signal_session(leader: int, number: signal.Signals) -> None:
    """Signals whatever is left of a session; its leader's id is its group's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
