"""Native code by sampling, where `perf` is installed: what the interpreter, the kernel and C do.

The samples are of the CPU clock, which every virtual machine has.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final

from tests.bench.counters import processes
from tests.bench.running import Mesh

FREQUENCY_HZ: Final = 499
LIMIT_S: Final = 60.0
KERNEL: Final = "kernel"
_FAMILIES: Final = (
    (re.compile(r"\[kernel"), KERNEL),
    (re.compile(r"libpython|^python"), "python"),
    (re.compile(r"cygrpc"), "grpc"),
    (re.compile(r"_message|upb"), "protobuf"),
    (re.compile(r"^loop\.cpython|_asyncio"), "event_loop"),
    (re.compile(r"^envoy"), "envoy"),
    (re.compile(r"^postgres"), "postgres"),
    (re.compile(r"cedarpy"), "cedar"),
    (re.compile(r"libcrypto|libssl|_rust|libsodium"), "cryptography"),
    (re.compile(r"^libc\.|^ld-linux|libpthread|libm\."), "libc"),
)
"""What a library belongs to, by its file's name; all others together are `other`."""


async def shares(mesh: Mesh, load: Callable[[], Awaitable[object]]) -> dict[str, float]:
    """Percent of the mesh's CPU under a load by kind of code; empty where there is no `perf`."""
    if not shutil.which("perf"):
        await load()
        return {}
    pids = [pid for family in processes(mesh).values() for pid in family]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "perf.data"
        await record(pids, data, load)
        return by_family(await report(data, "dso"))


def by_family(lines: Iterable[str]) -> dict[str, float]:
    """Percents of perf's lines, `12.34%  libc.so.6`, added up by what the library belongs to."""
    found: dict[str, float] = {}
    for line in lines:
        percent, _, library = line.strip().partition(" ")
        family = _family(library.strip())
        found[family] = found.get(family, 0.0) + float(percent.rstrip("%"))
    return found


def _family(library: str) -> str:
    return next((name for pattern, name in _FAMILIES if pattern.search(library)), "other")


async def record(pids: Iterable[int], data: Path, load: Callable[[], Awaitable[object]]) -> None:
    """Samples some processes while a load goes on."""
    perf = await asyncio.create_subprocess_exec(
        *("perf", "record", "-q", "-e", "cpu-clock", "-F", str(FREQUENCY_HZ)),
        *("-p", ",".join(str(pid) for pid in pids), "-o", str(data)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await load()
    finally:
        perf.terminate()
        await asyncio.wait_for(perf.wait(), LIMIT_S)


async def report(data: Path, by: str, *, least_percent: float = 0.0) -> list[str]:
    """Lines of perf's report, most first; `by` is `dso` or `dso,symbol`."""
    perf = await asyncio.create_subprocess_exec(
        *("perf", "report", "-i", str(data), "--stdio", "--percent-limit", str(least_percent)),
        *("--sort", by, "-F", f"overhead,{by}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output, _ = await perf.communicate()
    lines = output.decode(errors="replace").splitlines()
    told = [line.rstrip() for line in lines if line.strip() and not line.startswith("#")]
    return sorted(told, key=lambda line: -float(line.split()[0].rstrip("%")))
