"""How long a service takes to start: one process alone, beside a mesh that stands.

`remit up` starts all six at once on the cores there are, so its times by part say little about one.
Here a second replica of each area is started alone with the environment of the first, on ports of
its own. No traffic reaches it, since Envoy does not know it.
"""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from remit.rpc.contracts import AREAS
from tests.bench.counters import CLIENT, PROC, SUPERVISOR, Use, use_of, uses
from tests.bench.memory import KIB_PER_MIB, rollup_kib
from tests.bench.running import Mesh
from tests.ports import free_ports

LIMIT_S: Final = 60.0
POLL_S: Final = 0.01


def figures(mesh: Mesh) -> dict[str, float]:
    """Seconds to readiness and CPU seconds until then, by area."""
    found: dict[str, float] = {}
    for area in AREAS:
        ready_s, use, rss_mib = _start(mesh, area)
        found |= {
            f"ready_s.{area}": ready_s,
            f"cpu_s.{area}": use.cpu_s,
            f"rss_mib.{area}": rss_mib,
        }
    return found


def cpu_s(mesh: Mesh) -> float:
    """CPU seconds of all that `remit up` has started so far, ended helpers included."""
    parts = sum(use.cpu_s for part, use in uses(mesh).items() if part not in {CLIENT, SUPERVISOR})
    return parts + use_of(mesh.pids()[SUPERVISOR]).cpu_s


def _start(mesh: Mesh, area: str) -> tuple[float, Use, float]:
    port, http_port = free_ports(2)
    prefix = f"REMIT_{area.upper()}_"
    environment = _environment_of(mesh.pids()[f"{area}-0"]) | {
        f"{prefix}PORT": str(port),
        f"{prefix}HTTP_PORT": str(http_port),
        f"{prefix}REPLICA": "bench",
    }
    began = time.monotonic()
    with _process(area, environment) as process:
        while not is_ready(http_port):
            if process.poll() is not None or time.monotonic() > began + LIMIT_S:
                raise SystemExit(f"a second replica of {area} did not start")
            time.sleep(POLL_S)
        ready_s = time.monotonic() - began
        rollup = (PROC / str(process.pid) / "smaps_rollup").read_text()
        return ready_s, use_of(process.pid), rollup_kib(rollup)["rss"] / KIB_PER_MIB


@contextmanager
def _process(area: str, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "remit.cli.main", "serve", area],
            env=dict(environment),
            cwd=tempfile.gettempdir(),
            stdout=log,
            stderr=log,
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(LIMIT_S)


def _environment_of(pid: int) -> dict[str, str]:
    entries = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    pairs = (entry.partition(b"=") for entry in entries if entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def is_ready(port: int) -> bool:
    """Whether the service whose plain HTTP port this is says that it can do its work."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request("GET", "/ready", headers={"connection": "close"})
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()
