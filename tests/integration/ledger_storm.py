"""A storm about money: who pays, who kills and who watches.

Processes with many clients call models and tools through the gateway, leave and hang up; replicas
of cost and inference and PostgreSQL are killed; a watcher looks into the ledger all the while. What
the engine made is counted outside every process (`counting_hook`): bills are compared with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import grpc
import yaml

from remit.api.cost.v1 import (
    cost_report_service_pb2,
    cost_report_service_pb2_grpc,
    reservation_pb2,
)
from remit.api.policy.v1 import policy_admin_service_pb2, policy_admin_service_pb2_grpc
from remit.local.probes import not_ready
from tests.integration.clients import bearer, channel
from tests.integration.conftest import RunningMesh, started_mesh
from tests.integration.counting_hook import sitecustomize as counting_hook
from tests.integration.ledger_payers import Orders, Told
from tests.integration.reckoning import AWAY, EFFECT_DATABASES, rows
from tests.scratch import scratch_folder
from tests.waiting import PATIENCE, eventually

REPLICAS: Final = {"cost": 2, "inference": 2}
MORTAL: Final = ("cost-0", "cost-1", "inference-0", "inference-1", "postgres")
LEASE_S: Final = 3.0
LEASE_TOKENS: Final = 16
INPUT_NANOS: Final = 50
OUTPUT_NANOS: Final = 1_000
CALL_NANOS: Final = 5_000
_LIMIT_OF_ALL_NANOS: Final = 50 * 10**9
_UP_WITHIN_S: Final = 60.0
_MODEL: Final = {
    "name": "counted",
    "engine": "openai",
    "description": "Makes tokens and counts them.",
    "provider_model": "counted",
    "base_url": "http://127.0.0.1:9/v1",
    "context_tokens": 100_000,
    "max_output_tokens": 500,
    "stop_stops_bill": True,
}
_PRICES: Final = {
    "prices": {
        "models/counted": {
            "input_nanos_per_million": INPUT_NANOS * 1_000_000,
            "output_nanos_per_million": OUTPUT_NANOS * 1_000_000,
        },
        "tools/calculator": {"call_nanos": CALL_NANOS},
    }
}


@dataclass(frozen=True)
class LedgerWorld:
    """A running mesh whose engine counts, and the users who pay in it."""

    mesh: RunningMesh
    folder: Path
    keys: Mapping[str, str]
    """API key by user."""
    limits_nanos: Mapping[str, int]
    """Of those users that have a budget of their own."""

    def made(self) -> dict[str, tuple[int, int]]:
        """Input and output tokens that the engine made, by the key of the call."""
        counts: dict[str, tuple[int, int]] = {}
        for file in (self.folder / "counts").iterdir():
            for line in file.read_text().splitlines():
                key, *begun = line.split(" ")
                read, written = counts.get(key, (0, 0))
                counts[key] = (read + int(begun[1]), written) if begun else (read, written + 1)
        return counts


@contextlib.asynccontextmanager
async def ledger_world(limits_nanos: Mapping[str, int], users: int) -> AsyncIterator[LedgerWorld]:
    """The mesh with two replicas of cost and inference, and users, some of them with limits."""
    with (
        scratch_folder("remit-ledger-") as folder,
        started_mesh(REPLICAS, environment=_environment(folder)) as mesh,
    ):
        names = sorted({*limits_nanos, *(f"payer-{n}" for n in range(users))})
        async with channel(mesh.address) as edge:
            keys = {user: await _a_key(mesh, edge, user) for user in names}
            for user, limit in limits_nanos.items():
                await _set_budget(mesh, edge, f"{mesh.org}/users/{user}", limit)
            await _set_budget(mesh, edge, mesh.org, _LIMIT_OF_ALL_NANOS)
        yield LedgerWorld(mesh, folder, keys, dict(limits_nanos))


def _environment(folder: Path) -> dict[str, str]:
    (folder / "counts").mkdir()
    models = folder / "models.yaml"
    models.write_text(yaml.safe_dump({"models": [_MODEL]}))
    prices = folder / "prices.yaml"
    prices.write_text(yaml.safe_dump(_PRICES))
    gates = {
        f"REMIT_{gate}_EFFECT_{name}": value
        for gate in ("INFERENCE", "TOOLS")
        for name, value in (("LEASE_S", str(LEASE_S)), ("SWEEP_S", "0.5"))
    }
    hook = str(Path(counting_hook.__file__).parent)
    return gates | {
        "PYTHONPATH": os.pathsep.join([hook, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHON_COUNTS_FOLDER": str(folder / "counts"),
        "REMIT_COST_PRICES_FILE": str(prices),
        # Most generations outgrow their first lease.
        "REMIT_INFERENCE_LEASE_TOKENS": str(LEASE_TOKENS),
        "REMIT_INFERENCE_MODELS_FILE": str(models),
    }


async def _a_key(mesh: RunningMesh, edge: grpc.aio.Channel, user: str) -> str:
    request = policy_admin_service_pb2.CreateApiKeyRequest(
        display_name=f"storm of {user}",
        user=f"{mesh.org}/users/{user}",
        roles=["member"],
        request_id=str(uuid.uuid4()),
    )
    admin = policy_admin_service_pb2_grpc.PolicyAdminServiceStub(edge)
    return (
        await admin.CreateApiKey(request, metadata=bearer(mesh.api_key), timeout=20 * PATIENCE)
    ).secret


async def _set_budget(
    mesh: RunningMesh, edge: grpc.aio.Channel, account: str, limit_nanos: int
) -> None:
    request = cost_report_service_pb2.SetBudgetRequest(
        account=account,
        period=reservation_pb2.PERIOD_MONTH,
        limit_nanos=limit_nanos,
        request_id=str(uuid.uuid4()),
    )
    reports = cost_report_service_pb2_grpc.CostReportServiceStub(edge)
    await reports.SetBudget(request, metadata=bearer(mesh.api_key), timeout=20 * PATIENCE)


# ------------------------------------------------------------------------------------- who pays


async def pay(world: LedgerWorld, *, processes: int, clients: int, operations: int) -> list[Told]:
    """Lets processes with so many clients in all do so many operations; what they were told."""
    orders = [
        Orders(
            address=world.mesh.address,
            keys=dict(world.keys),
            operations=operations // processes,
            clients=clients // processes,
            seed=number,
            file=str(world.folder / f"told-{number}.json"),
        )
        for number in range(processes)
    ]
    working = [await _payers(one) for one in orders]
    try:
        codes = await asyncio.gather(*(process.wait() for process in working))
    finally:
        for process in working:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert codes == [0] * processes
    return [Told(**json.loads(Path(one.file).read_text())) for one in orders]  # noqa: ASYNC240


async def _payers(orders: Orders) -> asyncio.subprocess.Process:
    root = Path(__file__).parents[2]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.ledger_payers", json.dumps(asdict(orders))),
        cwd=root,
    )


# ------------------------------------------------------------------------------------ who kills


@dataclass
class Killer:
    """Kills one part after another, each when the one before is back."""

    world: LedgerWorld
    chance: random.Random
    pause_s: float
    """The longest from one to the next."""
    killed: Counter[str] = field(default_factory=Counter)

    async def rage(self) -> None:
        """Every part once in random order, then whichever chance wills, until cancelled."""
        due = list(MORTAL)
        self.chance.shuffle(due)
        while True:
            await asyncio.sleep(self.chance.uniform(0, self.pause_s))
            part = due.pop() if due else self.chance.choice(MORTAL)
            pid = self.world.mesh.pid(part)
            if not pid:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.killed[part] += 1
            await eventually(lambda: self._is_back(part, pid), _UP_WITHIN_S)  # noqa: B023

    async def _is_back(self, part: str, dead: int) -> bool:
        """Whether it is not the one that died, and works."""
        mesh = self.world.mesh
        if mesh.pid(part) in {0, dead}:
            return False
        if part == "postgres":
            with contextlib.suppress(*AWAY):
                return await rows(mesh, "remit_cost", "SELECT true") == [(True,)]
            return False
        area, _, number = part.rpartition("-")
        replica = mesh.topology.replicas[area][int(number)]
        return not await not_ready(replica.host, replica.http_port)


# ---------------------------------------------------------------------------------- who watches

_OVER_LIMIT: Final = """
    SELECT b.account || ' has ' || b.pending_nanos + b.posted_nanos || ' of ' || g.limit_nanos
    FROM balances b JOIN budgets g USING (account, period)
    WHERE b.pending_nanos + b.posted_nanos > g.limit_nanos
