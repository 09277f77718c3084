"""What a mesh has used so far: CPU and waiting by process, RPCs by service, commits by database.

Linux only: it reads /proc.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import asyncpg

from tests.bench.running import Mesh

PROC: Final = Path("/proc")
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
CLIENT: Final = "client"
"""The benchmark itself: it takes CPU from the mesh, but is no part of it."""
SUPERVISOR: Final = "supervisor"
"""`remit up` itself."""

_REQUESTS: Final = re.compile(
    r'^remit_rpc_requests_total\{[^}]*method="(?P<method>[^"]+)"[^}]*\} (?P<count>\S+)$',
    re.MULTILINE,
)
_REPLICA: Final = re.compile(r"-\d+$")
_COMMITS: Final = "SELECT datname, xact_commit FROM pg_stat_database WHERE datname LIKE 'remit%'"

_FLUSHES: Final = "SELECT coalesce(sum(fsyncs), 0)::bigint FROM pg_stat_io WHERE object = 'wal'"


@dataclass(frozen=True)
class Use:
    """What a process and its children took so far, ended children included."""

    cpu_s: float = 0.0
    waited_s: float = 0.0
    """Time in which it could have run and no CPU was free for it; of live threads."""
    switches: int = 0
    """Context switches of live threads: it slept, or was made to wait."""

    def __add__(self, other: Use) -> Use:
        return Use(
            self.cpu_s + other.cpu_s,
            self.waited_s + other.waited_s,
            self.switches + other.switches,
        )

    def __sub__(self, other: Use) -> Use:
        return Use(
            self.cpu_s - other.cpu_s,
            self.waited_s - other.waited_s,
            self.switches - other.switches,
        )


@dataclass(frozen=True)
class Counters:
    """Totals of a mesh at one moment."""

    at_s: float
    use: Mapping[str, Use]
    """By part; replicas of an area together."""
    rpcs: Mapping[str, float]
    """Served, by area; health checks are left out."""
    commits: Mapping[str, int]
    """By area; PostgreSQL counts statements that only read too."""
    flushes: int
    """How often PostgreSQL waited for its log to be on disk: what commits together shares one."""
    machine: Machine

    def since(self, earlier: Counters) -> Counters:
        """What was used between two moments."""
        return Counters(
            self.at_s - earlier.at_s,
            {part: use - earlier.use.get(part, Use()) for part, use in self.use.items()},
            {area: count - earlier.rpcs.get(area, 0.0) for area, count in self.rpcs.items()},
            {area: count - earlier.commits.get(area, 0) for area, count in self.commits.items()},
            self.flushes - earlier.flushes,
            self.machine.since(earlier.machine),
        )


@dataclass(frozen=True)
class Machine:
    """CPU seconds of the whole machine, over all cores."""

    busy_s: float = 0.0
    idle_s: float = 0.0
    stolen_s: float = 0.0
    """Wanted by this machine and given to another by the hypervisor."""

    def since(self, earlier: Machine) -> Machine:
        """What passed between two moments."""
        return Machine(
            self.busy_s - earlier.busy_s,
            self.idle_s - earlier.idle_s,
            self.stolen_s - earlier.stolen_s,
        )

    @classmethod
    def now(cls) -> Machine:
        """Reads /proc/stat."""
        line = (PROC / "stat").read_text().splitlines()[0]
        user, nice, system, idle, wait, irq, soft, stolen = map(int, line.split()[1:9])
        busy = user + nice + system + irq + soft
        return cls(busy / TICKS_PER_S, (idle + wait) / TICKS_PER_S, stolen / TICKS_PER_S)


@dataclass
class _Tree:
    """Which process is whose child."""

    children: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def now(cls) -> _Tree:
        tree = cls()
        for pid in _pids():
            with contextlib.suppress(OSError):
                tree.children.setdefault(int(_stat(pid)[1]), []).append(pid)
        return tree

    def family(self, pid: int) -> Iterator[int]:
        yield pid
        for child in self.children.get(pid, ()):
            yield from self.family(child)


async def read(mesh: Mesh) -> Counters:
    """Reads everything at about the same moment."""
    at_s, use, machine = time.perf_counter(), uses(mesh), Machine.now()
    rpcs = await asyncio.to_thread(_rpcs, mesh)
    commits, flushes = await _writes(mesh)
    return Counters(at_s, use, rpcs, commits, flushes, machine)


def uses(mesh: Mesh) -> dict[str, Use]:
    """What each part has used."""
    found: dict[str, Use] = {CLIENT: use_of(os.getpid(), children=False)}
    for part, pids in processes(mesh).items():
        alone = part == SUPERVISOR  # its children are the other parts
        found[part] = sum((use_of(pid, children=not alone) for pid in pids), Use())
    return found


def processes(mesh: Mesh) -> dict[str, list[int]]:
    """The process ids of each part, children included."""
    tree, found = _Tree.now(), dict[str, list[int]]()
    for name, pid in mesh.pids().items():
        family = [pid] if name == SUPERVISOR else tree.family(pid)
        found.setdefault(_REPLICA.sub("", name), []).extend(family)
    return found


def family(pid: int) -> list[int]:
    """A process and all below it, as they are now."""
    return [*_Tree.now().family(pid)]


def use_of(pid: int, *, children: bool = True) -> Use:
    """A process that ended meanwhile is counted by its parent."""
    try:
        ticks = [int(each) for each in _stat(pid)[11 : 15 if children else 13]]
    except OSError:
        return Use()
    total = Use(cpu_s=sum(ticks) / TICKS_PER_S)
    with contextlib.suppress(OSError):
        for task in (PROC / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError):
                total += _of_thread(task)
    return total


def _of_thread(task: Path) -> Use:
    _, waited_ns, _ = (task / "schedstat").read_text().split()
    lines = (task / "status").read_text().splitlines()
    switches = sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return Use(waited_s=int(waited_ns) / 1e9, switches=switches)


def _stat(pid: int) -> list[str]:
    """Fields of proc(5) stat from the state on: the name before it may hold spaces."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def _rpcs(mesh: Mesh) -> dict[str, float]:
    return {
        area: sum(served(_metrics(each.host, each.http_port)) for each in replicas)
        for area, replicas in mesh.topology.replicas.items()
    }


def served(metrics: str) -> float:
    """RPCs that a service's metrics tell of; health checks are left out."""
    calls = Counter[str]()
    for match in _REQUESTS.finditer(metrics):
        calls[match["method"]] += float(match["count"])  # type: ignore[assignment]
    return sum(count for method, count in calls.items() if "grpc.health" not in method)


def _metrics(host: str, port: int) -> str:
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
        return text


async def _writes(mesh: Mesh) -> tuple[dict[str, int], int]:
    """Commits by area, and flushes of the write-ahead log."""
    connection = await asyncpg.connect(
        host=mesh.facts()["postgres_socket"], user="postgres", database="postgres"
    )
    try:
        rows = await connection.fetch(_COMMITS)
        flushes = int(await connection.fetchval(_FLUSHES))
    finally:
        await connection.close()
    commits = {row["datname"].removeprefix("remit_"): int(row["xact_commit"]) for row in rows}
    return commits, flushes
