"""`make bench`: what the mesh costs on this machine, through the front door.

Starts `remit up` on a temporary state directory, measures, prints a table and stops it. Figures are
medians over rounds of one run on one machine; compare ratios, not absolute times. The work of a
run is 2 model turns and 1 tool call with the builtin-rules engine: 3 governed effects.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import psutil  # type: ignore[import-untyped]
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc

from remit.api.agent.v1 import (
    agent_catalog_service_pb2,
    agent_catalog_service_pb2_grpc,
    agent_service_pb2,
    agent_service_pb2_grpc,
    run_pb2,
)
from remit.gateway.topology import Topology
from remit.rpc.identity import TlsIdentity, dns_name
from tests.ports import free_ports

ROUNDS = 5
START_TIMEOUT_S = 90.0
TASK = "What is 17 * 23?"
HTTP_OFFSET = 1000
REQUESTS = re.compile(r"^remit_rpc_requests_total\{.*\} ([0-9.e+]+)$", re.MULTILINE)


@dataclass
class Mesh:
    """A mesh that runs for the benchmark."""

    state: Path
    start_s: float
    process: subprocess.Popen[str]

    @property
    def topology(self) -> Topology:
        return Topology.load(self.state / "topology.yaml")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        key = (self.state / "api-key").read_text().strip()
        return (("authorization", f"Bearer {key}"),)

    def processes(self) -> dict[str, psutil.Process]:
        """Every process of the mesh and their children, by part and process id."""
        parts = json.loads((self.state / "mesh.json").read_text())["parts"]
        found = {}
        for name, part in parts.items():
            process = psutil.Process(part["pid"])
            for each in (process, *process.children(recursive=True)):
                found[f"{name}#{each.pid}"] = each
        return found


@contextlib.contextmanager
def mesh() -> Iterator[Mesh]:
    """Starts `remit up` and stops it."""
    state = Path(tempfile.mkdtemp(prefix="remit-bench-"))
    state.chmod(0o711)  # as root PostgreSQL runs as another user, who must be able to pass
    edge, base = free_ports(1)[0], 21_000
    began = time.monotonic()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "remit.cli.main", "up", "--state", str(state / "mesh")),
            *("--edge-port", str(edge), "--port-base", str(base)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        _until_it_stands(process)
        yield Mesh(state / "mesh", time.monotonic() - began, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        shutil.rmtree(state, ignore_errors=True)


def _until_it_stands(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    give_up = time.monotonic() + START_TIMEOUT_S
    for line in process.stdout:
        if "The mesh stands" in line:
            return
        if time.monotonic() > give_up:
            break
    message = "the mesh did not start"
    raise SystemExit(message)


# ---------------------------------------------------------------------------------------- calls


async def median_ms(call: Callable[[], Awaitable[Any]], count: int) -> float:
    """Median over rounds of the median time of one call, one after another, in ms."""
    rounds = []
    for _ in range(ROUNDS):
        times = []
        for _ in range(count):
            began = time.perf_counter()
            await call()
            times.append(time.perf_counter() - began)
        rounds.append(statistics.median(times) * 1000)
    return statistics.median(rounds)


@contextlib.asynccontextmanager
async def direct(mesh: Mesh) -> AsyncIterator[grpc.aio.Channel]:
    """A channel straight to the agent service, under the mesh listener's identity."""
    identity = TlsIdentity.load(mesh.state / "tls" / "mesh")
    address = mesh.topology.replicas["agent"][0]
    options = (("grpc.ssl_target_name_override", dns_name("agent")),)
    async with grpc.aio.secure_channel(
        f"{address.host}:{address.port}", identity.channel_credentials(), options
    ) as channel:
        yield channel


async def unary(mesh: Mesh) -> dict[str, float]:
    """A unary call direct, through Envoy, and through Envoy with authentication; p50 in ms."""
    check = health_pb2.HealthCheckRequest()
    listing = agent_catalog_service_pb2.ListAgentsRequest()
    edge_address = str(mesh.topology.edge)
    async with direct(mesh) as channel, grpc.aio.insecure_channel(edge_address) as edge:
        straight: Any = health_pb2_grpc.HealthStub(channel)
        through: Any = health_pb2_grpc.HealthStub(edge)
        catalog = agent_catalog_service_pb2_grpc.AgentCatalogServiceStub(edge)
        return {
            "health, direct over mTLS": await median_ms(lambda: straight.Check(check), 200),
            "health, through Envoy": await median_ms(lambda: through.Check(check), 200),
            "ListAgents, through Envoy with API key": await median_ms(
                lambda: catalog.ListAgents(listing, metadata=mesh.metadata), 200
            ),
        }


# ----------------------------------------------------------------------------------------- runs


async def one_run(
    agents: agent_service_pb2_grpc.AgentServiceStub, metadata: Any, number: int
) -> float:
    """Seconds from the request to the end of one run. Raises if it did not succeed."""
    request = agent_service_pb2.StreamRunRequest(
        request=agent_service_pb2.CreateRunRequest(
            agent="agents/assistant", task=TASK, request_id=f"bench-{os.getpid()}-{number}"
        )
    )
    began = time.perf_counter()
    state = None
    async for response in agents.StreamRun(request, metadata=metadata, timeout=120):
        if response.event.WhichOneof("event") == "ended":
            state = response.event.ended.run
    took_s = time.perf_counter() - began
    if state is None or state.state != run_pb2.RUN_STATE_SUCCEEDED:
        message = f"a run did not succeed: {state}"
        raise SystemExit(message)
    return took_s


