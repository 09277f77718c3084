"""In which order the files of the suite run: many processes at once make a machine slow."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pytest

HEAVY: Final = frozenset({"clients", "deployment", "integration", "monitoring", "telemetry"})
"""Folders of tests that start meshes, compilers and browsers."""


def spread(items: list[pytest.Item]) -> list[pytest.Item]:
    """The same tests file by file, the files of heavy folders at even distances.

    Within a file, within the heavy files and within the others the order stays.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    heavy = [path for path in files if path.parent.name in HEAVY]
    light = [path for path in files if path.parent.name not in HEAVY]
    placed = [
        ((number + 0.5) / len(group), path)
        for group in (heavy, light)
        for number, path in enumerate(group)
    ]
    return [item for _, path in sorted(placed) for item in files[path]]


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """While a mesh starts: ten processes read their modules then, and time is kept of each."""
    lock = Path(tempfile.gettempdir(), f"remit-tests-start-{os.getuid()}.lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
