"""Runs that go on while what they need is taken away, and streams that are open then.

What a run still does is seen by its model, a server on loopback which asks for one tool call after
another: each question shows whether the call before it took place or was refused. Databases tell
beside that when each effect was begun.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import asyncpg
import grpc
from starlette.responses import Response

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from tests.bench.revoking import AFTER_S, GRANTED, ORG, TIMEOUT_S, TOOL, Found, Seen, World, found
from tests.bench.running import MeasuringError, Mesh
from tests.integration.clients import bearer
from tests.integration.walking import Walking

PACE_S: Final = 0.15
"""A run may take 100 steps, which must last until after the bound."""
STARTED_AFTER: Final = 3
"""Questions to its model after which a run is under way."""
LIMIT_S: Final = 60.0
WATCHER: Final = f"{ORG}/users/watcher"
_LOOK_S: Final = 0.02
_REFUSED: Final = "Error:"
"""How the text begins of what a model is told instead of a result."""
_ENDED: Final = frozenset(
    {run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED}
)


@dataclass
class SlowWalking(Walking):
    """A model that takes its time, and remembers when it was asked and what it was told."""

    seen: defaultdict[str, list[Seen]] = field(default_factory=lambda: defaultdict(list))
    """Of each task: when a call of its tool was told, and whether it had taken place."""
    asked_at: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _answered_at: dict[str, float] = field(default_factory=dict)

    async def answer(self, body: dict[str, Any]) -> Response:
        """One more call of the tool, a while later."""
        messages = body["messages"]
        now, task = time.time(), next(m["content"] for m in messages if m["role"] == "user")
        self.asked_at[task].append(now)
        if messages[-1]["role"] == "tool":
            worked = not messages[-1]["content"].startswith(_REFUSED)
            self.seen[task].append(Seen(self._answered_at[task], now, worked))
        await asyncio.sleep(PACE_S)
        response = await super().answer(body)
        self._answered_at[task] = time.time()
        return response


@dataclass
class Walkers:
    """Runs, their model, and the databases that tell what they did."""

    world: World
    model: SlowWalking
    watched: str = ""
    """A run that is paused, which streams follow."""

    async def open_a_watched_run(self) -> None:
        """Begins the run that streams follow: nothing happens in it."""
        _, secret = await self.world.key(WATCHER)
        self.watched = await self.start(secret, "watched")
        agents = agent_service_pb2_grpc.AgentServiceStub(self.world.edge)
        request = agent_service_pb2.PauseRunRequest(name=self.watched, request_id=str(uuid.uuid4()))
        await agents.PauseRun(request, metadata=bearer(secret), timeout=TIMEOUT_S)

    async def start(self, secret: str, task: str) -> str:
        """A run that is under way; its name."""
        agents = agent_service_pb2_grpc.AgentServiceStub(self.world.edge)
        request = agent_service_pb2.CreateRunRequest(
            agent="agents/walker", task=task, request_id=str(uuid.uuid4())
        )
        metadata = bearer(secret)
        created = await agents.CreateRun(request, metadata=metadata, timeout=TIMEOUT_S)
        await _until(lambda: self.model.asked[task] >= STARTED_AFTER, f"{task} did not start")
        return created.run.name

    async def cancel(self, secret: str, run: str) -> None:
        """Ends a run of whoever is still let in."""
        agents = agent_service_pb2_grpc.AgentServiceStub(self.world.edge)
        request = agent_service_pb2.CancelRunRequest(name=run, request_id=str(uuid.uuid4()))
        metadata = bearer(secret)
        await agents.CancelRun(request, metadata=metadata, timeout=TIMEOUT_S)

    async def ended_at(self, run: str) -> float | None:
        """When a run ended that cannot be asked for by its owner; None if it goes on."""
        query = (
            "SELECT state, (SELECT max(event_time) FROM run_events e WHERE e.run = r.run) AS last"
            " FROM runs r WHERE run = $1"
        )
        connection = await _connected(self.world.mesh, "agent")
        try:
            give_up = time.monotonic() + LIMIT_S
            while time.monotonic() < give_up:
                row = await connection.fetchrow(query, uuid.UUID(run.removeprefix("runs/")))
                assert row is not None
                if row["state"] in _ENDED:
                    return float(row["last"].timestamp())
                await asyncio.sleep(_LOOK_S)
        finally:
            await connection.close()
        return None

    async def late(self, run: str, limit: float, areas: tuple[str, ...]) -> int:
        """Effects that began after `limit`, by what claims tell."""
        query = (
            "SELECT count(*) FROM effect_attempts WHERE run = $1"
            " AND state NOT IN ('CLAIMED', 'REFUSED') AND create_time > to_timestamp($2)"
        )
        count = 0
        for area in areas:
            connection = await _connected(self.world.mesh, area)
            try:
                count += await connection.fetchval(query, run, limit)
            finally:
                await connection.close()
        return count

    async def postgres_version(self) -> str:
        """What the server tells."""
        connection = await _connected(self.world.mesh, "agent")
        try:
            return str(await connection.fetchval("SHOW server_version"))
        finally:
            await connection.close()


async def run_of_a_disabled_user(
    walkers: Walkers, task: str, before_s: float, bound_s: float
) -> Found:
    """How long it performs effects, and when it ends: that is its refusal."""
    del before_s  # nothing is remembered that could be older or younger
    user = f"{ORG}/users/{task}"
    _, secret = await walkers.world.key(user)
    run = await walkers.start(secret, task)
    await walkers.world.disable(user)
    disabled = time.time()
    ended = await walkers.ended_at(run)
    # Each question to the model is an effect. What would come after the end counts, too.
    seen = [Seen(each, each, worked=True) for each in walkers.model.asked_at[task]]
    last = Seen.now(worked=True)
    if ended is not None:
        last = Seen(ended, max(ended, seen[-1].answered), worked=False)
    limit = disabled + bound_s
    late = await walkers.late(run, limit, ("tools", "inference"))
    return _with(found([*seen, last], disabled, bound_s), late)


async def run_without_its_grant(
    walkers: Walkers, task: str, before_s: float, bound_s: float
) -> Found:
    """How long it calls a tool that was granted."""
    del before_s
    user = f"{ORG}/users/{task}"
    grant = await walkers.world.grant(user)
    _, secret = await walkers.world.key(user, GRANTED)
    return await _tool_calls(
        walkers, secret, task, lambda: walkers.world.revoke_grant(grant), bound_s
    )


async def run_under_a_new_policy(
    walkers: Walkers, task: str, before_s: float, bound_s: float
) -> Found:
    """How long it calls a tool that is forbidden by then."""
    del before_s
    user = f"{ORG}/users/{task}"
    _, secret = await walkers.world.key(user)

    async def forbid() -> None:
        await walkers.world.forbid(user, "tools.call", f'resource == Tool::"{TOOL}"')

    return await _tool_calls(walkers, secret, task, forbid, bound_s)


async def _tool_calls(
    walkers: Walkers,
    secret: str,
    task: str,
    take_away: Callable[[], Awaitable[None]],
    bound_s: float,
) -> Found:
    """What the run's model is told, until well after the bound."""
    run = await walkers.start(secret, task)
    await take_away()
    revoked = time.time()
    limit = revoked + bound_s
    asked = walkers.model.asked_at[task]
    await _until(lambda: asked[-1] > limit + AFTER_S, f"{task} did not go on until the bound")
    late = await walkers.late(run, limit, ("tools",))
    await walkers.cancel(secret, run)
    return _with(found(walkers.model.seen[task], revoked, bound_s), late)


