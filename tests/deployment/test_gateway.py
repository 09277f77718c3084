"""The gateway as it is deployed: a Service's name that stands for many pods, and the drain."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from remit.gateway.bootstrap import render
from remit.gateway.clusters import MESH, area_cluster
from remit.gateway.topology import Replica, Topology
from remit.local.envoy_process import find_envoy
from remit.local.installation import Installation
from remit.local.probes import ask
from remit.rpc.contracts import AREAS, contracts_of
from tests.deployment.name_server import NameServer
from tests.gateway.conftest import Context, World, running_world
from tests.ports import free_ports
from tests.waiting import PATIENCE, eventually, in_time

pytestmark = pytest.mark.timeout(300)

RESERVE = "/remit.api.cost.v1.CostService/ReserveBudget"
GENERATE = "/remit.api.inference.v1.InferenceService/GenerateText"
PODS = ["127.0.0.11", "127.0.0.12", "127.0.0.13"]


@pytest.fixture
async def names() -> AsyncIterator[tuple[NameServer, int]]:
    """A name server with one address for each area, and its port."""
    server = NameServer({f"{area}.mesh.test": ["127.0.0.10"] for area in AREAS})
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: server, ("127.0.0.1", 0))
    yield server, transport.get_extra_info("sockname")[1]
    transport.close()


def named_topology(tls_dir: Path) -> Topology:
    ports = iter(free_ports(4 + 2 * len(AREAS)))
    document: dict[str, Any] = {
        name: {"port": next(ports)} for name in ("edge", "mesh", "admin", "stats")
    }
    document["replicas"] = {
        area: [
            {
                "host": f"{area}.mesh.test",
                "port": next(ports),
                "http_port": next(ports),
                "processes": 3,
            }
        ]
        for area in AREAS
    }
    return Topology.parse(document | {"tls_dir": str(tls_dir)}, source="the test")


def resolved_by(rendered: str, port: int) -> str:
    """The configuration with a name server in place of the machine's."""
    document = json.loads(rendered)
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port, "protocol": "UDP"}}
    kind = "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"
    document["typed_dns_resolver_config"] = {
        "name": "envoy.network.dns_resolver.cares",
        "typed_config": {
            "@type": f"type.googleapis.com/{kind}",
            "resolvers": [address],
            "dns_resolver_options": {"no_default_search_domain": True},
        },
    }
    return json.dumps(document)


async def hosts(topology: Topology, cluster: str) -> set[str]:
    answer = await ask(topology.admin.host, topology.admin.port, "/clusters?format=json")
    document = answer.json() or {}
    return {
        host["address"]["socket_address"]["address"]
        for status in document.get("cluster_statuses", ())
        if status["name"] == cluster
        for host in status.get("host_statuses", ())
    }


async def test_a_services_name_stands_for_all_its_pods_as_they_come_and_go(
    names: tuple[NameServer, int], installation: Installation, tmp_path: Path
) -> None:
    server, port = names
    server.addresses["policy.mesh.test"] = PODS
    topology = named_topology(installation.folder / "gateway" / "tls")
    file = tmp_path / "envoy.json"
    file.write_text(resolved_by(render(topology), port))
    envoy = await asyncio.create_subprocess_exec(
        *(str(find_envoy(None)), "--config-path", str(file), "--log-level", "error"),
        *("--concurrency", "1", "--disable-hot-restart"),
    )

    async def seen(expected: list[str]) -> bool:
        return await hosts(topology, "mesh_policy") == set(expected)

    try:
        await eventually(lambda: seen(PODS), timeout_s=30)
        assert await hosts(topology, "mesh_cost") == {"127.0.0.10"}
        server.addresses["policy.mesh.test"] = [PODS[2], "127.0.0.14"]
        await eventually(lambda: seen([PODS[2], "127.0.0.14"]), timeout_s=30)
    finally:
        envoy.kill()
        await envoy.wait()


def test_a_name_for_many_processes_admits_what_they_admit_together() -> None:
    def admitted(processes: int) -> list[int]:
        replica = Replica(host="cost.mesh.test", port=7430, processes=processes)
        replicas = Topology.default().replicas | {"cost": (replica,)}
        topology = Topology.default().model_copy(update={"replicas": replicas})
        cluster = area_cluster(topology, MESH, "cost", contracts_of("cost"))
        assert cluster.circuit_breakers
        return [int(t.max_requests or 0) for t in cluster.circuit_breakers.thresholds]

    assert admitted(3) == [3 * limit for limit in admitted(1)]
    assert all(admitted(1))


async def test_a_drain_lets_calls_in_flight_end_and_tells_balancers_first(tmp_path: Path) -> None:
    async with running_world(tmp_path, {}) as world, draining_by_signal(world) as drain:
        release = asyncio.Event()

        async def wait(body: bytes, _: Context) -> bytes:
            await release.wait()
            return body

        world.answers[GENERATE] = wait
        method: Any = world.mesh("agent").unary_unary(GENERATE)
        call = asyncio.ensure_future(method(b"body", timeout=60 * PATIENCE))
        await eventually(lambda: world.seen)
        drain.terminate()
        await eventually(lambda: is_draining(world))
        assert drain.returncode is None
        assert not call.done()
        release.set()
        assert await call == b"body"
        output, _ = await in_time(drain.communicate(), 60)
        assert output == b"drained\n"
        assert await drain.wait() == 0


async def test_a_drain_that_takes_too_long_ends_and_tells_what_is_left(tmp_path: Path) -> None:
    async with running_world(tmp_path, {}) as world:

        async def hang(_: bytes, __: Context) -> bytes:
            await asyncio.Event().wait()
            raise AssertionError

        world.answers[RESERVE] = hang
        method: Any = world.mesh("inference").unary_unary(RESERVE)
        call = asyncio.ensure_future(method(b"body", timeout=30 * PATIENCE))
        await eventually(lambda: world.seen)
        assert await world.envoy.drain(lag_s=0, limit_s=0.2) == 1
        call.cancel()


@contextlib.asynccontextmanager
async def draining_by_signal(world: World) -> AsyncIterator[asyncio.subprocess.Process]:
    """`remit gateway drain`, which waits for its SIGTERM."""
    file = world.state.folder / "topology.yaml"
    file.write_text(world.topology.dump())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "remit.cli.main", "gateway", "drain", "--topology", str(file)),
        *("--lag", "0.1", "--limit", "60"),
        stdout=subprocess.PIPE,
    )
    try:
        await eventually(lambda: _catches_signals(process.pid), timeout_s=60)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def _catches_signals(pid: int) -> bool:
    """Whether the process has a handler for SIGTERM by now (proc(5), SigCgt)."""
    status = Path(f"/proc/{pid}/status").read_text()
    [mask] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(mask, 16) & 1 << 14)


async def is_draining(world: World) -> bool:
    """Whether probes and balancers are told to look elsewhere."""
    answer = await ask(world.topology.stats.host, world.topology.stats.port, "/ready")
    return answer.status == 503
