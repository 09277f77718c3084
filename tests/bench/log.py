"""`make bench-log`: appends to the audit log, batched and one by one; verification; bytes.

python -m tests.bench.log                          measure, write the docs
python -m tests.bench.log --quick                  show that everything runs; write nothing
python -m tests.bench.log --levels core --concurrent 256
                                                   a part of it; writes nothing
python -m tests.bench.log --report                 write the docs again from the results
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import asyncpg
import uvloop

from remit.audit.key_files import make_log_keys
from remit.cli import serve
from remit.local.certificates import ensure_leaves
from remit.rpc.clock import SystemClock
from tests.bench import log_tables, log_ways, machine, report
from tests.bench.cost_servers import GATE
from tests.bench.figures import Figures, Result
from tests.bench.ledger_side import CORE, GRPC
from tests.bench.ledger_ways import BATCHED, CONNECTIONS, EACH
from tests.bench.log_files import EXPORT, TILES, at_rest, verified
from tests.bench.log_servers import grpc_ways
from tests.bench.pairs import Look, Way, measure
from tests.bench.payers import USERS, payers
from tests.bench.running import MeasuringError
from tests.bench.trees import tree
from tests.conftest import PostgresCluster, running_postgres

PARTIES: Final = ("audit", "mesh", "tools")
WAYS: Final[Mapping[str, tuple[str, ...]]] = {
    CORE: (EACH, CONNECTIONS, BATCHED),
    GRPC: (EACH, BATCHED, GATE),
}
Ways = dict[tuple[str, str], tuple[Way, Look]]


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long each."""

    rounds: int = 3
    seconds: float = 1.5
    levels: tuple[str, ...] = (CORE, GRPC)
    concurrencies: tuple[int, ...] = (32, 256)
    entries: int = 100_000
    """Of the log that is verified and whose bytes are counted; none if zero."""

    @property
    def is_whole(self) -> bool:
        """Whether the docs may be written from it."""
        return self == Plan(rounds=self.rounds)

    def cells(self, number: int) -> Iterator[tuple[str, int, str]]:
        """Level, writers and way of each load of a round; which way comes first changes."""
        for level in self.levels:
            for load in self.concurrencies:
                for way in WAYS[level][::-1] if number % 2 else WAYS[level]:
                    yield level, load, way


QUICK: Final = Plan(rounds=1, seconds=0.2, entries=2_000)


