"""Runs a wired service: gRPC server, plain HTTP port, background work, graceful drain."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2

from remit import telemetry
from remit.api.errors.v1 import error_reason_pb2
from remit.rpc import metrics
from remit.rpc.clock import Clock, SystemClock
from remit.rpc.errors import RemitError
from remit.rpc.guard import Guard
from remit.rpc.http import Probes, serve_http
from remit.rpc.identity import TlsIdentity
from remit.rpc.parties import caller_of_label
from remit.rpc.permission import StreamPermissions
from remit.rpc.remits import RemitVerifier
from remit.rpc.server import AddToServer, build_server
from remit.settings import ServiceSettings
from remit.telemetry.spans import current_tracer

_READY_EVERY_S: Final = 1.0
_READY_TIMEOUT_S: Final = 2.0

log = telemetry.logger(__name__)


@dataclass(frozen=True)
class Service:
    """What a service's `main.py` wires: its RPCs, its background work and its health."""

    area: str
    servicers: Sequence[tuple[AddToServer, object]]
    verifier: RemitVerifier
    background: Sequence[Callable[[], Awaitable[None]]] = field(default=())
    """Work that runs until it is cancelled. If it raises, the process ends: a supervisor restarts
    it, and a half-dead service never looks healthy."""
    ready: Sequence[Callable[[], Awaitable[None]]] = field(default=())
    """Checks that raise while the service cannot do its work, such as `database.ping`."""
    drain: Sequence[Callable[[], Awaitable[None]]] = field(default=())
    """Called once at the start of a drain, such as handing leases over; each gets `drain_s`."""
    permissions: StreamPermissions | None = None
    """Asks whether streams may go on; needed where a contract bounds a stream's permission."""


async def run(
    opening: AbstractAsyncContextManager[Service],
    settings: ServiceSettings,
    *,
    stop: asyncio.Event | None = None,
    clock: Clock | None = None,
    started: Callable[[int, int], None] | None = None,
) -> None:
    """Opens the service, serves it until SIGTERM, SIGINT or `stop`, then drains and closes it.

    The plain port answers from the beginning: a service that waits for its database is alive and
    not ready. In a drain health turns NOT_SERVING, calls in flight get `settings.drain_s` to end,
    and background work is cancelled. `started(port, http_port)` is called once calls are accepted.
    """
    stop = stop or stop_on_signals()
    probes = Probes()
    async with (
        serve_http(settings.host, settings.http_port, probes) as http_port,
        contextlib.AsyncExitStack() as stack,
    ):
        service = await _opened(stack, opening, stop)
        if service is None:
            return
        host = _Host(service, settings, clock or SystemClock(), probes)
        async with host.open() as port:
            log.info("service_started", area=service.area, port=port, http_port=http_port)
            if started is not None:
                started(port, http_port)
            await host.until(stop)
            log.info("service_draining", area=service.area)


async def _opened(
    stack: contextlib.AsyncExitStack,
    opening: AbstractAsyncContextManager[Service],
    stop: asyncio.Event,
) -> Service | None:
    """The service, which `stack` closes; None if `stop` came before it was open."""
    entering = asyncio.create_task(stack.enter_async_context(opening))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((entering, stopping), return_when=asyncio.FIRST_COMPLETED)
        return entering.result() if entering.done() else None
    finally:
        entering.cancel()
        stopping.cancel()
        await asyncio.gather(entering, stopping, return_exceptions=True)


class _Host:
    def __init__(
        self, service: Service, settings: ServiceSettings, clock: Clock, probes: Probes
    ) -> None:
        self._service = service
        self._settings = settings
        self._guard = Guard(
            audience=caller_of_label(service.area),
            verifier=service.verifier,
            clock=clock,
            max_in_flight=settings.max_in_flight,
            permissions=service.permissions,
        )
        self._probes = probes
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        server, health_servicer = build_server(
            self._guard, self._service.servicers, tracer=current_tracer()
        )
        port = _bound(server, self._settings)
        await server.start()
        self._tasks = [asyncio.create_task(self._watch_readiness(health_servicer))]
        self._tasks += [asyncio.create_task(_forever(work)) for work in self._service.background]
        try:
            yield port
        finally:
            await self._drained(server, health_servicer)

    async def until(self, stop: asyncio.Event) -> None:
        """Waits for `stop`; background work that fails ends the service with its error."""
        stopping = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait([stopping, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for task in done - {stopping}:
            task.result()

    async def _watch_readiness(self, servicer: health.aio.HealthServicer) -> None:
        while True:
            reasons = [reason for check in self._service.ready if (reason := await _failed(check))]
            self._probes.not_ready = "; ".join(reasons)
            metrics.READY.labels(self._service.area).set(not reasons)
            serving = health_pb2.HealthCheckResponse
            await servicer.set("", serving.NOT_SERVING if reasons else serving.SERVING)
            self._probes.checked = True
            await asyncio.sleep(_READY_EVERY_S)

    async def _drained(
        self, server: grpc.aio.Server, health_servicer: health.aio.HealthServicer
    ) -> None:
        self._probes.not_ready = "draining"
        metrics.READY.labels(self._service.area).set(0)
        self._tasks[0].cancel()
        await health_servicer.enter_graceful_shutdown()
        for hand_over in self._service.drain:
            await self._handed_over(hand_over)
        await server.stop(self._settings.drain_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _handed_over(self, hand_over: Callable[[], Awaitable[None]]) -> None:
        """One that fails or takes too long is left to leases and sweepers; calls must still end."""
        try:
            await asyncio.wait_for(hand_over(), self._settings.drain_s)
        except (RemitError, TimeoutError) as error:
            reason = str(error) or f"not done after {self._settings.drain_s:g} s"
            log.warning("hand_over_failed", area=self._service.area, error=reason)


def _bound(server: grpc.aio.Server, settings: ServiceSettings) -> int:
    identity = TlsIdentity.load(settings.tls_dir)
    address = f"{settings.host}:{settings.port}"
    try:
        return server.add_secure_port(address, identity.server_credentials())
    except RuntimeError as error:
        prefix = settings.model_config.get("env_prefix", "")
        raise RemitError(
            error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
            f"{address} is in use; set {prefix}PORT to another port",
        ) from error


async def _failed(check: Callable[[], Awaitable[None]]) -> str:
    """Why a readiness check fails, or an empty string."""
    try:
        await asyncio.wait_for(check(), _READY_TIMEOUT_S)
    except RemitError as error:
        return error.message
    except TimeoutError:
        return "a readiness check did not answer in time"
    return ""


async def _forever(work: Callable[[], Awaitable[None]]) -> None:
    await work()
    message = "background work ended"
    raise RuntimeError(message)


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop: Any = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
