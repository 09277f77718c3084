"""The whole mesh, started as a user starts it: `remit up` on a state directory of its own.

The fixture `mesh`, which most tests share, stands in tests/conftest.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remit.gateway.topology import Topology
from remit.local.first_key import ORG
from remit.local.process import log_tail
from remit.rpc.contracts import AREAS
from tests.ordering import one_at_a_time
from tests.ports import free_ports
from tests.scratch import make_folder
from tests.telling import telling
from tests.waiting import PATIENCE

START_TIMEOUT_S = 110.0
STOP_TIMEOUT_S = 60.0
NO_RUN_LIMITS = {"REMIT_POLICY_RUN_LIMIT_OF_USER": "0"}
"""What tests that are not about rate limits need: they start more runs than a user may."""
PATIENT = {f"REMIT_{area.upper()}_STATEMENT_TIMEOUT_S": str(5 * PATIENCE) for area in AREAS}
"""A busy machine may leave a statement without its processor for seconds."""
REMIT = (sys.executable, "-m", "remit.cli.main")


@dataclass
class RunningMesh:
    """A mesh under `remit up`."""

    state: Path
    process: subprocess.Popen[bytes]
    topology: Topology
    output: Path

    @property
    def address(self) -> str:
        """host:port of the edge."""
        return str(self.topology.edge)

    @property
    def api_key(self) -> str:
        """The first API key, of an administrator."""
        return (self.state / "api-key").read_text().strip()

    @property
    def org(self) -> str:
        """The organisation that `remit up` makes."""
        return ORG

    @property
    def pages_port(self) -> int:
        """The port of the one origin whose web pages may call the edge."""
        return int(self.topology.cors.origins[0].rpartition(":")[2])

    @property
    def environment(self) -> dict[str, str]:
        """For commands that talk to this mesh."""
        return os.environ | {"REMIT_STATE": str(self.state)}

    def pid(self, part: str) -> int:
        """Process id of a part, such as `cost-0`, `envoy` or `postgres`."""
        return int(self._parts()[part]["pid"] or 0)

    def restarts(self, part: str) -> int:
        """How often a part was restarted."""
        return int(self._parts()[part]["restarts"])

    def kill(self, part: str) -> None:
        """Ends a part as a crash does; the supervisor restarts it."""
        os.kill(self.pid(part), signal.SIGKILL)

    def run(self, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Runs `remit` with these arguments against this mesh."""
        return remit(self.environment, *arguments, timeout_s=timeout_s)

    def log(self, part: str) -> str:
        """What a part printed."""
        return (self.state / "logs" / f"{part}.log").read_text(errors="replace")

    def told(self) -> str:
        """What `remit up` printed last, and each part before it died or until now."""
        code = self.process.poll()
        lines = [f"`remit up` {'runs' if code is None else f'ended with {code}'}"]
        logs = sorted((self.state / "logs").glob("*.log"))
        for file in (self.output, *logs):
            lines += [f"-- {file.name}", *log_tail(file)]
        return "\n".join(lines)

    def _parts(self) -> dict[str, Any]:
        parts = json.loads((self.state / "mesh.json").read_text())["parts"]
        assert isinstance(parts, dict)
        return parts


@contextlib.contextmanager
def started_mesh(
    replicas: Mapping[str, int] | None = None,
    *,
    state: Path | None = None,
    environment: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
) -> Iterator[RunningMesh]:
    """A mesh for one test, which may kill what it likes; stopped at the end, and checked.

    `options` go to `remit up` as they are. Runs may be started as often as anybody likes.
    """
    folder = make_folder("remit-mesh-")
    topology = make_topology(replicas or {})
    (folder / "topology.yaml").write_text(topology.dump())
    chosen = state or folder / "state"
    command = [*REMIT, "up", "--state", str(chosen), "--topology", str(folder / "topology.yaml")]
    command += options
    running: RunningMesh | None = None
    try:
        with one_at_a_time(), (folder / "output").open("wb") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                env=os.environ | NO_RUN_LIMITS | PATIENT | dict(environment or {}),
            )
            running = RunningMesh(chosen, process, topology, folder / "output")
            _until_started(running)
        with telling(f"mesh {folder.name}", running.told):
            yield running
    finally:
        if running is not None:
            _stop(running)
        shutil.rmtree(folder, ignore_errors=True)


def remit(
    environment: Mapping[str, str], *arguments: str, timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Runs `remit` with these arguments; `timeout_s` suffices on a quiet machine."""
    return subprocess.run(
        [*REMIT, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s * PATIENCE,
        check=False,
    )


def _until_started(running: RunningMesh) -> None:
    give_up = time.monotonic() + START_TIMEOUT_S * PATIENCE
    while "The mesh stands" not in running.output.read_text():
        assert running.process.poll() is None, running.output.read_text()
        assert time.monotonic() < give_up, running.output.read_text()
        time.sleep(0.1)


def _stop(running: RunningMesh) -> None:
    if running.process.poll() is not None:
        return
    running.process.terminate()
    try:
        code = running.process.wait(STOP_TIMEOUT_S * PATIENCE)
    except subprocess.TimeoutExpired:
        running.process.kill()
        running.process.wait()
        raise
    assert code == 0, running.output.read_text()


def make_topology(replicas: Mapping[str, int]) -> Topology:
    """A topology on free ports."""
    counts = dict.fromkeys(AREAS, 1) | dict(replicas)
    ports = iter(free_ports(5 + 2 * sum(counts.values())))
    return Topology.parse(
        {
            "edge": {"port": next(ports)},
            "mesh": {"port": next(ports)},
            "admin": {"port": next(ports)},
            "stats": {"port": next(ports)},
            # Pages of one origin may call; a test serves them on its port.
            "cors": {"origins": [f"http://127.0.0.1:{next(ports)}"]},
            "replicas": {
                area: [{"port": next(ports), "http_port": next(ports)} for _ in range(count)]
                for area, count in counts.items()
            },
        },
        source="the test",
    )
