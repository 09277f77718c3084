"""A mesh that runs for the benchmark: `remit up` on an empty folder, from a tree of choice."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from remit.rpc.contracts import AREAS
from tests.bench.trees import Tree
from tests.ports import free_ports

START_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 60.0
ATTEMPTS: Final = 20
STATS_OFFSET: Final = 1000
"""From the admin port to that of the statistics, where a tree has it."""
STANDS: Final = "The mesh stands"


class MeasuringError(Exception):
    """The mesh did not do what was to be measured; the measurement may go on without it."""


@dataclass(frozen=True)
class Address:
    """Where a replica listens: gRPC, and plain HTTP."""

    port: int
    http_port: int
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class Topology:
    """Addresses of a mesh; said in what every version of the topology file understands."""

    edge_port: int
    mesh_port: int
    admin_port: int
    replicas: Mapping[str, tuple[Address, ...]]

    @classmethod
    def on_free_ports(cls, counts: Mapping[str, int]) -> Topology:
        """So many replicas of each area; one where nothing is said."""
        areas = [area for area in AREAS for _ in range(counts.get(area, 1))]
        edge, mesh_, *ports = free_ports(2 + 2 * len(areas))
        replicas: dict[str, tuple[Address, ...]] = {}
        for area, port, http_port in zip(areas, ports[::2], ports[1::2], strict=True):
            replicas[area] = (*replicas.get(area, ()), Address(port, http_port))
        return cls(edge, mesh_, _admin_port(), replicas)

    def dump(self) -> str:
        """The topology file; JSON is YAML."""
        document = {
            "edge": {"port": self.edge_port},
            "mesh": {"port": self.mesh_port},
            "admin": {"port": self.admin_port},
            "replicas": {
                area: [{"port": each.port, "http_port": each.http_port} for each in replicas]
                for area, replicas in self.replicas.items()
            },
        }
        return json.dumps(document)


def _admin_port() -> int:
    """A port for Envoy's admin interface whose companion, of the statistics, is free too."""
    for _ in range(ATTEMPTS):
        (port,) = free_ports(1)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port + STATS_OFFSET))
            return port
    raise SystemExit("there is no free port for the statistics")


@dataclass(frozen=True)
class Mesh:
    """A mesh that stands."""

    tree: Tree
    state: Path
    topology: Topology
    start_s: float
    ready_after_s: Mapping[str, float]
    """By part, seconds from the command to its first readiness."""

    @property
    def edge(self) -> str:
        """host:port of the edge."""
        return f"127.0.0.1:{self.topology.edge_port}"

    @property
    def api_key(self) -> str:
        """The first API key."""
        return (self.state / "api-key").read_text().strip()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a client sends with each call."""
        return (("authorization", f"Bearer {self.api_key}"),)

    def facts(self) -> dict[str, Any]:
        """What the running `remit up` tells of itself."""
        facts = json.loads((self.state / "mesh.json").read_text())
        assert isinstance(facts, dict)
        return facts

    def pids(self) -> dict[str, int]:
        """Process id by part, such as `agent-0`; `supervisor` is `remit up` itself."""
        facts = self.facts()
        parts = {name: int(part["pid"]) for name, part in facts["parts"].items()}
        return parts | {"supervisor": int(facts["pid"])}


@contextlib.contextmanager
def mesh(
    tree: Tree,
    *,
    environment: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    replicas: Mapping[str, int] | None = None,
) -> Iterator[Mesh]:
    """Starts a mesh, with further options of `remit up`, and stops it.

    Raises:
        SystemExit: it did not start, with what it printed.

    """
    folder = Path(tempfile.mkdtemp(prefix="remit-bench-"))
    folder.chmod(0o711)  # as root PostgreSQL runs as another user, who must be able to pass
    topology = Topology.on_free_ports(replicas or {})
    (folder / "topology.yaml").write_text(topology.dump())
    began = time.monotonic()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "remit.cli.main", "up", "--state", str(folder / "mesh")),
            *("--topology", str(folder / "topology.yaml"), "--drain", "1"),
            *options,
        ],
        cwd=folder,
        env=dict(environment or tree.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        ready_after_s = _until_it_stands(process, began)
        yield Mesh(tree, folder / "mesh", topology, time.monotonic() - began, ready_after_s)
    finally:
        _stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def _until_it_stands(process: subprocess.Popen[str], began: float) -> dict[str, float]:
    """Seconds to the first readiness of each part, as `remit up` reported it."""
    assert process.stdout is not None
    killer = threading.Timer(START_TIMEOUT_S, process.kill)
    killer.start()
    ready: dict[str, float] = {}
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            words = line.split()
            if words[1:2] == ["ready"]:
                ready.setdefault(words[0], time.monotonic() - began)
            if STANDS in line:
                _drain(process)
                return ready
    finally:
        killer.cancel()
    raise SystemExit("the mesh did not start:\n" + "".join(lines[-20:]))


def _drain(process: subprocess.Popen[str]) -> None:
    """Reads what it prints later, so that the pipe never fills; a death of a part is shown."""

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.split()[1:2] == ["died"]:
                print(line, end="", file=sys.stderr)

    threading.Thread(target=read, daemon=True).start()


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