@dataclass(frozen=True)
class Load:
    """What a number of runs took."""

    concurrency: int
    runs: int
    runs_per_s: float
    p50_ms: float
    p99_ms: float
    rpcs_per_run: float
    commits_per_run: float
    cpu_ms_per_run: float
    cpu_ms_by_part: dict[str, float]


async def load(mesh: Mesh, concurrency: int, runs: int, first: int) -> Load:
    """Keeps `concurrency` runs going until `runs` have ended."""
    before = await counters(mesh)
    numbers = iter(range(first, first + runs))
    times: list[float] = []

    async def worker(agents: agent_service_pb2_grpc.AgentServiceStub) -> None:
        # Not a comprehension: a worker that fails keeps what the others measured.
        for number in numbers:
            times.append(await one_run(agents, mesh.metadata, number))  # noqa: PERF401

    async with grpc.aio.insecure_channel(str(mesh.topology.edge)) as channel:
        stub = agent_service_pb2_grpc.AgentServiceStub(channel)
        began = time.perf_counter()
        await asyncio.gather(*(worker(stub) for _ in range(concurrency)))
        took_s = time.perf_counter() - began
    await asyncio.sleep(2.0)  # effects are closed after the answer; they belong to the bill
    after = await counters(mesh)
    times.sort()
    by_part = {
        part: (after.cpu_s[part] - before.cpu_s.get(part, 0.0)) * 1000 / runs
        for part in after.cpu_s
    }
    return Load(
        concurrency=concurrency,
        runs=runs,
        runs_per_s=runs / took_s,
        p50_ms=statistics.median(times) * 1000,
        p99_ms=times[min(len(times) - 1, int(0.99 * len(times)))] * 1000,
        rpcs_per_run=(after.rpcs - before.rpcs) / runs,
        commits_per_run=(after.commits - before.commits) / runs,
        cpu_ms_per_run=sum(by_part.values()),
        cpu_ms_by_part=dict(sorted(by_part.items(), key=lambda item: -item[1])),
    )


@dataclass(frozen=True)
class Counters:
    """Totals of the mesh so far."""

    rpcs: float
    commits: int
    cpu_s: dict[str, float]


async def counters(mesh: Mesh) -> Counters:
    """RPCs served (health checks left out), commits, and CPU seconds by part."""
    cpu_s: dict[str, float] = {}
    for name, process in mesh.processes().items():
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            part = re.sub(r"[-/ ]?\d*#\d+$", "", name)
            cpu_s[part] = cpu_s.get(part, 0.0) + times.user + times.system
    return Counters(await asyncio.to_thread(_rpcs, mesh), await _commits(mesh), cpu_s)


def _rpcs(mesh: Mesh) -> float:
    total = 0.0
    for addresses in mesh.topology.replicas.values():
        for address in addresses:
            url = f"http://{address.host}:{address.port + HTTP_OFFSET}/metrics"
            with urllib.request.urlopen(url, timeout=5) as answer:
                text = answer.read().decode()
            lines = [line for line in text.splitlines() if "grpc.health" not in line]
            total += sum(float(value) for value in REQUESTS.findall("\n".join(lines)))
    return total


async def _commits(mesh: Mesh) -> int:
    socket = json.loads((mesh.state / "mesh.json").read_text())["postgres_socket"]
    connection = await asyncpg.connect(host=socket, user="postgres", database="postgres")
    try:
        query = "SELECT sum(xact_commit)::bigint FROM pg_stat_database WHERE datname LIKE 'remit%'"
        return int(await connection.fetchval(query))
    finally:
        await connection.close()


# --------------------------------------------------------------------------------------- report


async def measure(mesh: Mesh, concurrencies: list[int], scale: float) -> dict[str, Any]:
    """All figures of one mesh."""
    await load(mesh, 4, 20, 0)  # warm up: connections, caches, plans
    calls = await unary(mesh)
    loads = []
    first = 1000
    for concurrency in concurrencies:
        runs = max(20, int(scale * (60 if concurrency == 1 else 12 * concurrency)))
        loads.append(await load(mesh, concurrency, runs, first))
        first += runs
    return {"start_s": mesh.start_s, "unary_p50_ms": calls, "loads": [vars(each) for each in loads]}


def report(figures: dict[str, Any]) -> None:
    """Prints the tables."""
    print(f"\nstart-up, first start on an empty folder: {figures['start_s']:.1f} s\n")
    print("| unary call | p50 ms |\n| --- | --- |")
    for name, value in figures["unary_p50_ms"].items():
        print(f"| {name} | {value:.2f} |")
    print(
        "\n| concurrent | runs | runs/s | p50 ms | p99 ms | RPCs/run | commits/run | CPU ms/run |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for each in figures["loads"]:
        print(
            f"| {each['concurrency']} | {each['runs']} | {each['runs_per_s']:.1f}"
            f" | {each['p50_ms']:.1f} | {each['p99_ms']:.1f} | {each['rpcs_per_run']:.1f}"
            f" | {each['commits_per_run']:.1f} | {each['cpu_ms_per_run']:.1f} |"
        )
    print("\nCPU ms per run by part, at the highest concurrency:")
    for part, value in figures["loads"][-1]["cpu_ms_by_part"].items():
        print(f"  {part:12} {value:6.1f}")


def main() -> None:
    """Parses the options, measures, reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--scale", type=float, default=1.0, help="more or fewer runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with mesh() as running:
        figures = uvloop.run(measure(running, options.concurrent, options.scale))
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        report(figures)


if __name__ == "__main__":
    main()
