"""What must hold after a storm, whatever was killed in it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg
import grpc

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from remit.api.audit.v1 import event_pb2
from remit.cost.checks import ledger_faults
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.integration.clients import bearer, channel, events_of, result_of
from tests.integration.conftest import RunningMesh
from tests.integration.petitions import fate_of
from tests.integration.storming import (
    Crowd,
    StormWorld,
    expected_result,
    path_of,
    recipient_of,
)
from tests.waiting import PATIENCE, eventually

EFFECT_DATABASES: Final = ("remit_inference", "remit_tools")
AWAY: Final = (
    OSError,
    # The driver met the end of a connection in a state that it did not expect.
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)
"""How it shows that the database died."""
_ATTEMPTS: Final = "SELECT count(*) FROM effect_attempts"
_OPEN_ATTEMPTS: Final = "SELECT count(*) FROM effect_attempts WHERE closed_time IS NULL"
_OPEN_HOLDS: Final = "SELECT count(*) FROM reservations WHERE state = 1"
_OVERSPENT: Final = """
    SELECT count(*) FROM balances b JOIN budgets g USING (account, period)
    WHERE b.pending_nanos + b.posted_nanos > g.limit_nanos
"""
_DOUBLED: Final = """
    SELECT count(*) FROM (
        SELECT claim FROM effect_attempts WHERE outcome = 'SUCCEEDED'
        GROUP BY claim HAVING count(*) > 1
    ) AS twice
"""
_UNDELIVERED: Final = "SELECT count(*) FROM webhook_deliveries WHERE state <> 3"
_WITHOUT_PERMITS: Final = """
    SELECT count(*) FROM effect_attempts WHERE outcome <> 'REFUSED'
    AND (decision_id IS NULL OR reservation IS NULL OR intent_leaf IS NULL)
"""


@dataclass(frozen=True)
class Reckoning:
    """The numbers of a storm that were worth a look; everything else was asserted."""

    runs: int
    in_doubt: int
    sub_runs: int
    mails: int
    told: int
    """Ends of runs that the receiver of webhooks heard of."""
    told_again: int
    attempts: int


async def reckon(world: StormWorld, crowd: Crowd) -> Reckoning:
    """Asserts everything that holds after a storm, but what people were asked and decided."""
    mesh = world.mesh
    for number, events in crowd.histories.items():
        _is_well_formed(events)
        if fate_of(number) is None:
            _as_without_crashes(world, number, events)
    in_doubt = [n for n, events in crowd.histories.items() if is_in_doubt(result_of(events))]
    mails = world.mails()
    assert [to for to, count in mails.items() if count > 1] == []
    await _journals_equal_what_was_received(mesh, list(crowd.histories.values()))
    sub_runs = await _one_child_each(mesh, crowd)
    told = await _ends_are_told(world, crowd)
    await eventually(lambda: nothing_is_open(mesh), 90)
    for database in EFFECT_DATABASES:
        assert await value(mesh, database, _DOUBLED) == 0
        assert await value(mesh, database, _WITHOUT_PERMITS) == 0
    await _books_agree(mesh)
    await _claims_agree(mesh)
    await _log_is_whole(mesh, crowd)
    counts = [
        await value(mesh, d, "SELECT count(*) FROM effect_attempts") for d in EFFECT_DATABASES
    ]
    return Reckoning(
        runs=len(crowd.histories),
        in_doubt=len(in_doubt),
        sub_runs=sub_runs,
        mails=mails.total(),
        told=len(told),
        told_again=sum(told.values()) - len(told),
        attempts=sum(counts),
    )


def _is_well_formed(events: list[run_pb2.RunEvent]) -> None:
    """A journal has no gap, and its run cost no more than it might."""
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    run = result_of(events)
    assert run.cost_nanos <= run.limits.max_cost_nanos


def _as_without_crashes(world: StormWorld, number: int, events: list[run_pb2.RunEvent]) -> None:
    """A run ends as it would have without crashes, or says that a mail is in doubt."""
    run = result_of(events)
    mails = world.mails()[recipient_of(number)]
    if is_in_doubt(run):
        assert mails <= 1
        return
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED, (number, run)
    assert run.result == expected_result(number), (number, run)
    assert mails == 1, (number, run)
    assert world.written[path_of(number)] == f"Storm {number}"


def is_in_doubt(run: run_pb2.Run) -> bool:
    """Whether the run, or the one that it handed its task to, says so."""
    if run.state != run_pb2.RUN_STATE_FAILED:
        return "EFFECT_IN_DOUBT" in run.result
    return RemitError.from_status(run.error).reason_name == "EFFECT_IN_DOUBT"


async def _journals_equal_what_was_received(
    mesh: RunningMesh, histories: Sequence[list[run_pb2.RunEvent]]
) -> None:
    """No event was lost, doubled or changed on its way."""
    async with channel(mesh.address) as edge:
        agents = agent_service_pb2_grpc.AgentServiceStub(edge)
        for events in histories:
            assert await eventually(lambda e=events: _journal(mesh, agents, e[0].run), 30) == events  # type: ignore[misc]


async def _journal(
    mesh: RunningMesh, agents: agent_service_pb2_grpc.AgentServiceStub, run: str
) -> list[run_pb2.RunEvent]:
    """The journal as it is stored; nothing while a part on the way is away."""
    stream = agents.WatchRun(
        agent_service_pb2.WatchRunRequest(name=run),
        metadata=bearer(mesh.api_key),
        timeout=20 * PATIENCE,
    )
    try:
        return [response.event async for response in stream if response.HasField("event")]
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return []


async def _one_child_each(mesh: RunningMesh, crowd: Crowd) -> int:
    """Every sub-run that a journal names is there, and no other."""
    named = {
        event.sub_run_started.run
        for events in crowd.histories.values()
        for event in events
        if event.HasField("sub_run_started")
    }
    starts = sum(
        event.HasField("sub_run_started") for events in crowd.histories.values() for event in events
    )
    assert starts == len(named)
    children = "SELECT count(*) FROM runs WHERE parent IS NOT NULL"
    assert await value(mesh, "remit_agent", children) == len(named)
    return len(named)


async def _ends_are_told(world: StormWorld, crowd: Crowd) -> Counter[str]:
    """Every end that was to be told was, each under one id, and no other. How often by id."""
    ends = [result_of(events) for events in crowd.histories.values()]
    wanted = {run.webhook.id for run in ends if run.webhook.url}
    await eventually(lambda: _is_zero(world.mesh, "remit_agent", _UNDELIVERED), 90)
    received = world.receiver.received
    told = Counter(message.identifier for message in received)
    assert set(told) == wanted
    # What was told again says the same: the receiver may drop it by its id.
    assert len({(message.identifier, message.body) for message in received}) == len(told)
    return told


async def _is_zero(mesh: RunningMesh, database: str, query: str) -> bool:
    try:
        return await value(mesh, database, query) == 0
    except AWAY:
        return False


async def nothing_is_open(mesh: RunningMesh) -> bool:
    """No attempt is open, and no money is held."""
    try:
        for database in EFFECT_DATABASES:
            if await value(mesh, database, _OPEN_ATTEMPTS):
                return False
        return await value(mesh, "remit_cost", _OPEN_HOLDS) == 0
    except AWAY:
        return False


async def _books_agree(mesh: RunningMesh) -> None:
    """Every balance follows from the transfers, and none is above its limit."""
    dsn = f"postgresql://postgres@/remit_cost?host={postgres_socket(mesh)}"
    async with Database.open(dsn, pool_size=1) as database, database.acquire() as connection:
        assert await ledger_faults(connection, 10) == []
    assert await value(mesh, "remit_cost", _OVERSPENT) == 0


async def _claims_agree(mesh: RunningMesh) -> None:
    """The ledger says of every effect what its claim says."""
    checked = await asyncio.to_thread(mesh.run, "cost", "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


async def _log_is_whole(mesh: RunningMesh, crowd: Crowd) -> None:
    """The log holds every effect that a run's journal names."""
    for events in crowd.histories.values():
        claims = {e.model_call_ended.claim or e.tool_call_ended.claim for e in events} - {""}

        async def logged(events: list[run_pb2.RunEvent] = events) -> set[str]:
            found = await events_of(mesh.address, mesh.api_key, events[0].run)
            return {e.claim for e in found if e.kind == event_pb2.EVENT_KIND_INTENT}

        assert claims <= await eventually(logged, 30)


