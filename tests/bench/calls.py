"""One unary call on each way in: what the gateway, the exchange of the API key and JSON add.

The same RPC, `ListAgents`, is called straight at the agent service (mTLS, under the edge listener's
certificate, with a remit that was fetched before), through Envoy with the API key, and in its REST
form. The health check, which needs no remit, shows Envoy's hop alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from remit.api.agent.v1 import agent_catalog_service_pb2, agent_catalog_service_pb2_grpc
from remit.api.gateway.v1 import authorization_pb2
from remit.rpc.calls import REMIT_KEY
from remit.rpc.envoy import AuthorizationStub
from remit.rpc.identity import TlsIdentity, dns_name
from tests.bench.counters import read
from tests.bench.running import MeasuringError, Mesh
from tests.bench.stats import quantile

Call = Callable[[], Awaitable[Any]]

LIST_AGENTS: Final = "/remit.api.agent.v1.AgentCatalogService/ListAgents"
GRPC: Final = "application/grpc"
REST_PATH: Final = "/v1/agents"
IN_FLIGHT: Final = 32
TIMEOUT_S: Final = 30.0


async def figures(mesh: Mesh, count: int, seconds: float) -> dict[str, float]:
    """Each kind alone, `count` calls one after another; then many at once for some seconds."""
    found: dict[str, float] = {}
    async with _ways(mesh) as ways:
        for name, call in ways.items():
            found |= {f"{name}.{key}": value for key, value in (await _alone(call, count)).items()}
        for name, call in ways.items():
            many = await _many(mesh, call, seconds)
            found |= {f"{name}.{key}": value for key, value in many.items()}
    return found


async def _alone(call: Call, count: int) -> dict[str, float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        await call()
        times.append(time.perf_counter() - began)
    times.sort()
    return {"p50_ms": quantile(times, 0.5) * 1000, "p99_ms": quantile(times, 0.99) * 1000}


async def _many(mesh: Mesh, call: Call, seconds: float) -> dict[str, float]:
    """Calls a second with many in flight, and the CPU that one takes."""
    before = await read(mesh)
    give_up = time.perf_counter() + seconds
    done = 0

    async def worker() -> None:
        nonlocal done
        while time.perf_counter() < give_up:
            await call()
            done += 1

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    used = (await read(mesh)).since(before)
    cpu = {f"cpu_ms.{part}": use.cpu_s * 1000 / done for part, use in used.use.items()}
    return {"calls_per_s": done / seconds} | cpu


@contextlib.asynccontextmanager
async def _ways(mesh: Mesh) -> AsyncIterator[Mapping[str, Call]]:
    """The kinds of call by name; REST only where the gateway has it."""
    check = health_pb2.HealthCheckRequest()
    listing = agent_catalog_service_pb2.ListAgentsRequest()
    remit_ = ((REMIT_KEY, await remit(mesh, LIST_AGENTS)),)
    async with (
        channel(mesh, "agent", "mesh") as as_mesh,
        channel(mesh, "agent", "edge") as as_edge,
        grpc.aio.insecure_channel(mesh.edge) as edge,
        contextlib.AsyncExitStack() as rest,
    ):
        straight: Any = health_pb2_grpc.HealthStub(as_mesh)
        through: Any = health_pb2_grpc.HealthStub(edge)
        agents = agent_catalog_service_pb2_grpc.AgentCatalogServiceStub(as_edge)
        public = agent_catalog_service_pb2_grpc.AgentCatalogServiceStub(edge)
        limit = {"timeout": TIMEOUT_S}
        ways: dict[str, Call] = {
            "health_direct": lambda: straight.Check(check, **limit),
            "health_envoy": lambda: through.Check(check, **limit),
            "list_direct": lambda: agents.ListAgents(listing, metadata=remit_, timeout=TIMEOUT_S),
            "list_envoy_key": lambda: public.ListAgents(
                listing, metadata=mesh.metadata, timeout=TIMEOUT_S
            ),
        }
        if (clients := await _rest_clients(mesh, rest)) is not None:
            ways["list_rest_key"] = clients.get
        yield ways


@contextlib.asynccontextmanager
async def channel(
    mesh: Mesh, area: str, identity: str, replica: int = 0
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel straight to a replica of a service, under the certificate of a listener."""
    folder = TlsIdentity.load(mesh.state / "tls" / identity)
    address = mesh.topology.replicas[area][replica]
    options = (("grpc.ssl_target_name_override", dns_name(area)),)
    async with grpc.aio.secure_channel(
        f"{address.host}:{address.port}", folder.channel_credentials(), options
    ) as channel:
        yield channel


async def remit(mesh: Mesh, path: str) -> str:
    """A remit for the API key, asked for as Envoy's edge asks.

    Raises:
        MeasuringError: policy refused.

    """
    request = authorization_pb2.CheckRequest()
    http = request.attributes.request.http
    http.method, http.path = "POST", path
    http.headers.update({"authorization": f"Bearer {mesh.api_key}", "content-type": GRPC})
    async with channel(mesh, "policy", "edge") as policy:
        answer = await AuthorizationStub(policy).Check(request)
    for option in answer.ok_response.headers:
        if option.header.key == REMIT_KEY:
            return str(option.header.value)
    raise MeasuringError(f"policy gave no remit: {answer}")


# ------------------------------------------------------------------------------------------ REST


class RestClients:
    """Idle HTTP/1.1 connections to the edge; each call takes one and gives it back."""

    def __init__(self, mesh: Mesh) -> None:
        self._host, _, port = mesh.edge.partition(":")
        self._port = int(port)
        self._idle: list[RestConnection] = []
        self._request = (
            f"GET {REST_PATH} HTTP/1.1\r\nhost: {mesh.edge}\r\n"
            f"authorization: Bearer {mesh.api_key}\r\naccept: application/json\r\n\r\n"
        ).encode()

    async def get(self) -> bytes:
        """Fetches the list of agents; returns the body. Raises MeasuringError unless it is OK."""
        status, body = await self.ask()
        if status != 200:
            raise MeasuringError(f"GET {REST_PATH} answered {status}: {body!r}")
        return body

    async def ask(self) -> tuple[int, bytes]:
        """Sends the request; returns status and body."""
        connection = self._idle.pop() if self._idle else await self._open()
        answer = await asyncio.wait_for(connection.exchange(self._request), TIMEOUT_S)
        self._idle.append(connection)
        return answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._idle:
            connection.close()

    async def _open(self) -> RestConnection:
        return RestConnection(*await asyncio.open_connection(self._host, self._port))


class RestConnection:
    """One connection that is kept alive: the least that HTTP/1.1 asks of a client (RFC 9112)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Sends a request and reads an answer with a content length, or in chunks."""
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        status, _, rest = head.partition(b"\r\n")
        fields = dict(line.split(b": ", 1) for line in rest.split(b"\r\n") if b": " in line)
        if b"content-length" in fields:
            body = await self._reader.readexactly(int(fields[b"content-length"]))
        else:
            body = await self._chunks()
        return int(status.split()[1]), body

    def close(self) -> None:
        """Ends the connection."""
        self._writer.close()

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            body += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readuntil(b"\r\n")
        return body


async def _rest_clients(mesh: Mesh, stack: contextlib.AsyncExitStack) -> RestClients | None:
    """None where the gateway of that tree has no REST form yet."""
    clients = await stack.enter_async_context(RestClients(mesh))
    status, _ = await clients.ask()
    return clients if status == 200 else None
