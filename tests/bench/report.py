"""docs/BENCHMARKS.md: figures that the program writes, in prose that people write.

The program replaces what stands between a pair of markers and nothing else. A marker that is
missing or unknown is an error: figures that nobody sees, or that nobody renews, would be worse.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tests.bench import ledger_tables, log_tables, revocation_tables, storage, tables
from tests.bench.figures import BASELINE, LATEST, STEPS, Result, rounded
from tests.bench.stats import UNLIKELY, Spread, by_metric, chance_of_signs, ratios
from tests.bench.trees import REPOSITORY

DOCUMENT: Final = REPOSITORY / "docs" / "BENCHMARKS.md"
STEP_METRICS: Final = (
    ("cpu_ms_per_run", "CPU ms"),
    ("rpcs_per_run", "RPCs"),
    ("commits_per_run", "commits"),
    ("flushes_per_run", "flushes"),
    ("p50_ms", "p50 ms"),
    ("runs_per_s", "runs/s"),
)

_BLOCK: Final = re.compile(
    r"<!-- bench: (?P<name>[a-z-]+) -->\n(?P<body>.*?)<!-- end of bench -->", re.DOTALL
)
_OF_ONE: Final[Mapping[str, Callable[[Result], str]]] = {
    "machine": tables.machine,
    "calls": tables.calls,
    "runs": tables.runs,
    "bill": tables.bill,
    "time": tables.time,
    "native": tables.native,
    "streams": tables.streams,
    "start": tables.start,
    "memory": tables.memory,
}


def write() -> None:
    """Renews the figures of the document from the files of results."""
    before, after = Result.load(BASELINE), Result.load(LATEST)
    text = rendered(DOCUMENT.read_text(encoding="utf-8"), before, after)
    DOCUMENT.write_text(text, encoding="utf-8")


def rendered(document: str, before: Result, after: Result) -> str:
    """The document with the figures of these results, and of the changes that are kept."""
    blocks = {name: render(after) for name, render in _OF_ONE.items()}
    blocks["before-after"] = tables.before_and_after(before, after)
    blocks["steps"] = steps(load_steps())
    blocks["storage"] = storage.shown(storage.load())
    blocks |= ledger_tables.blocks(Result.load(ledger_tables.LEDGER))
    blocks |= log_tables.kept()
    blocks |= revocation_tables.kept()
    return replaced(document, blocks)


def as_text(result: Result) -> str:
    """The tables of one result, for a terminal."""
    return "\n\n".join(render(result) for render in _OF_ONE.values())


def replaced(document: str, blocks: Mapping[str, str]) -> str:
    """The document with other bodies between its markers.

    Raises:
        ValueError: a block has no markers, or markers have no block.

    """
    named = [match["name"] for match in _BLOCK.finditer(document)]
    if sorted(named) != sorted(blocks):
        raise ValueError(f"the document has markers for {named}, and the blocks are {[*blocks]}")
    return _BLOCK.sub(
        lambda match: (
            f"<!-- bench: {match['name']} -->\n{blocks[match['name']]}\n<!-- end of bench -->"
        ),
        document,
    )


# ----------------------------------------------------------------------------------------- steps


def summary(change: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """One change as it is kept: medians of both sides and the ratio, by concurrency and metric."""
    loads: dict[str, dict[str, Any]] = {}
    for load, (first, second) in result["loads"].items():
        before, after = by_metric(first), by_metric(second)
        loads[load] = {
            name: _compared(before[name], after[name]) | {"rounds": len(first)}
            for name, _ in STEP_METRICS
        }
    return {"change": change, "a": result["a"], "b": result["b"], "loads": loads}


def _compared(first: list[float], second: list[float]) -> dict[str, Any]:
    each = ratios(first, second)
    ratio = Spread.of(each)
    return {
        "a": rounded(Spread.of(first).median),
        "b": rounded(Spread.of(second).median),
        "ratio": [rounded(value) for value in (ratio.median, ratio.low, ratio.high)],
        "chance": rounded(chance_of_signs(each)),
    }


def load_steps(path: Path = STEPS) -> list[dict[str, Any]]:
    """The changes that were measured one by one, in their order."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    assert isinstance(found, list)
    return found


def record_step(step: dict[str, Any], path: Path = STEPS) -> None:
    """Adds a change; one of the same name is replaced."""
    kept = [each for each in load_steps(path) if each["change"] != step["change"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*kept, step], indent=1) + "\n")


def steps(recorded: list[dict[str, Any]]) -> str:
    """A row for each change and concurrency: the ratios after/before."""
    if not recorded:
        return "No change has been measured alone yet."
    head = ["Change", "commits", "concurrent", *(meaning for _, meaning in STEP_METRICS)]
    rows = [
        [
            step["change"],
            f"`{step['a']}` to `{step['b']}`",
            load,
            *(_ratio_cell(metrics[name]) for name, _ in STEP_METRICS),
        ]
        for step in recorded
        for load, metrics in step["loads"].items()
    ]
    return tables.table(head, rows)


def _ratio_cell(compared: Mapping[str, Any]) -> str:
    middle, low, high = compared["ratio"]
    mark = "**" if compared["chance"] < UNLIKELY else ""
    return f"{mark}{middle:.2f}{mark} ({low:.2f} to {high:.2f})"
