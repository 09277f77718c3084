"""A service as a process, called directly over mTLS, and who stands in for policy; ways to cost.

The service asks policy for the keys that verify remits, and nobody else for anything: a server with
that one answer stands where the gateway's mesh listener would. Whoever reserves signs its remits
with that key. So nothing is measured but cost, its database and its caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Final
from urllib.request import urlopen

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from remit.api.cost.v1 import cost_service_pb2, cost_service_pb2_grpc
from remit.api.options.v1 import options_pb2
from remit.api.policy.v1 import policy_service_pb2
from remit.api.usage.v1 import usage_pb2
from remit.effects.batching import Batcher, opening_limits
from remit.effects.settings import EffectSettings
from remit.rpc.errors import RemitError
from remit.rpc.identity import TlsIdentity
from remit.rpc.mesh import Mesh
from remit.rpc.remits import Remit, encode_remit
from tests.bench.counters import family
from tests.bench.ledger_ways import BATCHED, EACH
from tests.bench.pairs import BOUND_CALLS, USED_CALLS, Look, Moment, Way
from tests.bench.payers import AGENT, ITEM, Payer
from tests.bench.startup import is_ready
from tests.ports import free_ports

GATE: Final = "gate"
_KEY: Final = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_KEY_ID: Final = "bench"
_LIFE: Final = timedelta(hours=1)
_START_LIMIT_S: Final = 60.0
_STOP_LIMIT_S: Final = 20.0
_POLL_S: Final = 0.05
_POLICY: Final = "remit.api.policy.v1.PolicyService"
_RESERVE: Final = "/remit.api.cost.v1.CostService/BatchReserveBudgets"
_SETTLE: Final = "/remit.api.cost.v1.CostService/BatchSettleReservations"
_AUDIENCE: Final = frozenset(
    {
        options_pb2.CALLER_INFERENCE,
        options_pb2.CALLER_TOOLS,
        options_pb2.CALLER_COST,
        options_pb2.CALLER_AUDIT,
    }
)


@dataclass(frozen=True)
class Server:
    """A service that runs."""

    pid: int
    port: int
    http_port: int


# --------------------------------------------------------------------------------------- servers


async def _list_keys(
    _request: policy_service_pb2.ListRemitKeysRequest, _context: object
) -> policy_service_pb2.ListRemitKeysResponse:
    """The key that all remits of the benchmark are signed with."""
    response = policy_service_pb2.ListRemitKeysResponse()
    response.keys.add(key_id=_KEY_ID, public_key=_KEY.public_key().public_bytes_raw())
    return response


@contextlib.asynccontextmanager
async def keys(tls: Path, address: str) -> AsyncIterator[None]:
    """Serves the key under the mesh listener's certificate."""
    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(
        _list_keys,
        policy_service_pb2.ListRemitKeysRequest.FromString,
        policy_service_pb2.ListRemitKeysResponse.SerializeToString,
    )
    handlers = grpc.method_handlers_generic_handler(_POLICY, {"ListRemitKeys": method})
    server.add_generic_rpc_handlers((handlers,))
    identity = TlsIdentity.load(tls / "mesh")
    server.add_secure_port(address, identity.server_credentials())
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def server(
    tls: Path, dsn: str, mesh: str, *, area: str = "cost", **settings: object
) -> AsyncIterator[Server]:
    """A service with the defaults and a few settings of its own.

    Raises:
        SystemExit: it did not start, with the end of its log.

    """
    port, http_port = free_ports(2)
    told = {"dsn": dsn, "tls_dir": tls / area, "mesh_address": mesh, "log_level": "warning"}
    told |= {"port": port, "http_port": http_port} | settings
    environment = dict(os.environ) | {
        f"REMIT_{area.upper()}_{name.upper()}": str(value) for name, value in told.items()
    }
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "remit.cli.main", "serve", area),
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            await _until_ready(process, http_port, log)
            yield Server(process.pid, port, http_port)
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.wait(), _STOP_LIMIT_S)


async def _until_ready(process: asyncio.subprocess.Process, http_port: int, log: IO[bytes]) -> None:
    give_up = time.monotonic() + _START_LIMIT_S
    while not await asyncio.to_thread(is_ready, http_port):
        if process.returncode is not None or time.monotonic() > give_up:
            log.seek(0)
            raise SystemExit(f"it did not start:\n{log.read().decode()[-2000:]}")
        await asyncio.sleep(_POLL_S)


