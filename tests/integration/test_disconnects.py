"""Streams never lie: joined over any number of breaks, what was received is the journal.

Followers start runs and watch those of others over lines that are cut in the middle of a frame;
they leave streams, cancel reads and change their connection at random; in the storm the gateway and
the agent's replicas are killed and stopped besides. At the end each follower's events are compared
with the journal in the database. `make test-storm` runs the storm; REMIT_STORM_SEED repeats one.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Final

import pytest

from remit.api.agent.v1 import run_pb2
from remit.client import Client, NewRun, Patience, RemitError, RunStream
from tests.integration.conftest import RunningMesh, started_mesh
from tests.integration.network import Weather, bad_line
from tests.waiting import eventually

BREAKS: Final = 1_000
KILLS: Final = 18
PARTS: Final = ("envoy", "agent-0", "agent-1")
STALLS: Final = 3
PARTIES: Final = 2
"""Runs that are followed at once."""
WATCHERS: Final = 3
"""Who follows each run, besides who starts it."""
SUMS: Final = 32
"""Tool calls of a run: about 140 events."""
STORM_LIMIT_S: Final = 700.0
SHORT_BREAKS: Final = 60
SHORT_LIMIT_S: Final = 90.0
SHORT_LEASES: Final = {
    "REMIT_AGENT_LEASE_S": "2",
    "REMIT_INFERENCE_EFFECT_LEASE_S": "2",
    "REMIT_TOOLS_EFFECT_LEASE_S": "2",
}
PATIENCE: Final = Patience(unanswered_s=120.0, first_pause_s=0.02, longest_pause_s=1.0)


@dataclass
class Storm:
    """What breaks, how often it did, and what was received all the same."""

    mesh: RunningMesh
    chance: random.Random
    weather: Weather
    breaks: int
    """After so many it is over."""
    kills: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    """Breaks by their kind, each counted once after the event that it came behind."""
    histories: list[list[run_pb2.RunEvent]] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return self.told.total() >= self.breaks


class Follower:
    """Somebody with a bad line who follows runs, and is not steady either."""

    def __init__(self, storm: Storm, address: str) -> None:
        self._storm = storm
        self._address = address
        self._client: Client | None = None
        self._broke_after = -1

    async def follow(self, what: NewRun | str) -> list[run_pb2.RunEvent]:
        """Every event of a run, to be joined over whatever happens."""
        events: list[run_pb2.RunEvent] = []
        self._broke_after = -1
        while not (events and events[-1].HasField("ended")):
            async with self._opened(what, len(events)) as stream:
                await self._read(stream, events)
        return events

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _opened(self, what: NewRun | str, after: int) -> RunStream:
        if self._client is None:
            self._client = Client(self._address, self._storm.mesh.api_key, patience=PATIENCE)
        runs = self._client.runs

        def broken(cause: RemitError) -> None:
            self._broken(stream, cause)

        stream = (
            runs.stream(what, after_sequence=after, on_break=broken)
            if isinstance(what, NewRun)
            else runs.watch(what, after_sequence=after, on_break=broken)
        )
        return stream

    async def _read(self, stream: RunStream, events: list[run_pb2.RunEvent]) -> None:
        """Reads until the end of the run, or until it leaves the stream."""
        chance = self._storm.chance
        while True:
            whim = chance.random()
            limit_s = chance.uniform(0.0, 0.05) if whim < 0.02 else None
            try:
                async with asyncio.timeout(limit_s):
                    events.append(await anext(stream))
            except StopAsyncIteration:
                return
            except TimeoutError:
                self._storm.told["read cancelled"] += 1
            if whim > 0.98:
                self._storm.told["stream left"] += 1
                if whim > 0.99:
                    await self.close()
                return

    def _broken(self, stream: RunStream, cause: RemitError) -> None:
        # What fails again before anything came is the same break.
        if stream.sequence > self._broke_after:
            self._broke_after = stream.sequence
            self._storm.told["stream broken"] += 1


async def a_party(storm: Storm, followers: list[Follower], number: int) -> None:
    """One run, started by one and watched by the others, each from its first event."""
    starter, *watchers = followers
    task = " ".join(f"What is {number * 1_000 + n} * 17?" for n in range(SUMS))
    new = NewRun(task)
    starting = asyncio.create_task(starter.follow(new))
    try:
        run = await _started(storm.mesh, new)
        watched = await asyncio.gather(*(watcher.follow(run) for watcher in watchers))
        storm.histories += [await starting, *watched]
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)


async def _started(mesh: RunningMesh, new: NewRun) -> str:
    """The name of a run; the same request gets the same run, whoever is first."""
    async with Client(mesh.address, mesh.api_key, patience=PATIENCE) as client:
        return (await client.runs.create(new)).name


async def parties(storm: Storm, followers: list[Follower], first: int) -> None:
    """One run after another until the storm is over."""
    number = first
    while not storm.is_over:
        await a_party(storm, followers, number)
        number += PARTIES


@contextlib.asynccontextmanager
async def some_followers(storm: Storm) -> AsyncIterator[list[Follower]]:
    """Followers, each with a line of its own: clients share connections to one address."""
    async with contextlib.AsyncExitStack() as stack:
        made: list[Follower] = []
        for _ in range(1 + WATCHERS):
            line = await stack.enter_async_context(bad_line(storm.mesh.address, storm.weather))
            follower = Follower(storm, line.address)
            stack.push_async_callback(follower.close)
            made.append(follower)
        yield made


async def rage(storm: Storm) -> None:
    """Kills and stops the gateway and replicas, spread over the storm's breaks."""
    for number in range(KILLS):
        await _so_many_breaks(storm, (number + 1) * storm.breaks // (KILLS + 1))
        part = PARTS[number % len(PARTS)]
        await eventually(functools.partial(_runs, storm.mesh, part), 60)
        stops = part != "envoy" and storm.chance.random() < 0.3
        how = signal.SIGTERM if stops else signal.SIGKILL
        os.kill(storm.mesh.pid(part), how)
        storm.kills[f"{part} {how.name}"] += 1


async def _so_many_breaks(storm: Storm, due: int) -> None:
    await eventually(lambda: storm.told.total() >= due, STORM_LIMIT_S)


def _runs(mesh: RunningMesh, part: str) -> bool:
    return mesh.pid(part) > 0


async def weathered(storm: Storm, *, with_kills: bool) -> None:
    """Lets the storm pass, then compares what was received with the journals."""
    async with contextlib.AsyncExitStack() as stack:
        groups = [await stack.enter_async_context(some_followers(storm)) for _ in range(PARTIES)]
        async with asyncio.TaskGroup() as work:
            for first, followers in enumerate(groups, start=1):
                work.create_task(parties(storm, followers, first))
            if with_kills:
                work.create_task(rage(storm))
    await received_what_is_recorded(storm)


async def received_what_is_recorded(storm: Storm) -> None:
    """Each follower's events are the journal as it is read anew, and each run has its answer.

    Who watches a run that has ended is given what the database holds of it.
    """
    journals: dict[str, list[run_pb2.RunEvent]] = {}
    async with Client(storm.mesh.address, storm.mesh.api_key, patience=PATIENCE) as client:
        for events in storm.histories:
            run = events[0].run
            if run not in journals:
                journals[run] = [event async for event in client.runs.watch(run)]
            assert events == journals[run]
    for journal in journals.values():
        assert [event.sequence for event in journal] == list(range(1, len(journal) + 1))
        ended = journal[-1].ended.run
        assert ended.state == run_pb2.RUN_STATE_SUCCEEDED, ended.error


@pytest.fixture(scope="module")
def mortal() -> Iterator[RunningMesh]:
    """A mesh for the storm alone, with a second replica that takes what the first leaves."""
    with started_mesh({"agent": 2}, environment=SHORT_LEASES) as running:
        yield running


@pytest.mark.storm
@pytest.mark.timeout(900)
async def test_a_thousand_disconnects_lose_and_double_nothing(mortal: RunningMesh) -> None:
    storm = begun(mortal, BREAKS, stalls=STALLS)
    began = time.monotonic()
    async with asyncio.timeout(STORM_LIMIT_S):
        await weathered(storm, with_kills=True)
    tell(storm, time.monotonic() - began)
    assert storm.told.total() >= BREAKS
    assert storm.kills.total() == KILLS
    assert storm.weather.stalls == STALLS


async def test_disconnects_of_clients_lose_and_double_nothing(mesh: RunningMesh) -> None:
    storm = begun(mesh, SHORT_BREAKS, stalls=0)
    began = time.monotonic()
    async with asyncio.timeout(SHORT_LIMIT_S):
        await weathered(storm, with_kills=False)
    tell(storm, time.monotonic() - began)
    assert storm.told["stream broken"] > 0
    assert storm.weather.cuts > 0


def begun(mesh: RunningMesh, breaks: int, *, stalls: int) -> Storm:
    """A storm of a seed that can be repeated."""
    seed = int(os.environ.get("REMIT_STORM_SEED", random.randrange(2**32)))  # noqa: S311
    print(f"REMIT_STORM_SEED={seed}")  # noqa: T201 - shown when it fails
    chance = random.Random(seed)  # noqa: S311 - not a secret
    return Storm(mesh, chance, Weather(chance, stalls_left=stalls), breaks)


def tell(storm: Storm, took_s: float) -> None:
    """Says what happened; shown with -s, and when something failed."""
    events = sum(map(len, storm.histories))
    print(  # noqa: T201 - as it says
        f"{storm.told.total()} breaks in {took_s:.0f} s: {dict(storm.told)};"
        f" {storm.weather.cuts} connections cut, {storm.weather.stalls} silent;"
        f" {dict(storm.kills)};"
        f" {len(storm.histories)} histories of {events} events, each its journal"
    )
