"""Memory of a mesh by part: resident, and proportional (shared pages divided by their users)."""

from __future__ import annotations

import contextlib
import re
from typing import Final

from tests.bench.counters import PROC, processes
from tests.bench.running import Mesh
from tests.bench.runs import complete

KIB_PER_MIB: Final = 1024
CONCURRENCY: Final = 32
SEGMENTS: Final = 4
"""Growth is told from the last half of them: in the first ones caches and pools fill."""
_FIELD: Final = re.compile(r"^(Rss|Pss): +(\d+) kB$", re.MULTILINE)


def figures(mesh: Mesh) -> dict[str, float]:
    """MiB by part, as `rss_mib.agent` and `pss_mib.agent`, and of the whole mesh."""
    found: dict[str, float] = {}
    for part, pids in processes(mesh).items():
        for pid in pids:
            with contextlib.suppress(OSError):
                rollup = (PROC / str(pid) / "smaps_rollup").read_text()
                for name, kib in rollup_kib(rollup).items():
                    key = f"{name}_mib.{part}"
                    found[key] = found.get(key, 0.0) + kib / KIB_PER_MIB
    # Shared pages would be counted many times in a sum of RSS.
    whole = sum(value for key, value in found.items() if key.startswith("pss_mib."))
    return found | {"pss_mib.mesh": whole}


def rollup_kib(text: str) -> dict[str, int]:
    """`rss` and `pss` of a process in KiB, from its smaps_rollup (proc(5))."""
    return {name.lower(): int(kib) for name, kib in _FIELD.findall(text)}


async def growth(mesh: Mesh, runs: int) -> dict[str, float]:
    """MiB of proportional memory that each part gains per 1,000 runs once caches are full."""
    per_segment = max(runs // SEGMENTS, 1)
    readings = []
    for _ in range(SEGMENTS):
        await complete(mesh, CONCURRENCY, per_segment)
        readings.append(figures(mesh))
    middle = readings[SEGMENTS // 2 - 1]
    later = per_segment * (SEGMENTS - SEGMENTS // 2)
    return {
        f"growth_{key}": (value - middle.get(key, 0.0)) * 1000 / later
        for key, value in readings[-1].items()
        if key.startswith("pss_mib.")
    }