async def open_stream(walkers: Walkers, task: str, before_s: float, bound_s: float) -> Found:
    """How long a watch of a run that waits goes on after its API key was revoked."""
    del task  # all watch one run
    name, secret = await walkers.world.key(WATCHER)
    seen: list[Seen] = []
    following = asyncio.create_task(_follow(walkers.world, secret, walkers.watched, seen))
    try:
        await asyncio.wait({following}, timeout=before_s)
        await walkers.world.revoke_key(name)
        revoked = time.time()
        _, still_open = await asyncio.wait({following}, timeout=bound_s + AFTER_S)
        seen += [Seen.now(worked=True) for _ in still_open]
    finally:
        following.cancel()
        ended = await asyncio.gather(following, return_exceptions=True)
    if isinstance(ended[0], MeasuringError):
        raise ended[0]
    return found(seen, revoked, bound_s)


async def _follow(world: World, secret: str, run: str, seen: list[Seen]) -> None:
    """Each message of the stream, and its end. Raises MeasuringError if it is no refusal."""
    agents = agent_service_pb2_grpc.AgentServiceStub(world.edge)
    request = agent_service_pb2.WatchRunRequest(name=run)
    metadata = bearer(secret)
    try:
        async for _ in agents.WatchRun(request, metadata=metadata):
            seen += [Seen.now(worked=True)]  # one by one: what came before a break is kept
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
            raise MeasuringError(f"the stream broke: {error.code()}") from error
        seen.append(Seen.now(worked=False))
        return
    raise MeasuringError("the stream ended as if the run had")


def _with(other: Found, late: int) -> Found:
    """The same with what the databases know."""
    return replace(other, late=max(other.late, late))


async def _until(condition: Callable[[], bool], otherwise: str) -> None:
    give_up = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > give_up:
            raise MeasuringError(otherwise)
        await asyncio.sleep(_LOOK_S)


async def _connected(mesh: Mesh, area: str) -> asyncpg.Connection[asyncpg.Record]:
    socket = mesh.facts()["postgres_socket"]
    return await asyncpg.connect(host=socket, user="postgres", database=f"remit_{area}")