"""
_UNEVEN: Final = """
    SELECT 'debits less credits: ' || sum(posted_nanos * sign) || ', ' || sum(pending_nanos * sign)
    FROM (
        SELECT b.*,
            CASE WHEN b.account = l.org OR b.account LIKE '%/overrun' THEN 1 ELSE -1 END AS sign
        FROM ledgers l JOIN balances b
            ON b.account = l.org OR b.account LIKE 'operator/' || l.org || '/%'
        WHERE b.period = 1
    ) AS sides
    HAVING sum(posted_nanos * sign) <> 0 OR sum(pending_nanos * sign) <> 0
"""


_JUST_CLOSED: Final = """
    SELECT 'claims/' || claim, attempt FROM effect_attempts
    WHERE closed_time > clock_timestamp() - interval '10 s'
"""
_HELD_OF: Final = """
    SELECT 'the effect of ' || claim || ' is closed and its hold is not'
    FROM reservations JOIN unnest($1::text[], $2::integer[]) AS k (claim, attempt)
        USING (claim, attempt)
    WHERE state = 1
"""


@dataclass
class Watcher:
    """Looks into the ledger again and again, whenever the database is there."""

    mesh: RunningMesh
    looks: int = 0
    held: int = 0
    """Looks at which money was held."""
    faults: list[str] = field(default_factory=list)

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            with contextlib.suppress(*AWAY):
                self.faults += await self.faults_now()
                held = "SELECT count(*) FROM reservations WHERE state = 1"
                self.held += (await rows(self.mesh, "remit_cost", held))[0][0] > 0
                self.looks += 1
            await asyncio.sleep(0.1)

    async def faults_now(self) -> list[str]:
        """What is wrong with the ledger at this moment."""
        found = [
            *await rows(self.mesh, "remit_cost", _OVER_LIMIT),
            *await rows(self.mesh, "remit_cost", _UNEVEN),
        ]
        for gate in EFFECT_DATABASES:
            closed = await rows(self.mesh, gate, _JUST_CLOSED)
            claims, attempts = [claim for claim, _ in closed], [attempt for _, attempt in closed]
            found += await rows(self.mesh, "remit_cost", _HELD_OF, claims, attempts)
        return [str(one) for (one,) in found]
