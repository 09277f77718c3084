"""One state of the source under load: a process of its own that measures what it is told to.

The program that compares starts one of these for each tree, with the tree's `services` first on the
path, and writes a line of JSON for each load; the answer is a line of JSON. Two trees can so be
measured in turn, and what the loads take is told apart from what the program itself takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import uvloop

from remit.cli import serve
from remit.postgres import Database
from tests.bench import cost_servers, ledger_ways
from tests.bench.ledger_ways import BATCHED, CONNECTIONS, EACH, decided
from tests.bench.pairs import Look, Way, measure
from tests.bench.payers import KINDS, payers, set_budgets
from tests.bench.running import MeasuringError

DECISIONS: Final = "decisions"
CORE: Final = "core"
GRPC: Final = "grpc"
WAYS: Final[Mapping[str, tuple[str, ...]]] = {
    DECISIONS: (EACH, BATCHED),
    CORE: (EACH, CONNECTIONS, BATCHED),
    GRPC: (EACH, BATCHED, cost_servers.GATE),
}
"""How each level is measured, the one that does not batch first."""
ANSWER: Final = "> "
"""Begins the lines that are answers; whatever else a process prints is not."""


@dataclass(frozen=True)
class Cell:
    """One load."""

    level: str
    kind: str
    concurrency: int
    way: str
    seconds: float

    @property
    def name(self) -> str:
        """What its figures are called by."""
        return f"{self.level}.{self.kind}.{self.concurrency}.{self.way}"


@dataclass(frozen=True)
class Place:
    """Where a side finds what it needs."""

    dsn: str
    postgres: int
    """Process id of the server."""
    tls: str
    """Folder with a folder of certificates a party."""
    levels: tuple[str, ...]


class Side:
    """The ways that stand ready."""

    def __init__(self, ways: Mapping[tuple[str, str], tuple[Way, Look]]) -> None:
        self._ways = ways
        self._payers = {kind: payers(kind) for kind in KINDS}

    async def run(self, cell: Cell) -> dict[str, float]:
        """The figures of one load. Raises MeasuringError."""
        if cell.level == DECISIONS:
            batch = 1 if cell.way == EACH else cell.concurrency
            return decided(cell.kind, batch, cell.seconds)
        way, look = self._ways[cell.level, cell.way]
        paying = self._payers[cell.kind]
        return await measure(way, paying, cell.concurrency, cell.seconds, look)


@contextlib.asynccontextmanager
async def side(place: Place) -> AsyncIterator[Side]:
    """Opens the levels that are wanted, on a database with all budgets."""
    async with Database.open(place.dsn) as database, database.acquire() as connection:
        await set_budgets(connection, tuple(KINDS))
    ways: dict[tuple[str, str], tuple[Way, Look]] = {}
    async with contextlib.AsyncExitStack() as stack:
        if CORE in place.levels:
            look = ledger_ways.look_at(place.postgres)
            stores = await stack.enter_async_context(ledger_ways.store_ways(place.dsn))
            ways |= {(CORE, name): (way, look) for name, way in stores.items()}
        if GRPC in place.levels:
            servers = cost_servers.grpc_ways(Path(place.tls), place.dsn, place.postgres)
            found = await stack.enter_async_context(servers)
            ways |= {(GRPC, name): each for name, each in found.items()}
        yield Side(ways)


# ------------------------------------------------------------------------------------- the process


async def _serve(place: Place) -> None:
    """Answers each line with the figures, or why there are none, until there are no more."""
    async with side(place) as standing:
        await ledger_ways.spend_once(place.dsn)
        serve._keep_what_was_loaded(0, 0)  # as a service does that has started
        _answer({})
        while line := await asyncio.to_thread(sys.stdin.readline):
            try:
                _answer(await standing.run(Cell(**json.loads(line))))
            except MeasuringError as error:
                _answer({"error": str(error)})


def _answer(said: Mapping[str, object]) -> None:
    print(ANSWER + json.dumps(said), flush=True)


class Process:
    """The other end: a side that runs as a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls, place: Place, environment: Mapping[str, str], folder: Path
    ) -> AsyncIterator[Process]:
        """Starts it in a folder from which `tests` can be imported, and ends it.

        Raises:
            SystemExit: it ended by itself.

        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.bench.ledger_side", json.dumps(asdict(place))),
            cwd=folder,
            env=dict(environment),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        started = cls(process)
        try:
            await started._answered()
            yield started
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()

    async def run(self, cell: Cell) -> dict[str, float]:
        """The figures of one load. Raises MeasuringError."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(asdict(cell))}\n".encode())
        answer = await self._answered()
        if "error" in answer:
            raise MeasuringError(f"{cell.name}: {answer['error']}")
        return answer

    async def _answered(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            text = line.decode()
            if text.startswith(ANSWER):
                found = json.loads(text.removeprefix(ANSWER))
                assert isinstance(found, dict)
                return found
            print(text, end="", file=sys.stderr)
        raise SystemExit("what was to be measured has ended by itself")


if __name__ == "__main__":
    uvloop.run(_serve(Place(**json.loads(sys.argv[1]))))
