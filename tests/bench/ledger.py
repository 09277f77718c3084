"""`make bench-ledger`: reserve and settle on hot and on many budgets, batched and one by one.

python -m tests.bench.ledger                          measure, write the docs
python -m tests.bench.ledger --quick                  show that everything runs; write nothing
python -m tests.bench.ledger --against HEAD~1         is the working tree better than HEAD~1?
python -m tests.bench.ledger --levels core --kinds hot --concurrent 256
                                                      a part of it; writes nothing
python -m tests.bench.ledger --report                 write the docs again from the results
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import itertools
import json
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import asyncpg
import uvloop

from remit.local.certificates import ensure_leaves
from remit.rpc.clock import SystemClock
from tests.bench import ledger_tables, machine, report
from tests.bench.cost_servers import GATE
from tests.bench.figures import Figures, Result
from tests.bench.ledger_side import CORE, DECISIONS, GRPC, WAYS, Cell, Place, Process
from tests.bench.ledger_ways import BATCHED, CONNECTIONS, EACH
from tests.bench.payers import KINDS
from tests.bench.running import MeasuringError
from tests.bench.trees import REPOSITORY, Tree, tree
from tests.conftest import PostgresCluster, running_postgres

PARTIES: Final = ("cost", "mesh", "tools")
DECIDING_S: Final = 0.3
"""Of a load that only decides: nothing in it waits."""


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long each."""

    rounds: int = 3
    seconds: float = 1.2
    levels: tuple[str, ...] = (DECISIONS, CORE, GRPC)
    kinds: tuple[str, ...] = tuple(KINDS)
    concurrencies: tuple[int, ...] = (32, 256)
    ways: tuple[str, ...] = (EACH, CONNECTIONS, BATCHED, GATE)

    @property
    def is_whole(self) -> bool:
        """Whether the docs may be written from it."""
        return self == Plan(rounds=self.rounds)

    def cells(self, number: int) -> Iterator[Cell]:
        """The loads of a round. Ways take turns; which comes first changes with the round."""
        for level, kind, load in itertools.product(self.levels, self.kinds, self.concurrencies):
            seconds = min(self.seconds, DECIDING_S) if level == DECISIONS else self.seconds
            ways = [way for way in WAYS[level] if way in self.ways]
            if load < max(self.concurrencies):
                ways = [way for way in ways if way != CONNECTIONS]
            for way in ways[::-1] if number % 2 else ways:
                yield Cell(level, kind, load, way, seconds)


QUICK: Final = Plan(rounds=1, seconds=0.2)


async def measure(trees: Sequence[Tree], plan: Plan, cluster: PostgresCluster) -> list[Result]:
    """Measures one tree, or two in turn; a result for each."""
    figures: list[Figures] = [{} for _ in trees]
    with tempfile.TemporaryDirectory(prefix="remit-bench-ledger-") as folder:
        tls = _certificates(Path(folder))
        async with contextlib.AsyncExitStack() as stack:
            sides = [
                await stack.enter_async_context(_started(each, plan, cluster, tls))
                for each in trees
            ]
            for number in range(plan.rounds):
                await _round(number, sides, figures, plan, Path(folder))
    began = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    facts = machine.description(await _postgres_version(cluster))
    return [
        Result(each.label, began, facts, asdict(plan), own)
        for each, own in zip(trees, figures, strict=True)
    ]


async def _round(
    number: int, sides: Sequence[Process], figures: Sequence[Figures], plan: Plan, folder: Path
) -> None:
    pairs = list(zip(sides, figures, strict=True))
    for own in figures:
        _add(own, "machine.mloops_per_s", machine.speed())
        _add(own, "machine.flush_ms", machine.flush_ms(folder))
    cells = list(plan.cells(number))
    for place, cell in enumerate(cells, start=1):
        for side, own in pairs[::-1] if number % 2 else pairs:
            found = await _patiently(side, cell)
            for name, value in found.items():
                _add(own, f"{cell.name}.{name}", value)
            _say(f"{number + 1}/{plan.rounds} {place}/{len(cells)} {_told(cell, found)}")


async def _patiently(side: Process, cell: Cell) -> dict[str, float]:
    """Measures again, once, what failed."""
    try:
        return await side.run(cell)
    except MeasuringError as error:
        _say(f"{error}; once more")
        return await side.run(cell)


@contextlib.asynccontextmanager
async def _started(
    each: Tree, plan: Plan, cluster: PostgresCluster, tls: Path
) -> AsyncIterator[Process]:
    """A tree's side, on a database of its own."""
    dsn = cluster.dsn(await cluster.fresh("cost"), "remit_cost")
    place = Place(dsn, cluster.pid, str(tls), plan.levels)
    async with Process.start(place, each.environment, REPOSITORY) as process:
        _say(f"{each.label} is ready")
        yield process


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


def _told(cell: Cell, found: dict[str, float]) -> str:
    latency = [f"{each} {found.get(f'{each}_ms', 0):.1f} ms" for each in ("p50", "p99")]
    late = f", {found['failed']:.0f} too late" if found.get("failed") else ""
    return f"{cell.name}: {found['pairs_per_s']:,.0f} pairs/s, {', '.join(latency)}{late}"


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
    plan = _plan(options)
    with contextlib.ExitStack() as stack:
        trees = [stack.enter_context(tree(options.revision))]
        if options.against:
            trees.insert(0, stack.enter_context(tree(options.against)))
        cluster = stack.enter_context(running_postgres(on_disk=True))
        results = uvloop.run(measure(trees, plan, cluster))
    if options.json:
        print(json.dumps([asdict(result) for result in results]))
    elif options.against:
        print(ledger_tables.comparison(*results))
    else:
        print(ledger_tables.as_text(results[0]))
    if plan.is_whole and not options.against:
        results[0].save(ledger_tables.LEDGER)
        report.write()


def _plan(options: argparse.Namespace) -> Plan:
    if options.quick:
        return QUICK
    return Plan(
        options.rounds,
        options.seconds,
        tuple(options.levels),
        tuple(options.kinds),
        tuple(options.concurrent),
        tuple(options.ways),
    )


def _options() -> argparse.Namespace:
    whole = Plan()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="measure little, and write nothing")
    add("--report", action="store_true", help="measure nothing")
    add("--against", metavar="A", help="the revision before; both are measured in turn")
    add("--revision", metavar="B", help="the revision after; the working tree if not given")
    add("--rounds", type=int, default=whole.rounds)
    add("--seconds", type=float, default=whole.seconds, help="of one load")
    add("--levels", nargs="+", choices=[*WAYS], default=list(whole.levels))
    add("--kinds", nargs="+", choices=[*KINDS], default=list(whole.kinds), help="of budgets")
    add("--ways", nargs="+", choices=whole.ways, default=list(whole.ways))
    add("--concurrent", type=int, nargs="+", default=list(whole.concurrencies))
    add("--json", action="store_true", help="show every round")
    return parser.parse_args()


if __name__ == "__main__":
    main()
