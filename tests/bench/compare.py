"""A against B: two trees, a mesh of each, loads in turn, and the ratios with their spread.

Both meshes stand all the time, and short loads alternate between them (AB, BA, AB, ...), so that a
change in the machine's speed meets both. The idle one costs a little, the same for both.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.bench.measure import load, patiently
from tests.bench.running import Mesh, mesh
from tests.bench.stats import UNLIKELY, Spread, by_metric, chance_of_signs, ratios
from tests.bench.trees import tree

WARM_UP_S: Final = 4.0


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    concurrencies: Sequence[int]
    rounds: int
    seconds: float


@dataclass(frozen=True)
class Sides:
    """What is compared: A is `before`, B is `after`."""

    before: str
    after: str | None
    """None: the working tree."""
    overlay: Sequence[str] = ()
    """Paths of the working tree that replace those of `after`."""


@contextlib.contextmanager
def both(sides: Sides) -> Iterator[tuple[Mesh, Mesh]]:
    """A mesh of each side."""
    with (
        tree(sides.before) as before,
        tree(sides.after, sides.overlay) as after,
        mesh(before) as first,
        mesh(after) as second,
    ):
        yield first, second


async def alternate(pair: tuple[Mesh, Mesh], plan: Plan) -> dict[str, Any]:
    """The rounds of both, by concurrency, as a document that `render` reads."""
    for each in pair:
        await patiently(load(8, WARM_UP_S), each)  # connections, caches, plans of the database
    loads: dict[str, tuple[list[Any], list[Any]]] = {
        str(number): ([], []) for number in plan.concurrencies
    }
    for number in range(plan.rounds):
        for concurrency, sides in loads.items():
            for side in (0, 1) if number % 2 == 0 else (1, 0):
                kind = load(int(concurrency), plan.seconds)
                sides[side].append(await patiently(kind, pair[side]))
                _progress(number, plan.rounds, concurrency, "AB"[side])
    return {"a": pair[0].tree.label, "b": pair[1].tree.label, "loads": loads}


def run(sides: Sides, plan: Plan) -> dict[str, Any]:
    """Starts both meshes, measures, stops them."""
    import uvloop  # noqa: PLC0415 - not on every platform

    with both(sides) as pair:
        return uvloop.run(alternate(pair, plan))


def render(result: dict[str, Any], *, all_metrics: bool = False) -> str:
    """A table for each concurrency: medians of A and B, the median ratio and its quartiles."""
    lines = [f"A = {result['a']}, B = {result['b']}; B/A = median of the rounds (quartiles);"]
    lines += ["* = so many rounds on one side of 1 are unlikely by chance (sign test, p < 0.1)"]
    for concurrency, (first, second) in result["loads"].items():
        lines += ["", f"{concurrency} concurrent, {len(first)} rounds"]
        lines += [f"  {'':28}{'A':>10}{'B':>10}   {'B/A':<24}"]
        before, after = by_metric(first), by_metric(second)
        names = [name for name in before if name in after and (all_metrics or _shown(name))]
        lines += [row for name in names if (row := _row(name, before[name], after[name]))]
    return "\n".join(lines)


def _shown(name: str) -> bool:
    return "." not in name or name.partition(".")[0] in {"cpu_ms", "rpcs", "commits"}


def _row(name: str, first: list[float], second: list[float]) -> str:
    """A metric; empty where nothing was counted."""
    each = ratios(first, second)
    if not each or not (Spread.of(first).median or Spread.of(second).median):
        return ""
    ratio = Spread.of(each)
    mark = "*" if chance_of_signs(each) < UNLIKELY else " "
    return (
        f"  {name:28}{Spread.of(first).median:10.2f}{Spread.of(second).median:10.2f}"
        f" {mark} {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
    )


def _progress(number: int, rounds: int, concurrency: str, side: str) -> None:
    print(
        f"\rround {number + 1}/{rounds}, {concurrency} concurrent, {side} done   ",
        end="" if sys.stderr.isatty() else "\n",
        file=sys.stderr,
        flush=True,
    )
