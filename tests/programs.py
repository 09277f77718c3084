"""Programs that tests use and a fresh machine may lack, such as promtool or a Go compiler.

Where one is missing its tests are skipped and say what to install. A complete run
(`REMIT_TESTS_COMPLETE=1`, which CI sets after it installed `.ci/packages`) fails instead, so that
nothing is skipped unseen.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final, NoReturn

import pytest

COMPLETE: Final = "REMIT_TESTS_COMPLETE"


def program(name: str, *, package: str) -> Path:
    """The path of a program; `package` is the Debian package that brings it.

    Skips the test, or fails it in a complete run, where the program is missing.
    """
    found = shutil.which(name)
    if found is None:
        missing(f"{name} is missing (Debian package {package})")
    return Path(found)


def missing(what: str) -> NoReturn:
    """Skips the test that needs `what`, or fails it in a complete run."""
    if os.environ.get(COMPLETE) == "1":
        pytest.fail(f"{what}, and this run must be complete")
    pytest.skip(what)
