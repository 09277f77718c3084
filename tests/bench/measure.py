"""Everything that is measured, and in which order: kinds take turns within each round.

With two meshes each kind is measured on one and then on the other before the next kind comes, so
that both meet the same weather.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, TypeVar

import asyncpg
import grpc
import uvloop

from tests.bench import calls, latency, machine, memory, native, runs, startup, streams
from tests.bench.counters import read
from tests.bench.figures import Figures, Result
from tests.bench.running import MeasuringError, Mesh, mesh
from tests.bench.trees import Tree

WARM_UP_S: Final = 4.0
ATTEMPTS: Final = 3
PAUSE_S: Final = 5.0
"""Before what failed is measured again."""

T = TypeVar("T")
Kind = Callable[[Mesh], Awaitable[Mapping[str, float]]]


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    rounds: int = 7
    concurrencies: tuple[int, ...] = (1, 16, 32, 128)
    load_s: float = 6.0
    calls: int = 300
    calls_s: float = 1.5
    streams_s: float = 5.0
    watchers: int = 64
    idle_s: float = 5.0
    growth_runs: int = 4000
    starts: int = 5
    """Of `remit up`, and of each service alone."""


QUICK: Final = Effort(
    rounds=2,
    concurrencies=(1, 16),
    load_s=2.0,
    calls=50,
    calls_s=0.5,
    streams_s=1.0,
    idle_s=1.0,
    growth_runs=80,
    starts=2,
)
"""Shows that everything runs; its figures say nothing."""


def measure(trees: Sequence[Tree], effort: Effort) -> list[Result]:
    """Measures one tree, or two in turn; a result for each."""
    figures: list[Figures] = [{} for _ in trees]
    for number in range(effort.starts - 1):
        for tree, own in _in_turn(number, trees, figures):
            with mesh(tree) as once:
                _add(own, "up", _start_figures(once))
            _say(f"start {number + 1}: {tree.label}")
    for tree, own in zip(trees, figures, strict=True):
        with mesh(tree, replicas=latency.REPLICAS) as two:
            for found in uvloop.run(_latencies(two, effort)):
                _add(own, "latency", found)
        _say(f"latency of events: {tree.label}")
    with contextlib.ExitStack() as stack:
        meshes = [stack.enter_context(mesh(tree)) for tree in trees]
        for each, own in zip(meshes, figures, strict=True):
            _add(own, "up", _start_figures(each))
        facts = uvloop.run(_standing(meshes, figures, effort))
    began = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    return [
        Result(tree.label, began, facts, asdict(effort), own)
        for tree, own in zip(trees, figures, strict=True)
    ]


async def _latencies(two: Mesh, effort: Effort) -> list[Mapping[str, float]]:
    """Of events, on a mesh of two replicas of the agent with nothing else to do."""
    await asyncio.sleep(WARM_UP_S)
    await patiently(load(2, effort.streams_s), two)
    kind = latency.kind(effort.streams_s)
    return [await patiently(kind, two) for _ in range(effort.rounds)]


async def _standing(
    meshes: Sequence[Mesh], figures: Sequence[Figures], effort: Effort
) -> dict[str, str]:
    """What is measured on meshes that stand; returns the facts of the machine."""
    for each, own in zip(meshes, figures, strict=True):
        await asyncio.sleep(WARM_UP_S)
        _add(own, "memory_idle", memory.figures(each))
        await patiently(load(8, WARM_UP_S), each)
    for number in range(effort.rounds):
        for name, kind in _kinds(effort, number):
            for each, own in _in_turn(number, meshes, figures):
                _add(own, "machine", {"mloops_per_s": machine.speed()})
                _add(own, name, await patiently(kind, each))
            _say(f"round {number + 1} of {effort.rounds}: {name}")
    for each, own in zip(meshes, figures, strict=True):
        _add(own, "memory_loaded", memory.figures(each))
        _add(own, "memory", await patiently(_growth(effort), each))
        _say(f"growth: {each.tree.label}")
    return machine.description(await _postgres_version(meshes[0]))


def _kinds(effort: Effort, number: int) -> Iterator[tuple[str, Kind]]:
    """The kinds of one round."""
    yield "idle", lambda each: _idle(each, effort.idle_s)
    yield "call", lambda each: calls.figures(each, effort.calls, effort.calls_s)
    for concurrency in effort.concurrencies:
        yield f"load_{concurrency}", load(concurrency, effort.load_s)
    yield "native", lambda each: native.shares(each, lambda: load(32, effort.load_s)(each))
    yield "live", lambda each: streams.live(each, effort.watchers, effort.streams_s)
    yield "replayed", lambda each: streams.replayed(each, effort.watchers, effort.streams_s)
    yield "text", lambda each: streams.text(each, effort.streams_s)
    if number < effort.starts:
        yield "start", lambda each: asyncio.to_thread(startup.figures, each)


async def patiently(kind: Kind, each: Mesh) -> Mapping[str, float]:
    """Measures again what failed, a few times: a long measurement must not be lost to a hiccup.

    Raises:
        MeasuringError, grpc.aio.AioRpcError, ExceptionGroup: it failed each time.

    """
    for left in reversed(range(ATTEMPTS)):
        try:
            return await kind(each)
        except (MeasuringError, grpc.aio.AioRpcError, ExceptionGroup) as error:
            _say(f"{each.tree.label}: {error!r}; {left} more attempts")
            if not left:
                raise
            await asyncio.sleep(PAUSE_S)
    raise AssertionError


def _growth(effort: Effort) -> Kind:
    return lambda each: memory.growth(each, effort.growth_runs)


def load(concurrency: int, seconds: float) -> Kind:
    """Whole runs, so many at once, for a time."""
    return lambda each: runs.slice_of(each, concurrency, seconds)


async def _idle(each: Mesh, seconds: float) -> dict[str, float]:
    """What the mesh uses while nobody asks anything."""
    before = await read(each)
    await asyncio.sleep(seconds)
    used = (await read(each)).since(before)
    return {
        "rpcs_per_s": sum(used.rpcs.values()) / used.at_s,
        "commits_per_s": sum(used.commits.values()) / used.at_s,
    } | {f"core_share.{part}": use.cpu_s / used.at_s for part, use in used.use.items()}


def _start_figures(each: Mesh) -> dict[str, float]:
    parts = {f"ready_s.{part}": after_s for part, after_s in each.ready_after_s.items()}
    return {"mesh_s": each.start_s, "cpu_s": startup.cpu_s(each)} | parts


async def _postgres_version(each: Mesh) -> str:
    connection = await asyncpg.connect(
        host=each.facts()["postgres_socket"], user="postgres", database="postgres"
    )
    try:
        return str(await connection.fetchval("SHOW server_version"))
    finally:
        await connection.close()


def _in_turn(
    number: int, sides: Sequence[T], figures: Sequence[Figures]
) -> list[tuple[T, Figures]]:
    """Each side with its figures; who comes first changes with the round."""
    pairs = list(zip(sides, figures, strict=True))
    return pairs[::-1] if number % 2 else pairs


def _add(figures: Figures, prefix: str, found: Mapping[str, float]) -> None:
    for name, value in found.items():
        figures.setdefault(f"{prefix}.{name}", []).append(value)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