async def take_checkpoint(mesh: RunningMesh, file: Path) -> None:
    """Keeps the log's signed size outside the mesh."""
    taken = await asyncio.to_thread(mesh.run, "audit", "checkpoint")
    assert taken.returncode == 0, taken.stderr
    await asyncio.to_thread(file.write_text, taken.stdout)


async def verify_log(mesh: RunningMesh, folder: Path, checkpoint: Path) -> None:
    """The log verifies offline, and goes on where the checkpoint ends; so do its tiles, soon."""
    exported = await asyncio.to_thread(mesh.run, "audit", "export", str(folder / "log"))
    assert exported.returncode == 0, exported.stderr
    kept = ("--key", str(mesh.state / "audit.pub"), "--checkpoint", str(checkpoint))
    verified = await asyncio.to_thread(mesh.run, "audit", "verify", str(folder / "log"), *kept)
    assert verified.returncode == 0, verified.stdout + verified.stderr

    async def mirrored() -> bool:
        tiles = str(mesh.state / "tiles")
        return (await asyncio.to_thread(mesh.run, "audit", "verify", tiles, *kept)).returncode == 0

    await eventually(mirrored, 30)


def postgres_socket(mesh: RunningMesh) -> str:
    """The folder of the database's socket."""
    return str(json.loads((mesh.state / "mesh.json").read_text())["postgres_socket"])


async def rows(mesh: RunningMesh, database: str, query: str, *arguments: object) -> list[Any]:
    """What a query finds, asked by the database's administrator, each row a tuple."""
    connection = await asyncpg.connect(
        host=postgres_socket(mesh), user="postgres", database=database
    )
    try:
        return [tuple(row) for row in await connection.fetch(query, *arguments)]
    finally:
        await connection.close()


async def value(mesh: RunningMesh, database: str, query: str) -> int:
    """What a query counts."""
    ((found,),) = await rows(mesh, database, query)
    return int(found)


async def set_budget(mesh: RunningMesh) -> None:
    """Gives the org a limit, which no balance may exceed."""
    given = await asyncio.to_thread(mesh.run, "budgets", "set", mesh.org, "5")
    assert given.returncode == 0, given.stderr
