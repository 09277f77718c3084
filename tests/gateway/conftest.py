"""A real Envoy with the rendered configuration, before services whose answers a test decides."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import grpc
import pytest
from envoy_data_plane.envoy.config.route.v3 import RouteActionMaxStreamDuration
from google.rpc import code_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from remit.api.gateway.v1 import access_log_pb2, authorization_pb2, rate_limit_pb2
from remit.gateway import listeners, routes
from remit.gateway.bootstrap import render_binary
from remit.gateway.topology import Replica, Topology
from remit.local.certificates import ensure_certificates
from remit.local.envoy_process import EnvoyProcess, find_envoy
from remit.local.state import StateDirectory
from remit.rpc.clock import SystemClock
from remit.rpc.contracts import AREAS, STANDARD_CONTRACTS, MethodContract
from remit.rpc.envoy import (
    AUTHORIZATION_CHECK,
    SHOULD_RATE_LIMIT,
    AccessLogServicer,
    RateLimitServicer,
    add_access_log_servicer,
    add_authorization_servicer,
    add_rate_limit_servicer,
)
from remit.rpc.identity import TlsIdentity, dns_name
from remit.rpc.server import SERVER_OPTIONS
from tests.ports import free_ports
from tests.waiting import PATIENCE, eventually

Context = grpc.aio.ServicerContext[Any, Any]
Answer = Callable[[bytes, Context], Awaitable[bytes]]
Judge = Callable[
    [authorization_pb2.CheckRequest, Context], Awaitable[authorization_pb2.CheckResponse]
]


@dataclass
class Seen:
    """One call as a service got it."""

    area: str
    replica: int
    path: str
    metadata: list[tuple[str, str | bytes]]
    peer: list[bytes]
    remaining_s: float


async def echo(request: bytes, _: Context) -> bytes:
    return request


@dataclass
class Upstream:
    """One replica: a gRPC server with the area's certificate."""

    area: str
    index: int
    world: World
    port: int
    server: grpc.aio.Server = field(init=False)
    health: health.aio.HealthServicer = field(init=False)

    async def start(self) -> None:
        services = self.world.services
        self.server = grpc.aio.server(
            interceptors=services.interceptors(self.area), options=SERVER_OPTIONS
        )
        self.server.add_generic_rpc_handlers([services.handler(self)])
        self.health = health.aio.HealthServicer()
        await self.health.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        if self.area == "policy":
            add_authorization_servicer(self.world, self.server)
            add_rate_limit_servicer(self.world, self.server)
        if self.area == "audit":
            add_access_log_servicer(self.world, self.server)
        credentials = self.world.identity(self.area).server_credentials()
        self.server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop(None)


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        path = str(details.method)
        if not path.startswith("/remit."):
            return None

        async def answer(request: bytes, context: Context) -> bytes:
            upstream = self._upstream
            peer = list(context.auth_context().get("peer_spiffe_id", ()))
            metadata = list(context.invocation_metadata() or ())
            remaining = context.time_remaining()
            upstream.world.seen.append(
                Seen(upstream.area, upstream.index, path, metadata, peer, remaining)
            )
            return await upstream.world.answers.get(path, echo)(request, context)

        return grpc.unary_unary_rpc_method_handler(answer)


class Behind(Protocol):
    """What serves behind the gateway."""

    def interceptors(self, area: str) -> list[grpc.aio.ServerInterceptor]: ...

    def handler(self, upstream: Upstream) -> grpc.GenericRpcHandler: ...


