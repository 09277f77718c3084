"""Folders for servers that a test throws away, in memory where there is room for them.

Servers that start empty, and a database for each test, write many gigabytes over the suite; on a
disk that is much of what a test waits for. Nothing that is shown depends on the disk: a process
that is killed leaves to the next one what it had written either way.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - each folder in it is made by mkdtemp
_ENOUGH_BYTES: Final = 6 << 30
"""Several servers at once, each with a gigabyte of its write-ahead log at most."""
_PREFIX: Final = "remit-tests-"


def make_folder(prefix: str, *, on_disk: bool = False) -> Path:
    """A new folder that every user may enter: under root the server runs as another one."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=None if on_disk else _parent()))
    folder.chmod(0o755)
    return folder


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """As `make_folder`; removed at the end."""
    folder = make_folder(prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_left_over(memory: Path = _MEMORY) -> None:
    """Removes what test processes left in memory that were killed."""
    for folder in memory.glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX)
        if pid.isdecimal() and not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)


def is_fit(memory: Path = _MEMORY, enough_bytes: int = _ENOUGH_BYTES) -> bool:
    """Whether programs may run there and there is room. A container may have 64 MiB of it."""
    try:
        facts = os.statvfs(memory)
    except OSError:
        return False
    is_open = not facts.f_flag & (os.ST_NOEXEC | os.ST_RDONLY) and os.access(memory, os.W_OK)
    return is_open and facts.f_bavail * facts.f_frsize >= enough_bytes


def _parent() -> Path | None:
    """Of this process, so that what a killed one left can be told; None: where files go else."""
    if not is_fit():
        return None
    own = _MEMORY / f"{_PREFIX}{os.getpid()}"
    own.mkdir(mode=0o755, exist_ok=True)
    return own