async def measured(plan: Plan, cluster: PostgresCluster, label: str) -> Result:
    """One measurement of the working tree."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="remit-bench-log-") as temporary:
        folder = Path(temporary)
        if plan.entries:
            await _rest(plan, cluster, folder, figures)
        async with _standing(plan, cluster, folder) as ways:
            serve._keep_what_was_loaded(0, 0)  # as a service does that has started
            for number in range(plan.rounds):
                await _round(plan, number, ways, folder, figures)
    began = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    facts = machine.description(await _postgres_version(cluster))
    return Result(label, began, facts, asdict(plan), figures)


async def _rest(plan: Plan, cluster: PostgresCluster, folder: Path, figures: Figures) -> None:
    dsns = await _databases(cluster)
    files = folder / "rest"
    files.mkdir()
    async with log_ways.logs(dsns["audit_keys"], files) as made:
        rest = await at_rest(dsns["audit"], made, plan.entries, files)
    for name, size in rest.bytes_per_entry.items():
        _add(figures, f"bytes.{name}", size)
    for _ in range(plan.rounds):
        for what in (EXPORT, TILES):
            for name, value in (await verified(rest, what)).items():
                _add(figures, f"verify.{what}.{name}", value)
            _say(f"{what} verified in {figures[f'verify.{what}.seconds'][-1]:.1f} s")


@contextlib.asynccontextmanager
async def _standing(plan: Plan, cluster: PostgresCluster, folder: Path) -> AsyncIterator[Ways]:
    """The ways that are wanted, on a log of their own; those over gRPC on another."""
    ways: Ways = {}
    async with contextlib.AsyncExitStack() as stack:
        if CORE in plan.levels:
            dsns, core = await _databases(cluster), folder / "core"
            core.mkdir()
            made = await stack.enter_async_context(log_ways.logs(dsns["audit_keys"], core))
            stores = await stack.enter_async_context(log_ways.store_ways(dsns["audit"], made))
            look = log_ways.look_at(cluster.pid)
            ways |= {(CORE, name): (way, look) for name, way in stores.items()}
        if GRPC in plan.levels:
            dsns, served = await _databases(cluster), folder / "served"
            served.mkdir()
            make_log_keys(served / "keys")
            tls = _certificates(folder)
            audit, keys = dsns["audit"], dsns["audit_keys"]
            over = grpc_ways(tls, audit, keys, served / "keys", cluster.pid)
            found = await stack.enter_async_context(over)
            ways |= {(GRPC, name): each for name, each in found.items()}
        yield ways


async def _round(plan: Plan, number: int, ways: Ways, folder: Path, figures: Figures) -> None:
    _add(figures, "machine.mloops_per_s", machine.speed())
    _add(figures, "machine.flush_ms", machine.flush_ms(folder))
    _add(figures, "machine.load", os.getloadavg()[0])
    for level, load, way in plan.cells(number):
        found = await _patiently(ways[level, way], load, plan.seconds)
        found["appends_per_s"] = 2 * found["pairs_per_s"]  # an intent and an outcome
        name = f"{level}.{load}.{way}"
        for what, value in found.items():
            _add(figures, f"{name}.{what}", value)
        _say(f"{number + 1}/{plan.rounds} {name}: {found['appends_per_s']:,.0f} appends/s")


async def _patiently(each: tuple[Way, Look], load: int, seconds: float) -> dict[str, float]:
    """Measures again, twice at the most, what failed."""
    way, look = each
    for last in (False, False, True):
        try:
            return await measure(way, payers(USERS), load, seconds, look)
        except MeasuringError as error:
            if last:
                raise
            _say(f"{error}; once more")
    raise AssertionError  # pragma: no cover - the last round returns or raises


async def _databases(cluster: PostgresCluster) -> dict[str, str]:
    return {
        name: cluster.dsn(await cluster.fresh(name), f"remit_{name}")
        for name in ("audit", "audit_keys")
    }


def _certificates(folder: Path) -> Path:
    """A certificate for each party that calls or is called."""
    tls = folder / "tls"
    ensure_leaves(folder / "ca", {party: tls / party for party in PARTIES}, SystemClock())
    return tls


async def _postgres_version(cluster: PostgresCluster) -> str:
    connection = await asyncpg.connect(cluster.dsn("postgres", "postgres"))
    try:
        return str(await connection.fetchval("SHOW server_version"))
    finally:
        await connection.close()


def _add(figures: Figures, name: str, value: float) -> None:
    figures.setdefault(name, []).append(value)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --------------------------------------------------------------------------------------- program


def main() -> None:
    """Parses the options and does one of the things above."""
    options = _options()
    # So that whoever is told to end ends what it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if options.report:
        report.write()
        return
    plan = QUICK if options.quick else _plan(options)
    with contextlib.ExitStack() as stack:
        label = stack.enter_context(tree(None)).label
        cluster = stack.enter_context(running_postgres(on_disk=True))
        result = uvloop.run(measured(plan, cluster, label))
    print(log_tables.as_text(result))
    if plan.is_whole:
        result.save(log_tables.LOG)
        report.write()


def _plan(options: argparse.Namespace) -> Plan:
    levels, loads = tuple(options.levels), tuple(options.concurrent)
    return Plan(options.rounds, options.seconds, levels, loads, options.entries)


def _options() -> argparse.Namespace:
    whole = Plan()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="measure little, and write nothing")
    add("--report", action="store_true", help="measure nothing")
    add("--rounds", type=int, default=whole.rounds)
    add("--seconds", type=float, default=whole.seconds, help="of one load")
    add("--levels", nargs="*", choices=[*WAYS], default=list(whole.levels))
    add("--concurrent", type=int, nargs="+", default=list(whole.concurrencies))
    add("--entries", type=int, default=whole.entries, help="of the log that is verified; 0: none")
    return parser.parse_args()


if __name__ == "__main__":
    main()
