"""Audit in a storm: PostgreSQL, two replicas of audit and callers, each a process that may die.

Callers speak to the replicas over mTLS, without a gateway between. Who stands in for policy is a
server with one answer: the key that their remit is signed with.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc

from remit.api.policy.v1 import policy_service_pb2_grpc
from remit.audit.key_files import make_log_keys
from remit.local.certificates import ensure_leaves
from remit.local.postgres_server import EmbeddedPostgres
from remit.local.probes import not_ready
from remit.local.process import Backoff, ProcessSpec, Supervised
from remit.local.progress import PlainReporter
from remit.rpc.clock import SystemClock
from remit.rpc.identity import TlsIdentity
from tests.audit.storm_writer import Place
from tests.audit.test_service import Policy, token
from tests.ports import free_ports
from tests.scratch import scratch_folder
from tests.waiting import PATIENCE, eventually

ROOT = Path(__file__).parents[2]
REPLICAS = 2
PARTIES = ("audit", "mesh", "tools")
UP_WITHIN_S = 60.0
_BACKOFF = Backoff(first_s=0.1, longest_s=1.0, attempts_to_start=20)


@dataclass(frozen=True)
class World:
    """What runs, and where it is written down."""

    parts: Mapping[str, Supervised]
    dsn: str
    keys: Path
    told: Path

    def lines(self) -> list[list[str]]:
        """What the callers said, in whole lines; those of a caller are in order."""
        texts = [file.read_text() for file in sorted(self.told.iterdir())]
        return [line.split() for text in texts for line in text.splitlines()]

    def count(self, word: str) -> int:
        """How often callers said so."""
        return Counter(line[0] for line in self.lines())[word]

    async def kill(self, name: str) -> None:
        """Ends a part as a crash does, and waits until it is up again."""
        part = self.parts[name]
        before = part.restarts
        part.kill()
        await eventually(lambda: part.restarts > before and part.is_ready, UP_WITHIN_S)

    async def goes_on(self) -> None:
        """Wait until something more is acknowledged."""
        before = self.count("ack")
        await eventually(lambda: self.count("ack") > before, UP_WITHIN_S)


@contextlib.asynccontextmanager
async def storm_world(*, callers: int, writers: int) -> AsyncIterator[World]:
    """Everything up, the callers at work; all of it gone at the end."""
    with scratch_folder("remit-audit-storm-") as folder:
        async with contextlib.AsyncExitStack() as stack:
            yield await _started(folder, stack, callers, writers)


async def _started(
    folder: Path, stack: contextlib.AsyncExitStack, callers: int, writers: int
) -> World:
    output = stack.enter_context((folder / "output").open("w"))
    parts: dict[str, Supervised] = {}

    async def supervise(spec: ProcessSpec) -> None:
        part = parts[spec.name] = Supervised(spec, PlainReporter(output), SystemClock())
        stack.push_async_callback(part.stop)
        await part.start()

    dsns = await _postgres(folder, supervise)
    make_log_keys(folder / "keys")
    tls = folder / "tls"
    ensure_leaves(folder / "ca", {party: tls / party for party in PARTIES}, SystemClock())
    mesh, *ports = free_ports(1 + 2 * REPLICAS)
    await stack.enter_async_context(policy_at(tls, f"127.0.0.1:{mesh}"))
    addresses = []
    for number in range(REPLICAS):
        port, http_port = ports[2 * number : 2 * number + 2]
        addresses.append(f"127.0.0.1:{port}")
        told = {"dsn": dsns["audit"], "keys_dsn": dsns["audit_keys"], "keys_dir": folder / "keys"}
        told |= {"tls_dir": tls / "audit", "mesh_address": f"127.0.0.1:{mesh}"}
        told |= {"port": port, "http_port": http_port, "checkpoint_interval_ms": 100}
        await supervise(replica_of(folder, number, told, http_port))
    (folder / "told").mkdir()
    remit = token(expire_time=datetime.now(UTC) + timedelta(hours=1))
    place = Place(addresses, str(tls / "tools"), remit, str(folder / "told"), writers)
    for number in range(callers):
        await supervise(_caller(folder, number, place))
    return World(parts, dsns["audit"], folder / "keys", folder / "told")


async def _postgres(
    folder: Path, supervise: Callable[[ProcessSpec], Awaitable[None]]
) -> Mapping[str, str]:
    server = await EmbeddedPostgres.prepare(folder / "postgres")
    spec = server.spec(max_connections=50, log=folder / "postgres.log")
    await supervise(replace(spec, backoff=_BACKOFF, ready_timeout_s=UP_WITHIN_S * PATIENCE))
    return await server.provision()


@contextlib.asynccontextmanager
async def policy_at(tls: Path, address: str) -> AsyncIterator[None]:
    """Who stands in for policy."""
    server = grpc.aio.server()
    policy_service_pb2_grpc.add_PolicyServiceServicer_to_server(Policy(), server)  # type: ignore[abstract]
    server.add_secure_port(address, TlsIdentity.load(tls / "mesh").server_credentials())
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


def replica_of(
    folder: Path, number: int, told: Mapping[str, object], http_port: int
) -> ProcessSpec:
    """A process of audit with these settings."""
    own = {f"REMIT_AUDIT_{name.upper()}": str(value) for name, value in told.items()}
    return ProcessSpec(
        name=f"audit-{number}",
        command=(sys.executable, "-m", "remit.cli.main", "serve", "audit"),
        environment=os.environ | own,
        log=folder / f"audit-{number}.log",
        ready=lambda: not_ready("127.0.0.1", http_port),
        ready_timeout_s=UP_WITHIN_S * PATIENCE,
        backoff=_BACKOFF,
    )


def _caller(folder: Path, number: int, place: Place) -> ProcessSpec:
    async def at_once() -> str:
        return ""

    return ProcessSpec(
        name=f"caller-{number}",
        command=(sys.executable, "-m", "tests.audit.storm_writer", json.dumps(asdict(place))),
        environment=os.environ | {"PYTHONPATH": str(ROOT)},
        log=folder / f"caller-{number}.log",
        ready=at_once,
        backoff=_BACKOFF,
    )
