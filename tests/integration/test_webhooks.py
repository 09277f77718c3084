"""The end of a run reaches its receiver through the whole mesh, and kill -9 doubles nothing known.

The outside world is the receiver, an HTTP server that counts what it was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest

from remit import webhooks
from remit.api.audit.v1 import event_pb2
from remit.cli import exit_codes
from tests.integration.clients import events_of
from tests.integration.conftest import RunningMesh, started_mesh
from tests.tools.receiver import Receiver, answer, receiving
from tests.waiting import eventually

SETTINGS = {
    "REMIT_AGENT_WEBHOOK_NETWORKS": "127.0.0.0/8,::1/128",
    "REMIT_TOOLS_WEBHOOK_NETWORKS": "127.0.0.0/8,::1/128",
    "REMIT_AGENT_WEBHOOK_LEASE_S": "8",
    "REMIT_AGENT_WEBHOOK_POLL_S": "0.1",
    "REMIT_AGENT_WEBHOOK_RETRY_BASE_S": "0.2",
    "REMIT_TOOLS_EFFECT_LEASE_S": "5",
    "REMIT_TOOLS_WEBHOOK_TIMEOUT_S": "30",
}


@pytest.fixture(scope="module")
def mesh_that_tells() -> Iterator[RunningMesh]:
    """A mesh that may post to loopback, with leases that a test can outwait."""
    with started_mesh({"agent": 2}, environment=SETTINGS) as running:
        yield running


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


class AwayError(Exception):
    """No replica answers: killed ones have not come back, or the gateway has not seen it yet."""


async def remit(mesh: RunningMesh, *arguments: str) -> str:
    """What a command prints; the receiver serves meanwhile. Raises AwayError."""
    done = await asyncio.to_thread(mesh.run, *arguments)
    if done.returncode == exit_codes.UNHEALTHY:
        raise AwayError(done.stderr or done.stdout)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def started(mesh: RunningMesh, receiver: Receiver, task: str = "What is 17 * 23?") -> str:
    """The name of a run whose end is told."""
    return (await remit(mesh, "run", "--detach", "--webhook", receiver.url, task)).strip()


async def webhook_of(mesh: RunningMesh, run: str) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(await remit(mesh, "runs", "show", "--json", run))
    return dict(shown["run"]["webhook"])


async def delivered(mesh: RunningMesh, run: str) -> dict[str, Any]:
    """The run's webhook, when it is delivered or given up."""

    async def look() -> dict[str, Any] | None:
        try:
            webhook = await webhook_of(mesh, run)
        except AwayError:
            return None
        return webhook if webhook["state"].endswith(("DELIVERED", "FAILED")) else None

    found: dict[str, Any] | None = await eventually(look, 90)
    assert found is not None
    assert found["state"] == "WEBHOOK_STATE_DELIVERED", found
    return found


@pytest.mark.timeout(240)
async def test_the_receiver_verifies_and_the_record_is_complete(
    mesh_that_tells: RunningMesh, receiver: Receiver
) -> None:
    mesh = mesh_that_tells
    receiver.answers = [answer(503)]
    run = await started(mesh, receiver)
    webhook = await delivered(mesh, run)
    assert webhook["tries"] == 2
    keys = (await remit(mesh, "keys", "webhooks")).split()
    first, second = receiver.received
    assert first.is_signed_by(keys[0])
    assert second.is_signed_by(keys[0])
    assert first.body == second.body
    assert first.identifier == second.identifier == webhook["id"] == f"run_ended_{run[5:]}"
    told = json.loads(second.body)
    assert told["type"] == "run.ended"
    assert told["data"]["name"] == run
    assert told["data"]["state"] == "RUN_STATE_SUCCEEDED"
    assert "391" not in second.body.decode()  # the answer stays inside
    assert "after 2 tries" in await remit(mesh, "runs", "show", run)

    async def recorded() -> bool:
        """An intent and an outcome of each try."""
        events = await events_of(mesh.address, mesh.api_key, run)
        kinds = [event.kind for event in events if event.resource == webhooks.TOOL]
        intent, outcome = event_pb2.EVENT_KIND_INTENT, event_pb2.EVENT_KIND_OUTCOME
        return kinds.count(intent) == kinds.count(outcome) == 2

    await eventually(recorded, 30)


@pytest.mark.timeout(240)
async def test_a_sender_killed_before_its_record_posts_nothing_again(
    mesh_that_tells: RunningMesh, receiver: Receiver
) -> None:
    mesh = mesh_that_tells
    receiver.hold = asyncio.Event()
    run = await started(mesh, receiver)
    await eventually(lambda: receiver.received, 30)
    async with record_blocked(mesh, run) as blocked:
        receiver.hold.set()
        await eventually(blocked, 30)
        before = [mesh.restarts(part) for part in ("agent-0", "agent-1")]
        mesh.kill("agent-0")
        mesh.kill("agent-1")
        # The server finds out about a client that is gone when its statement's time is up.
        await eventually(lambda: is_over(blocked), 30)
    await eventually(
        lambda: all(
            mesh.restarts(part) > count
            for part, count in zip(("agent-0", "agent-1"), before, strict=True)
        ),
        60,
    )
    webhook = await delivered(mesh, run)
    assert webhook["tries"] == 1
    assert len(receiver.received) == 1


@pytest.mark.timeout(240)
async def test_a_post_cut_off_by_a_kill_is_made_again_under_the_same_id(
    mesh_that_tells: RunningMesh, receiver: Receiver
) -> None:
    mesh = mesh_that_tells
    receiver.hold = asyncio.Event()
    run = await started(mesh, receiver)
    await eventually(lambda: receiver.received, 30)
    mesh.kill("tools-0")
    receiver.hold.set()
    webhook = await delivered(mesh, run)
    assert webhook["tries"] == 1
    assert [each.identifier for each in receiver.received] == [webhook["id"]] * 2


@pytest.mark.timeout(120)
async def test_a_wrong_address_is_an_error_of_the_request(mesh_that_tells: RunningMesh) -> None:
    done = await asyncio.to_thread(
        mesh_that_tells.run, "run", "--detach", "--webhook", "http://10.0.0.1/", "Say hello."
    )
    assert done.returncode != 0
    assert "webhook: leads to an address that is private" in done.stderr


@contextlib.asynccontextmanager
async def record_blocked(mesh: RunningMesh, run: str) -> AsyncIterator[Any]:
    """Holds the row of a delivery; yields what tells whether somebody waits to record it."""
    state = json.loads((mesh.state / "mesh.json").read_text())
    address: dict[str, Any] = {"host": state["postgres_socket"], "user": "postgres"}
    connection = await asyncpg.connect(**address, database="remit_agent")
    watching = await asyncpg.connect(**address, database="remit_agent")

    async def blocked() -> bool:
        return bool(
            await watching.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND query LIKE '%UPDATE webhook_deliveries SET%state = $3%'"
            )
        )

    try:
        async with connection.transaction():
            await connection.execute(
                "SELECT 1 FROM webhook_deliveries WHERE run = $1 FOR UPDATE", run[5:]
            )
            yield blocked
    finally:
        await connection.close()
        await watching.close()


async def is_over(condition: Any) -> bool:
    return not await condition()
