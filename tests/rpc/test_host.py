"""A service's life around its calls: it is alive before it is open, and its drain ends in time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from remit.agent.main import open_service
from remit.agent.settings import AgentSettings
from remit.local.probes import ask
from remit.postgres import migrate
from remit.rpc import host
from remit.rpc.clock import SystemClock
from remit.rpc.ids import SystemIds
from remit.rpc.mesh import Mesh
from remit.rpc.remits import RemitVerifier
from remit.settings import ServiceSettings
from tests.conftest import PostgresCluster
from tests.ports import free_ports
from tests.rpc.conftest import Identities
from tests.rpc.test_server import NoKeys
from tests.waiting import eventually, in_time

HOST = "127.0.0.1"


async def status(port: int, page: str) -> int:
    """0 while nobody listens."""
    return (await ask(HOST, port, page)).status


def settings_of(tls_folder: Path, *, drain_s: float = 5.0) -> ServiceSettings:
    [port] = free_ports(1)
    return ServiceSettings.load(tls_dir=tls_folder / "cost", drain_s=drain_s, http_port=port)


def a_service(**parts: object) -> host.Service:
    verifier = RemitVerifier(NoKeys(), SystemClock())
    return host.Service(area="cost", servicers=[], verifier=verifier, **parts)  # type: ignore[arg-type]


async def test_a_hand_over_that_takes_too_long_is_said_and_the_drain_goes_on(
    tls_folder: Path,
) -> None:
    drained: list[str] = []

    async def never() -> None:
        await asyncio.Event().wait()

    async def next_one() -> None:
        drained.append("the next one")

    service = a_service(drain=[never, next_one])
    settings, stop = settings_of(tls_folder, drain_s=0.1), asyncio.Event()
    stop.set()
    with capture_logs() as logs:
        await host.run(contextlib.nullcontext(service), settings, stop=stop)
    assert drained == ["the next one"]
    [warning] = [entry for entry in logs if entry["log_level"] == "warning"]
    assert warning["event"] == "hand_over_failed"
    assert warning["error"] == "not done after 0.1 s"


async def test_a_service_is_alive_and_not_ready_until_it_is_open(tls_folder: Path) -> None:
    go_on, stop, settings = asyncio.Event(), asyncio.Event(), settings_of(tls_folder)

    @contextlib.asynccontextmanager
    async def opening() -> AsyncIterator[host.Service]:
        await go_on.wait()
        yield a_service()

    task = asyncio.create_task(host.run(opening(), settings, stop=stop))
    await eventually(lambda: status(settings.http_port, "/health"))
    assert await status(settings.http_port, "/health") == 200
    assert await status(settings.http_port, "/ready") == 503
    go_on.set()
    await eventually(lambda: is_ready(settings.http_port))
    stop.set()
    await task


async def is_ready(port: int) -> bool:
    return await status(port, "/ready") == 200


async def test_a_stop_ends_a_service_that_is_not_open_yet(tls_folder: Path) -> None:
    begun, closed, stop = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def opening() -> AsyncIterator[host.Service]:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            closed.set()
        yield a_service()

    task = asyncio.create_task(host.run(opening(), settings_of(tls_folder), stop=stop))
    await begun.wait()
    stop.set()
    await in_time(task, 10)
    assert closed.is_set()


@pytest.fixture
async def unmigrated(postgres: PostgresCluster) -> str:
    """The name of a database of agent that has no table yet."""
    name = "remit_agent_unmigrated"
    await postgres._create(name, "agent")
    return name


async def test_a_service_waits_for_its_migrations_alive_and_not_ready(
    tls_folder: Path, identity: Identities, postgres: PostgresCluster, unmigrated: str
) -> None:
    [port] = free_ports(1)
    dsn = postgres.dsn(unmigrated, "remit_agent")
    settings = AgentSettings.load(dsn=dsn, tls_dir=tls_folder / "agent", http_port=port)
    stop = asyncio.Event()
    async with Mesh.connect(f"{HOST}:9", identity("agent")) as mesh:
        opening = open_service(settings, mesh, clock=SystemClock(), ids=SystemIds())
        with capture_logs() as logs:
            task = asyncio.create_task(host.run(opening, settings, stop=stop))
            await eventually(lambda: [e for e in logs if e["event"] == "waiting_for_migrations"])
            assert await status(port, "/health") == 200
            assert await status(port, "/ready") == 503
            await migrate(postgres.dsn(unmigrated, "remit_agent_owner"), "agent")
            await eventually(lambda: is_ready(port))
        stop.set()
        await task
