"""Where a service spends its time under load: a profile from inside, and one of native code.

The mesh runs with `profile_hook` on its path, which samples Python frames in the one service that
is named. Where `perf` is present, it samples the same process for another while: what libraries in
C do (TLS, gRPC, the loop) shows only there.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Final

import uvloop

from remit.rpc import contracts
from tests.bench import native
from tests.bench.running import Mesh, mesh
from tests.bench.runs import slice_of
from tests.bench.trees import Tree, tree, with_path

AREAS: Final = contracts.AREAS
HOOK: Final = Path(__file__).with_name("profile_hook")
SECONDS: Final = 12.0
WARM_UP_S: Final = 4.0
WRITE_LIMIT_S: Final = 60.0
SHOWN_PERCENT: Final = 0.4
SHOWN_LINES: Final = 60


def profile(area: str, revision: str | None, concurrency: int) -> Path:
    """Profiles a service under load; returns the folder, and prints what is most."""
    folder = Path(tempfile.mkdtemp(prefix=f"remit-profile-{area}-"))
    folder.chmod(0o755)
    with (
        tree(revision) as source,
        mesh(source, environment=_environment(source, area, folder)) as m,
    ):
        uvloop.run(_under_load(m, area, folder, concurrency))
    for name in ("functions.txt", "native.txt"):
        if (folder / name).exists():
            lines = (folder / name).read_text().splitlines()
            print("\n".join([f"== {name}", *lines[:SHOWN_LINES]]))
    print(f"\nIn full: {folder}/tree.txt, functions.txt, profile.html, native.txt")
    return folder


def _environment(source: Tree, area: str, folder: Path) -> dict[str, str]:
    """Names that begin with PYTHON reach every service; of others each gets its own alone."""
    return with_path(
        source,
        HOOK,
        more={"PYTHON_BENCH_PROFILE_AREA": area, "PYTHON_BENCH_PROFILE_FOLDER": str(folder)},
    )


async def _under_load(m: Mesh, area: str, folder: Path, concurrency: int) -> None:
    pid = m.pids()[f"{area}-0"]
    await slice_of(m, concurrency, WARM_UP_S)
    os.kill(pid, signal.SIGUSR1)
    figures = await slice_of(m, concurrency, SECONDS)
    os.kill(pid, signal.SIGUSR2)
    give_up = time.monotonic() + WRITE_LIMIT_S
    while not (folder / "done").exists():
        if time.monotonic() > give_up:
            raise SystemExit(f"{area} wrote no profile")
        await asyncio.sleep(0.1)
    runs, cpu_ms = figures["runs"], figures[f"cpu_ms.{area}"]
    print(f"{runs:.0f} runs, {concurrency} at once; {area} took {cpu_ms:.1f} ms of CPU a run,")
    print("the profiler's own included: trust shares, not times.")
    if shutil.which("perf"):
        await _native(m, pid, folder, concurrency)


async def _native(m: Mesh, pid: int, folder: Path, concurrency: int) -> None:
    """What libraries in C do; they show only here."""
    data = folder / "perf.data"
    await native.record([pid], data, lambda: slice_of(m, concurrency, SECONDS))
    libraries = await native.report(data, "dso", least_percent=SHOWN_PERCENT)
    symbols = await native.report(data, "dso,symbol", least_percent=SHOWN_PERCENT)
    (folder / "native.txt").write_text("\n".join([*libraries, "", *symbols]) + "\n")
