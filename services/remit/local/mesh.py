"""The local mesh as a whole: what starts in which order, and what ends in which.

Start: certificates and keys; then Envoy, beside PostgreSQL, its databases and the services, each as
soon as what it needs is there. Stop: the edge takes no more clients, then the agents hand over,
then the other services, Envoy, PostgreSQL. Whatever happens, no process is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from remit.api.errors.v1 import error_reason_pb2
from remit.gateway.topology import Topology
from remit.local.certificates import ensure_certificates
from remit.local.envoy_process import EnvoyProcess, find_envoy, render_configuration
from remit.local.first_key import ensure_api_key
from remit.local.logs import bound_logs
from remit.local.ports import check_ports
from remit.local.postgres_server import EmbeddedPostgres
from remit.local.process import ProcessSpec, Reporter, Supervised
from remit.local.state import StateDirectory, write_private
from remit.local.wiring import Secrets, Wiring, ensure_secrets
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError

_CONNECTIONS_PER_SERVICE: Final = 10
_ROUTES_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.1
_OBSERVE_EVERY_S: Final = 1.0


@dataclass(frozen=True)
class MeshOptions:
    """What the user chose."""

    topology: Topology
    envoy: Path | None = None
    drain_s: float = 10.0


class LocalMesh:
    """The processes of one state directory, which the caller has locked."""

    def __init__(
        self, state: StateDirectory, options: MeshOptions, reporter: Reporter, clock: Clock
    ) -> None:
        self._state = state
        self._options = options
        self._reporter = reporter
        self._clock = clock
        self._began = clock.monotonic()
        self._parts: dict[str, list[Supervised]] = {}
        self._postgres: EmbeddedPostgres | None = None
        self._envoy = EnvoyProcess(options.topology)
        self._started = False
        self._mesh_text = ""

    @contextlib.asynccontextmanager
    async def running(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Starts everything, yields, and stops everything whatever happened.

        A `stop` during the start ends it; the body runs all the same and finds `stop` set.

        Raises:
            RemitError: what kept it from starting, or the processes that could not be ended.

        """
        try:
            await self._start_unless(stop)
            observer = asyncio.create_task(self._observe(), name="observe")
            try:
                yield
            finally:
                observer.cancel()
                await asyncio.gather(observer, return_exceptions=True)
        finally:
            await asyncio.shield(self._stop())

    def kill(self) -> None:
        """Ends every service and Envoy at once, for a user who will not wait for the drain."""
        for area, parts in self._parts.items():
            if area != "postgres":
                for part in parts:
                    part.kill()

    async def _start_unless(self, stop: asyncio.Event) -> None:
        starting = asyncio.create_task(self._start(), name="start")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if stop.is_set():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        else:
            starting.result()
            self._started = True

    async def _start(self) -> None:
        check_ports(self._options.topology)
        program = find_envoy(self._options.envoy)
        write_private(self._state.topology_file, self._options.topology.dump())
        secrets = ensure_secrets(self._state)
        ensure_certificates(self._state, self._clock)
        await _together(self._start_envoy(program), self._start_services(secrets))
        await self._until_routed()
        self._write_mesh_file()
        took_s = self._clock.monotonic() - self._began
        self._reporter.note(f"The mesh stands after {took_s:.1f} s: {self._options.topology.edge}")

    async def _start_envoy(self, program: Path) -> None:
        await render_configuration(self._state)
        await self._supervise("envoy", self._envoy.spec(self._state, program))

    async def _start_services(self, secrets: Secrets) -> None:
        dsns = await self._start_postgres(secrets)
        options = self._options
        wiring = Wiring(self._state, options.topology, dsns, secrets, drain_s=options.drain_s)
        await _together(*(self._supervise(area, spec) for area, spec in wiring.services()))

    async def _start_postgres(self, secrets: Secrets) -> dict[str, str]:
        self._postgres = await EmbeddedPostgres.prepare(self._state.postgres)
        replicas = sum(len(area) for area in self._options.topology.replicas.values())
        spec = self._postgres.spec(
            max_connections=(replicas + 1) * _CONNECTIONS_PER_SERVICE,
            log=self._state.log_file("postgres"),
        )
        await self._supervise("postgres", spec)
        dsns = dict(await self._postgres.provision())
        if await ensure_api_key(self._state, dsns["policy"], secrets):
            self._reporter.note(f"The first API key is in {self._state.api_key_file}")
        return dsns

    async def _supervise(self, area: str, spec: ProcessSpec) -> None:
        part = Supervised(spec, self._reporter, self._clock)
        self._parts.setdefault(area, []).append(part)
        await part.start()

    async def _until_routed(self) -> None:
        """A part that is ready is not used before Envoy has seen it healthy."""
        give_up = self._clock.monotonic() + _ROUTES_TIMEOUT_S
        while faults := await self._envoy.unhealthy_replicas():
            if self._clock.monotonic() > give_up:
                raise RemitError(
                    error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
                    f"Envoy reaches not every replica: {'; '.join(faults)}",
                )
            await asyncio.sleep(_POLL_S)

    async def _observe(self) -> None:
        """Keeps the mesh file and the logs in bounds while the mesh runs."""
        while True:
            self._write_mesh_file()
            bound_logs(part.spec.log for part in self._all())
            await asyncio.sleep(_OBSERVE_EVERY_S)

    def _write_mesh_file(self) -> None:
        document = {
            "pid": os.getpid(),
            "edge": str(self._options.topology.edge),
            "postgres_socket": str(self._postgres.socket_folder) if self._postgres else "",
            "parts": {
                part.spec.name: {"pid": part.pid, "restarts": part.restarts} for part in self._all()
            },
        }
        text = json.dumps(document, indent=2) + "\n"
        if text != self._mesh_text:
            write_private(self._state.mesh_file, text)
            self._mesh_text = text

    def _all(self) -> list[Supervised]:
        return [part for parts in self._parts.values() for part in parts]

    async def _stop(self) -> None:
        if self._started:
            left = await self._envoy.drain_edge(self._options.drain_s)
            if left:
                self._reporter.note(f"{left} calls at the edge were cut; streams can be resumed")
        others = set(self._parts) - {"agent", "envoy", "postgres"}
        for areas in (("agent",), others, ("envoy",), ("postgres",)):
            await asyncio.gather(*(part.stop() for part in self._of(areas)))
        if self._postgres is not None:
            self._postgres.forget_socket_folder()
        self._check_nothing_left()

    def _of(self, areas: Iterable[str]) -> list[Supervised]:
        return [part for area in areas for part in self._parts.get(area, ())]

    def _check_nothing_left(self) -> None:
        # Those that were waited for are gone, and their ids may be somebody else's by now.
        left = [f"{part.spec.name} (process {part.pid})" for part in self._all() if part.pid]
        if left:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_INTERNAL, f"still running: {', '.join(left)}"
            )


async def _together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """Does all at once; the first failure cancels the rest and is raised as it is."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
