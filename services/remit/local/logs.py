"""Keeps the logs of the parts in bounds: one old file beside each, no more."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

MAX_LOG_BYTES: Final = 20 << 20


def bound_logs(logs: Iterable[Path], *, max_bytes: int = MAX_LOG_BYTES) -> None:
    """Moves what a log that grew too long holds to `<log>.1` and empties the log.

    The process keeps its open file (it appends, so it goes on at the new end); what it prints
    between the copy and the cut is lost.
    """
    for log in logs:
        if log.exists() and log.stat().st_size > max_bytes:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)