class Bytes:
    """Answers bytes for bytes, by `World.answers`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def interceptors(self, _area: str) -> list[grpc.aio.ServerInterceptor]:
        return []

    def handler(self, upstream: Upstream) -> grpc.GenericRpcHandler:
        return _Handler(upstream)


class World:
    """Envoy, the replicas behind it, and what they were asked."""

    def __init__(
        self, state: StateDirectory, topology: Topology, serve: Callable[[World], Behind] = Bytes
    ) -> None:
        self.state = state
        self.services = serve(self)
        self.topology = topology
        self.envoy = EnvoyProcess(topology)
        self.answers: dict[str, Answer] = {}
        self.seen: list[Seen] = []
        self.checks: list[authorization_pb2.CheckRequest] = []
        self.verdict = allow("remit-of-alice")
        self.judge: Judge | None = None
        self.counting: list[rate_limit_pb2.RateLimitRequest] = []
        self.limits: RateLimitServicer | None = None
        self.access_log: AccessLogServicer | None = None
        self.upstreams = {
            (area, index): Upstream(area, index, self, replica.port)
            for area in AREAS
            for index, replica in enumerate(topology.replicas[area])
        }
        self.channels: list[grpc.aio.Channel] = []

    async def Check(
        self, request: authorization_pb2.CheckRequest, context: Any
    ) -> authorization_pb2.CheckResponse:
        self.checks.append(request)
        return self.verdict if self.judge is None else await self.judge(request, context)

    async def ShouldRateLimit(
        self, request: rate_limit_pb2.RateLimitRequest, context: Any
    ) -> rate_limit_pb2.RateLimitResponse:
        self.counting.append(request)
        if self.limits is not None:
            return await self.limits.ShouldRateLimit(request, context)
        return rate_limit_pb2.RateLimitResponse(
            overall_code=rate_limit_pb2.RateLimitResponse.CODE_OK
        )

    async def StreamAccessLogs(
        self, messages: AsyncIterator[access_log_pb2.StreamAccessLogsRequest], context: Any
    ) -> access_log_pb2.StreamAccessLogsResponse:
        if self.access_log is not None:
            return await self.access_log.StreamAccessLogs(messages, context)
        async for _ in messages:
            pass
        return access_log_pb2.StreamAccessLogsResponse()

    def identity(self, party: str) -> TlsIdentity:
        return TlsIdentity.load(self.state.tls_folder(party))

    def edge(self) -> grpc.aio.Channel:
        return self._kept(grpc.aio.insecure_channel(str(self.topology.edge)))

    def mesh(self, party: str) -> grpc.aio.Channel:
        options = [("grpc.ssl_target_name_override", dns_name("mesh"))]
        credentials = self.identity(party).channel_credentials()
        address = str(self.topology.mesh)
        return self._kept(grpc.aio.secure_channel(address, credentials, options))

    def _kept(self, channel: grpc.aio.Channel) -> grpc.aio.Channel:
        self.channels.append(channel)
        return channel


def allow(remit: str) -> authorization_pb2.CheckResponse:
    """The verdict that puts `remit` in place of the credential."""
    response = authorization_pb2.CheckResponse(status=status_pb2.Status(code=code_pb2.OK))
    response.ok_response.headers_to_remove.append("authorization")
    header = response.ok_response.headers.add()
    header.header.key, header.header.value = "remit-token", remit
    header.append_action = header.HEADER_APPEND_ACTION_OVERWRITE_IF_EXISTS_OR_ADD
    return response


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Envoy with one replica an area and two of cost; nothing fails unless the test makes it."""
    async with running_world(tmp_path, {"cost": 2}) as made:
        yield made


@contextlib.asynccontextmanager
async def running_world(
    folder: Path,
    counts: dict[str, int],
    *,
    serve: Callable[[World], Behind] = Bytes,
    patience: int = PATIENCE,
    **settings: Any,
) -> AsyncIterator[World]:
    """A world whose topology has these replicas and other settings.

    Policy, which is on the test's event loop, may take `patience` times as long as it is given.
    """
    state = StateDirectory.open(folder / "state")
    ensure_certificates(state, SystemClock())
    world = World(state, make_topology(state, counts, **settings), serve)
    state.envoy_file.write_bytes(rendered(world.topology, patience))
    command = world.envoy.spec(state, find_envoy(None)).command
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: ASYNC220 - at once
        try:
            for upstream in world.upstreams.values():
                await upstream.start()
            await eventually(lambda: all_healthy(world), timeout_s=30)
            yield world
        finally:
            for channel in world.channels:
                await channel.close()
            process.kill()
            process.wait()
            for upstream in world.upstreams.values():
                await upstream.stop()


def rendered(topology: Topology, patience: int = PATIENCE) -> bytes:
    """What Envoy reads, except that it is more patient with policy.

    With more than `PATIENCE` it is so much more patient with every call, too.
    """
    patient = {
        path: replace(contract, deadline_s=contract.deadline_s * patience)
        for path, contract in STANDARD_CONTRACTS.items()
        if path in {AUTHORIZATION_CHECK, SHOULD_RATE_LIMIT}
    }
    limit, longer = routes._duration_limit, patience / PATIENCE

    def patient_limit(contract: MethodContract) -> RouteActionMaxStreamDuration:
        return limit(replace(contract, deadline_s=contract.deadline_s * longer))

    with (
        mock.patch.object(listeners, "STANDARD_CONTRACTS", {**STANDARD_CONTRACTS, **patient}),
        mock.patch.object(routes, "_duration_limit", patient_limit),
    ):
        return render_binary(topology)


async def all_healthy(world: World) -> bool:
    return not await world.envoy.unhealthy_replicas()


def make_topology(state: StateDirectory, counts: dict[str, int], **settings: Any) -> Topology:
    wanted = dict.fromkeys(AREAS, 1) | counts
    ports = iter(free_ports(4 + 2 * sum(wanted.values())))
    document: dict[str, Any] = {
        "edge": {"port": next(ports)},
        "mesh": {"port": next(ports)},
        "admin": {"port": next(ports)},
        "stats": {"port": next(ports)},
        "tls_dir": str(state.folder / "tls"),
        "replicas": {
            area: [
                Replica(port=next(ports), http_port=next(ports)).model_dump() for _ in range(count)
            ]
            for area, count in wanted.items()
        },
        # The servers behind it live on a test's event loop, which stands still between tests and
        # while the machine is busy: that shuts none of them out.
        # A busy machine is slow to accept a connection; what is away refuses it at once.
        "resilience": {
            "health_timeout_s": 60,
            "connect_timeout_s": 15,
            "keepalive_timeout_s": 60,
        },
    }
    return Topology.parse(document | settings, source="the test")