def look_at(served: Server, postgres: int, *, area: str = "cost") -> Look:
    """Looks at this process, which calls, at the service and at PostgreSQL."""

    def metrics() -> str:
        with urlopen(f"http://127.0.0.1:{served.http_port}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
            return text

    async def look() -> Moment:
        parts = {
            "client": [os.getpid()],
            area: family(served.pid),
            "postgres": family(postgres),
        }
        return Moment.now(parts, await asyncio.to_thread(metrics))

    return look


# ------------------------------------------------------------------------------------------ ways


class _Requests:
    """Requests with the remits of those who pay, signed once each."""

    def __init__(self) -> None:
        self._tokens: dict[Payer, str] = {}

    def reserve(self, payer: Payer, claim: str) -> cost_service_pb2.ReserveBudgetRequest:
        token = self._tokens.get(payer)
        if token is None:
            token = self._tokens[payer] = token_of(payer)
        return cost_service_pb2.ReserveBudgetRequest(
            remit=token,
            claim=claim,
            attempt=1,
            item=ITEM,
            bound=usage_pb2.Usage(calls=BOUND_CALLS),
        )

    def settle(self, claim: str) -> cost_service_pb2.SettleReservationRequest:
        used = usage_pb2.Usage(calls=USED_CALLS)
        return cost_service_pb2.SettleReservationRequest(claim=claim, attempt=1, used=used)


class RpcWay:
    """An RPC for each operation."""

    def __init__(
        self, cost: cost_service_pb2_grpc.CostServiceStub, requests: _Requests | None = None
    ) -> None:
        self._cost = cost
        self._requests = requests or _Requests()

    async def reserve(self, payer: Payer, claim: str) -> None:
        """Holds."""
        await self._cost.ReserveBudget(self._requests.reserve(payer, claim))

    async def settle(self, claim: str) -> None:
        """Posts."""
        await self._cost.SettleReservation(self._requests.settle(claim))


class GateWay:
    """Many operations in one RPC, gathered as the effect gate gathers them.

    The gate does not wait for its settlements, and lets them linger for company. Here somebody
    waits, so they go as reserves do.
    """

    def __init__(
        self, cost: cost_service_pb2_grpc.CostServiceStub, requests: _Requests | None = None
    ) -> None:
        self._cost = cost
        self._requests = requests or _Requests()
        settings = EffectSettings()
        self._reserves: Batcher[cost_service_pb2.ReserveBudgetRequest, object] = Batcher(
            self._reserve_all, name="reservations", **opening_limits(settings, _RESERVE)
        )
        self._settles: Batcher[cost_service_pb2.SettleReservationRequest, object] = Batcher(
            self._settle_all, name="settlements", **opening_limits(settings, _SETTLE)
        )

    async def reserve(self, payer: Payer, claim: str) -> None:
        """Holds."""
        await self._reserves.ask(self._requests.reserve(payer, claim))

    async def settle(self, claim: str) -> None:
        """Posts."""
        await self._settles.ask(self._requests.settle(claim))

    async def _reserve_all(
        self, requests: Sequence[cost_service_pb2.ReserveBudgetRequest]
    ) -> Sequence[object | RemitError]:
        batch = cost_service_pb2.BatchReserveBudgetsRequest(requests=requests)
        return [_answer(each) for each in (await self._cost.BatchReserveBudgets(batch)).results]

    async def _settle_all(
        self, requests: Sequence[cost_service_pb2.SettleReservationRequest]
    ) -> Sequence[object | RemitError]:
        batch = cost_service_pb2.BatchSettleReservationsRequest(requests=requests)
        return [_answer(each) for each in (await self._cost.BatchSettleReservations(batch)).results]


@contextlib.asynccontextmanager
async def grpc_ways(
    tls: Path, dsn: str, postgres: int
) -> AsyncIterator[Mapping[str, tuple[Way, Look]]]:
    """The ways over gRPC, each with its look: to a service that batches and to one that does not.

    They are replicas of one ledger, of which only one is loaded at a time.
    """
    mesh = f"127.0.0.1:{free_ports(1)[0]}"
    async with (
        server(tls, dsn, mesh, max_batch=1) as unbatched,
        server(tls, dsn, mesh) as batching,
        keys(tls, mesh),
        _cost(tls, unbatched) as each,
        _cost(tls, batching) as batched,
    ):
        requests = _Requests()
        look, look_batching = look_at(unbatched, postgres), look_at(batching, postgres)
        yield {
            EACH: (RpcWay(each, requests), look),
            BATCHED: (RpcWay(batched, requests), look_batching),
            GATE: (GateWay(batched, requests), look_batching),
        }


@contextlib.asynccontextmanager
async def _cost(tls: Path, served: Server) -> AsyncIterator[cost_service_pb2_grpc.CostServiceStub]:
    address, identity = f"127.0.0.1:{served.port}", TlsIdentity.load(tls / "tools")
    async with Mesh.connect(address, identity, party="cost") as connection:
        yield connection.stub(cost_service_pb2_grpc.CostServiceStub)


def _answer(result: cost_service_pb2.ReservationResult) -> object | RemitError:
    if result.WhichOneof("result") == "reservation":
        return result.reservation
    return RemitError.from_status(result.error)


def token_of(payer: Payer) -> str:
    """A signed remit of a run."""
    now = datetime.now(UTC)
    remit = Remit(
        remit_id="bench",
        subject=payer.subject,
        team="",
        agent=AGENT,
        run=payer.run,
        presenter=options_pb2.CALLER_AGENT,
        audience=_AUDIENCE,
        tools=frozenset(),
        models=frozenset(),
        account=payer.account,
        max_cost_nanos=None,
        fencing_token=1,
        policy_epoch=1,
        roles=frozenset(),
        key_id=_KEY_ID,
        issue_time=now,
        expire_time=now + _LIFE,
    )
    return encode_remit(remit, _KEY)
