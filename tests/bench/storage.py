"""What a run stores: table, TOAST and index bytes over the databases of all areas, after VACUUM.

It says the same on a slow machine and on a fast one, so it is measured apart from all else.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import uvloop

from tests.bench.figures import FOLDER
from tests.bench.running import Mesh, mesh
from tests.bench.runs import complete
from tests.bench.tables import number, table
from tests.bench.trees import Tree
from tests.storage import at_rest, grown, stored
from tests.waiting import eventually

STORAGE: Final = FOLDER / "storage.json"
RUNS: Final = 1_000
WARM_UP_RUNS: Final = 100
"""Before the first look: first pages, caches of plans, rows that all runs share."""
CONCURRENCY: Final = 8
AT_REST_S: Final = 60.0

_MONTH: Final = re.compile(r"_\d{4}_\d\d$")


def measure(tree: Tree, runs: int = RUNS) -> dict[str, Any]:
    """Bytes of a run by table, of a mesh that runs for this alone."""
    with mesh(tree) as standing:
        per_run = uvloop.run(_per_run(standing, runs))
    measured = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    return {"tree": tree.label, "measured": measured, "runs": runs, "bytes_per_run": per_run}


async def _per_run(standing: Mesh, runs: int) -> dict[str, float]:
    await complete(standing, CONCURRENCY, WARM_UP_RUNS)
    before = await _at_rest(standing)
    await complete(standing, CONCURRENCY, runs)
    after = await _at_rest(standing)
    return {name: round(size / runs, 1) for name, size in grown(before, after).items()}


async def _at_rest(standing: Mesh) -> dict[str, int]:
    socket = str(standing.facts()["postgres_socket"])
    await eventually(lambda: at_rest(socket), AT_REST_S)
    return await stored(socket)


def save(result: Mapping[str, Any], path: Path = STORAGE) -> None:
    """Keeps a result for the docs."""
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def load(path: Path = STORAGE) -> dict[str, Any]:
    """The result that is kept."""
    found = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def shown(result: Mapping[str, Any]) -> str:
    """Bytes of a run by database, and its largest tables."""
    by_table: Mapping[str, float] = result["bytes_per_run"]
    databases = {name.partition(".")[0] for name in by_table}
    sizes = {each: sum(_own(by_table, each).values()) for each in databases}
    rows = [
        [
            f"`remit_{database}`",
            number(size),
            ", ".join(_largest(_own(by_table, database))),
        ]
        for database, size in sorted(sizes.items(), key=lambda pair: -pair[1])
    ]
    rows.append(["all", number(sum(by_table.values())), ""])
    how = f"Mean of {result['runs']:,} runs, `{result['tree']}`, {result['measured'][:10]}."
    head = ["Database", "bytes a run", "of which"]
    return f"{table(head, rows)}\n\n{how}"


def _own(by_table: Mapping[str, float], database: str) -> dict[str, float]:
    """The tables of one database; months of the log by the log's name."""
    return {
        _MONTH.sub("", name.partition(".")[2]): size
        for name, size in by_table.items()
        if name.startswith(f"{database}.")
    }


def _largest(own: Mapping[str, float]) -> Iterator[str]:
    for name in sorted(own, key=lambda name: -own[name])[:2]:
        yield f"{name} {number(own[name])}"
