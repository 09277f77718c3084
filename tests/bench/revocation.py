"""`make bench-revocation`: how long what was taken away still works, against the stated bounds.

python -m tests.bench.revocation                   measure, write the docs (about 8 minutes)
python -m tests.bench.revocation --trials 1        each kind once; writes nothing
python -m tests.bench.revocation --kinds key user  some of it; writes nothing
python -m tests.bench.revocation --report          write the docs again from the results

It ends with 1 if something worked longer than its bound. Kinds that would hasten each other are
measured one after another: disabling somebody makes the edge of a replica forget all it remembers,
and a decision about an effect loads a new epoch for the edge, too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import uvloop

from remit.policy.settings import PolicySettings
from remit.rpc.contracts import all_contracts
from tests.bench import machine, report, revocation_tables
from tests.bench.figures import Figures, Result
from tests.bench.revocation_tables import (
    GRANT_RUN,
    KEY,
    POLICY,
    POLICY_RUN,
    STREAM,
    USER,
    USER_RUN,
)
from tests.bench.revoked_runs import (
    SlowWalking,
    Walkers,
    open_stream,
    run_of_a_disabled_user,
    run_under_a_new_policy,
    run_without_its_grant,
)
from tests.bench.revoking import ORG, Found, at_the_edge, world_of, write_policies
from tests.bench.running import MeasuringError, Mesh, mesh
from tests.bench.trees import Tree, tree
from tests.inference import openai_server
from tests.integration import walking

TRIALS: Final = 20
ATTEMPTS: Final = 3
WATCH_RUN: Final = "/remit.api.agent.v1.AgentService/WatchRun"

Trial = Callable[[Walkers, str, float, float], Awaitable[Found]]
"""With a name of its own, the bound, and how long before the end of it to begin."""


async def _key(walkers: Walkers, name: str, before_s: float, bound_s: float) -> Found:
    world = walkers.world
    key, secret = await world.key(f"{ORG}/users/{name}")
    return await at_the_edge(world, secret, lambda: world.revoke_key(key), before_s, bound_s)


async def _user(walkers: Walkers, name: str, before_s: float, bound_s: float) -> Found:
    world, user = walkers.world, f"{ORG}/users/{name}"
    _, secret = await world.key(user)
    return await at_the_edge(world, secret, lambda: world.disable(user), before_s, bound_s)


async def _policy(walkers: Walkers, name: str, before_s: float, bound_s: float) -> Found:
    world, user = walkers.world, f"{ORG}/users/{name}"
    _, secret = await world.key(user)
    return await at_the_edge(
        world, secret, lambda: world.forbid(user, "agents.list"), before_s, bound_s
    )


@dataclass(frozen=True)
class Kind:
    """Something that is taken away."""

    trial: Trial
    bound_s: float
    at_once: int = 1
    """Trials that are under way together."""


def _default(setting: str) -> float:
    return float(PolicySettings.model_fields[setting].default)


def _stream_bound_s() -> float:
    stream = all_contracts()[WATCH_RUN].stream
    assert stream is not None
    return stream.permission_bound_s


_EDGE_S: Final = _default("edge_cache_s")
_DECISION_S: Final = _default("decision_valid_s")
KINDS: Final[Mapping[str, Kind]] = {
    KEY: Kind(_key, _EDGE_S, at_once=4),
    USER: Kind(_user, _EDGE_S),
    POLICY: Kind(_policy, _default("policies_refresh_s")),
    USER_RUN: Kind(run_of_a_disabled_user, _DECISION_S),
    GRANT_RUN: Kind(run_without_its_grant, _DECISION_S, at_once=2),
    POLICY_RUN: Kind(run_under_a_new_policy, _DECISION_S, at_once=2),
    STREAM: Kind(open_stream, _stream_bound_s(), at_once=100),
}
GROUPS: Final = ((STREAM, KEY), (USER,), (POLICY,), (USER_RUN, GRANT_RUN, POLICY_RUN))
"""Kinds of one group are measured together, since they do not hasten each other."""


async def measured(walkers: Walkers, kinds: Sequence[str], trials: int) -> Figures:
    """The figures of each kind."""
    figures: Figures = {}
    for group in GROUPS:
        chosen = [kind for kind in group if kind in kinds]
        _add(figures, "machine.load", os.getloadavg()[0])
        _add(figures, "machine.mloops_per_s", machine.speed())
        await asyncio.gather(*(_kind(walkers, kind, trials, figures) for kind in chosen))
    return figures


async def _kind(walkers: Walkers, name: str, trials: int, figures: Figures) -> None:
    """So many trials, which begin at even places before what makes the edge forget."""
    kind = KINDS[name]
    room = asyncio.Semaphore(kind.at_once)

    async def one(number: int) -> None:
        async with room:
            before_s = (number + 0.5) / trials * kind.bound_s
            each = await _patiently(walkers, name, number, before_s)
            for figure, value in asdict(each).items():
                _add(figures, f"{name}.{figure}", float(value))
            _say(f"{name} {number + 1}/{trials}: refused after {each.refused_s:.3f} s")

    async with asyncio.TaskGroup() as group:
        for number in range(trials):
            group.create_task(one(number))


async def _patiently(walkers: Walkers, name: str, number: int, before_s: float) -> Found:
    """Measures again, twice at the most, what failed."""
    kind = KINDS[name]
    for attempt in range(ATTEMPTS):
        try:
            return await kind.trial(walkers, f"{name}-{number}-{attempt}", before_s, kind.bound_s)
        except MeasuringError as error:
            if attempt + 1 == ATTEMPTS:
                raise
            _say(f"{name}: {error}; once more")
    raise AssertionError  # pragma: no cover - the last round returns or raises


@contextlib.asynccontextmanager
async def _standing(source: Tree, told: dict[str, str]) -> AsyncIterator[Mesh]:
    """A mesh with two replicas of policy, started and stopped while its model goes on."""
    starting = mesh(source, environment=source.environment | told, replicas={"policy": 2})
    with contextlib.ExitStack() as stack:
        running = await asyncio.to_thread(stack.enter_context, starting)
        try:
            yield running
        finally:
            await asyncio.to_thread(stack.close)


async def result_of(kinds: Sequence[str], trials: int) -> Result:
    """One measurement of the working tree, on a mesh of its own with two replicas of policy."""
    model = SlowWalking()
    async with contextlib.AsyncExitStack() as stack:
        source = stack.enter_context(tree(None))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="remit-bench-")))
        server = await stack.enter_async_context(openai_server.running())
        server.script = model.answer
        told = walking.environment(folder, server) | write_policies(folder / "policies")
        running = await stack.enter_async_context(_standing(source, told))
        world = await stack.enter_async_context(world_of(running))
        walkers = Walkers(world, model)
        if STREAM in kinds:
            await walkers.open_a_watched_run()
        began = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        figures = await measured(walkers, kinds, trials)
        facts = machine.description(await walkers.postgres_version())
        effort = {"rounds": trials, "bounds": {kind: KINDS[kind].bound_s for kind in kinds}}
        return Result(source.label, began, facts, effort, figures)


def _add(figures: Figures, name: str, value: float) -> None:
    figures.setdefault(name, []).append(value)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --------------------------------------------------------------------------------------- program


def main() -> int:
    """Parses the options and does one of the things above."""
    options = _options()
    # So that whoever is told to end ends what it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if options.report:
        report.write()
        return 0
    result = uvloop.run(result_of(options.kinds, options.trials))
    print(json.dumps(asdict(result)) if options.json else revocation_tables.shown(result))
    if options.trials >= TRIALS and set(options.kinds) == set(KINDS):
        result.save(revocation_tables.REVOCATION)
        report.write()
    return 1 if revocation_tables.exceeded(result) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--report", action="store_true", help="measure nothing")
    add("--kinds", nargs="+", choices=[*KINDS], default=[*KINDS])
    add("--trials", type=int, default=TRIALS, help="of each kind")
    add("--json", action="store_true", help="show every trial")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
