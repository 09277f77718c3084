"""Envoy as a part of the local mesh: its program, its health, its drain."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from remit.api.errors.v1 import error_reason_pb2
from remit.gateway.topology import Topology
from remit.local.probes import ask
from remit.local.process import ProcessSpec
from remit.local.state import StateDirectory
from remit.local.tethered import run_tethered
from remit.rpc.errors import RemitError

_WORKERS: Final = 2
_GRACE_S: Final = 1
"""How long the edge, while draining, still takes new calls on old connections."""
_POLL_S: Final = 0.1
_HTTP_OK: Final = 200


def find_envoy(chosen: Path | None) -> Path:
    """The Envoy to run: the one that was chosen, else the wheel's, else one on the PATH.

    Raises:
        RemitError: CONFIGURATION_INVALID if there is none, or the chosen one cannot be run.

    """
    if chosen is not None:
        path = chosen.expanduser().absolute()
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise _invalid(f"--envoy {path} is no program that can be run")
        return path
    package = importlib.util.find_spec("envoy")
    for folder in (package.submodule_search_locations or ()) if package else ():
        program = Path(folder) / "_bin" / "envoy"
        if program.is_file():
            return program
    found = shutil.which("envoy")
    if found is None:
        raise _invalid("there is no Envoy; run `pip install 'remit[up]'` or name one with --envoy")
    return Path(found)


async def render_configuration(state: StateDirectory) -> None:
    """Writes the file that Envoy reads, from the topology file of the state directory.

    In a process of its own: Envoy's types take seconds to import and much memory, once.
    """
    code, output = await run_tethered(
        (
            *(sys.executable, "-m", "remit.cli.main", "gateway", "render"),
            *("--topology", str(state.topology_file), "--out", str(state.envoy_file)),
        )
    )
    if code != 0:
        raise _invalid(f"Envoy's configuration could not be rendered: {output}")


class EnvoyProcess:
    """What the supervisor and `remit status` need to know about Envoy."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._admin = (topology.admin.host, topology.admin.port)

    def spec(self, state: StateDirectory, program: Path) -> ProcessSpec:
        """How the supervisor runs it."""
        return ProcessSpec(
            name="envoy",
            command=(
                str(program),
                *("--config-path", str(state.envoy_file)),
                *("--concurrency", str(_WORKERS)),
                *("--log-level", "warning"),
                *("--drain-time-s", str(_GRACE_S), "--drain-strategy", "immediate"),
                "--disable-hot-restart",
            ),
            log=state.log_file("envoy"),
            ready=self.not_live,
            stop_timeout_s=5.0,
            describe=f"gateway on {self._topology.edge}",
        )

    async def not_live(self) -> str:
        """Empty once Envoy serves, else why not."""
        answer = await ask(*self._admin, "/ready")
        return "" if answer.status == _HTTP_OK else answer.body.strip()

    async def unhealthy_replicas(self) -> list[str]:
        """Replicas that Envoy would not send a call to, as `cluster address: why`."""
        answer = await ask(*self._admin, "/clusters?format=json")
        document = answer.json()
        if not isinstance(document, dict):
            return [f"envoy: {answer.body.strip() or 'no answer'}"]
        return [
            fault
            for cluster in document.get("cluster_statuses", ())
            for host in cluster.get("host_statuses", ())
            if (fault := _host_fault(cluster["name"], host))
        ]

    async def drain_edge(self, limit_s: float) -> int:
        """Takes no new clients, waits for the calls in flight; returns how many are left.

        Streams may live for an hour: whatever is left after `limit_s` is cut and can be resumed.
        """
        await ask(*self._admin, "/healthcheck/fail", method="POST")
        await ask(*self._admin, "/drain_listeners?inboundonly&graceful", method="POST")
        return await self._until_idle("edge", limit_s)

    async def drain(self, *, lag_s: float, limit_s: float) -> int:
        """Drains both listeners so that nothing is lost by a stop; returns the calls left.

        Health fails first, so that balancers look elsewhere; after `lag_s` connections are told to
        go, while calls are still answered (`skip_exit`), and what is in flight gets `limit_s`.
        """
        await ask(*self._admin, "/healthcheck/fail", method="POST")
        await asyncio.sleep(lag_s)
        await ask(*self._admin, "/drain_listeners?graceful&skip_exit", method="POST")
        return await self._until_idle("(edge|mesh)", limit_s)

    async def _until_idle(self, listeners: str, limit_s: float) -> int:
        give_up = time.monotonic() + limit_s
        while active := await self._active_calls(listeners):
            if time.monotonic() > give_up:
                break
            await asyncio.sleep(_POLL_S)
        return active

    async def _active_calls(self, listeners: str) -> int:
        answer = await ask(
            *self._admin, f"/stats?filter=^http.{listeners}.downstream_rq_active$&format=json"
        )
        document = answer.json()
        if not isinstance(document, dict):
            return 0  # Envoy is gone, and its calls with it
        return sum(int(stat.get("value", 0)) for stat in document.get("stats", ()))


def _host_fault(cluster: str, host: Mapping[str, Any]) -> str:
    health = {
        key: value
        for key, value in host.get("health_status", {}).items()
        if key != "eds_health_status" and value
    }
    if not health:
        return ""
    address = host.get("address", {}).get("socket_address", {})
    place = f"{address.get('address')}:{address.get('port_value')}"
    return f"{cluster} {place}: {', '.join(sorted(health))}"


def _invalid(message: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID, message)
