"""The tables of the ledger's benchmark, made from its results alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from tests.bench import tables
from tests.bench.figures import FOLDER, Result, is_unlikely, ratio
from tests.bench.ledger_side import CORE, DECISIONS, GRPC, WAYS
from tests.bench.payers import KINDS
from tests.bench.stats import Spread, ratios

LEDGER: Final = FOLDER / "ledger.json"
AIM: Final = 10.0
"""Times as many pairs a second, batched, as with a transaction each."""
AIM_AT: Final = 256
MEANINGS: Final[Mapping[str, Mapping[str, str]]] = {
    DECISIONS: {"each": "one by one", "batched": "in a batch"},
    CORE: {
        "each": "a transaction each",
        "connections": "a transaction each, 8 writers",
        "batched": "batched",
    },
    GRPC: {
        "each": "an RPC and a transaction each",
        "batched": "an RPC each, transactions batched",
        "gate": "RPCs and transactions batched",
    },
}
LEVELS: Final = {
    DECISIONS: "decisions alone",
    CORE: "the core: decisions and store",
    GRPC: "through gRPC",
}
PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    DECISIONS: ("ledger",),
    CORE: ("ledger", "postgres"),
    GRPC: ("client", "cost", "postgres"),
}
"""Processes whose CPU is told: `ledger` is caller and ledger in one."""


def blocks(result: Result) -> dict[str, str]:
    """The parts of the docs by the names of their markers."""
    return {
        "ledger-machine": machine(result),
        "ledger-decisions": level(result, DECISIONS),
        "ledger-core": f"{level(result, CORE)}\n\n{verdict(result, CORE)}",
        "ledger-grpc": f"{level(result, GRPC)}\n\n{verdict(result, GRPC)}",
    }


def as_text(result: Result) -> str:
    """All of it, for a terminal; of a part that was measured, that part."""
    return "\n\n".join(
        f"{meaning}\n{level(result, name)}\n\n{verdict(result, name)}".rstrip()
        for name, meaning in LEVELS.items()
        if name in result.effort["levels"]
    )


def machine(result: Result) -> str:
    """What it ran on, and how long its disk takes for what a commit waits for."""
    flush = f"{tables.shown(result, 'machine.flush_ms')} ms"
    return f"{tables.machine(result)}\n| write of 8 KiB to the disk | {flush} |"


def level(result: Result, name: str) -> str:
    """A row for each kind of budget, concurrency and way."""
    parts = PARTS[name]
    head = ["Budgets", "at once", "how", "pairs/s", "to a transaction each", "p50 ms", "p99 ms"]
    if name == DECISIONS:
        head = ["Budgets", "in a batch", "how", "pairs/s", "to one by one", "p50 ms", "p99 ms"]
    else:
        head += ["operations a commit", "idle %"]
    head += [f"{part} CPU µs" for part in parts]
    return tables.table(head, _rows(result, name))


def _rows(result: Result, name: str) -> Iterator[list[str]]:
    for kind in result.effort["kinds"]:
        for load in result.effort["concurrencies"]:
            base = f"{name}.{kind}.{load}.{WAYS[name][0]}.pairs_per_s"
            for way in WAYS[name]:
                key = f"{name}.{kind}.{load}.{way}"
                if not result.has(f"{key}.pairs_per_s"):
                    continue
                row = [KINDS[kind], str(load), MEANINGS[name][way]]
                row += [tables.shown(result, f"{key}.pairs_per_s"), _times(result, base, key)]
                row += [tables.median(result, f"{key}.{each}_ms") for each in ("p50", "p99")]
                if name != DECISIONS:
                    row.append(tables.median(result, f"{key}.operations_per_commit"))
                    row.append(tables.median(result, f"{key}.idle_share", 100))
                yield row + [tables.median(result, f"{key}.cpu_us.{part}") for part in PARTS[name]]


def _times(result: Result, base: str, key: str) -> str:
    if base == f"{key}.pairs_per_s":
        return tables.NOTHING
    times = _times_as_many(result, base, key)
    return tables.number(times.median) if times else tables.NOTHING


def _times_as_many(result: Result, base: str, key: str) -> Spread | None:
    """Round by round, each against its neighbour; None where not one pair ended in time."""
    rounds = ratios(result.values(base), result.values(f"{key}.pairs_per_s"))
    return Spread.of(rounds) if rounds else None


def verdict(result: Result, name: str) -> str:
    """Whether the aim is met, and how many pairs were too late."""
    first, last = MEANINGS[name][WAYS[name][0]], MEANINGS[name][WAYS[name][-1]]
    late, ended = (_sum(result, name, what) for what in ("failed", "pairs"))
    told = [f"{late:,.0f} of {ended + late:,.0f} pairs missed their deadline."] if late else []
    compared = {WAYS[name][0], WAYS[name][-1]} <= {*result.effort["ways"]}
    if compared and AIM_AT in result.effort["concurrencies"] and name != DECISIONS:
        kinds = "; ".join(_met(result, name, kind) for kind in result.effort["kinds"])
        told.insert(0, f"Pairs/s at {AIM_AT} at once, {last}, to {first}: {kinds}.")
    return " ".join(told)


def _met(result: Result, name: str, kind: str) -> str:
    base, last = (f"{name}.{kind}.{AIM_AT}.{way}" for way in (WAYS[name][0], WAYS[name][-1]))
    times = _times_as_many(result, f"{base}.pairs_per_s", last)
    if times is None:
        return f"budgets {KINDS[kind]}, not one in time without"
    aim = "the aim" if times.median >= AIM else f"**below the aim of {AIM:.0f}**"
    return f"budgets {KINDS[kind]}, {tables.spread(times)}, {aim}"


def _sum(result: Result, name: str, what: str) -> float:
    keys = [key for key in result.figures if key.startswith(f"{name}.")]
    return sum(sum(result.values(key)) for key in keys if key.endswith(f".{what}"))


# ------------------------------------------------------------------------------------ comparison


def comparison(before: Result, after: Result) -> str:
    """Two trees that were measured in turn: batched pairs/s and CPU, and after/before."""
    head = ["", "pairs/s before", "after", "after/before", "CPU µs a pair before", "after"]
    head.append("after/before")
    rows = []
    for name in after.effort["levels"]:
        for kind in after.effort["kinds"]:
            for load in after.effort["concurrencies"]:
                for way in WAYS[name]:
                    key = f"{name}.{kind}.{load}.{way}"
                    if after.has(f"{key}.pairs_per_s"):
                        rows.append([key, *_compared(before, after, key, PARTS[name])])
    return f"before {before.tree}, after {after.tree}\n{tables.table(head, rows)}"


def _compared(before: Result, after: Result, key: str, parts: tuple[str, ...]) -> Iterator[str]:
    for each in (before, after):
        total = f"{key}.cpu_us.all"
        columns = [each.values(f"{key}.cpu_us.{part}") for part in parts]
        each.figures[total] = [sum(values) for values in zip(*columns, strict=True)]
    for name in (f"{key}.pairs_per_s", f"{key}.cpu_us.all"):
        yield from (tables.median(each, name) for each in (before, after))
        change = ratio(before, after, name)
        marked = "*" if is_unlikely(before, after, name) else ""
        yield f"{tables.spread(change)}{marked}" if change else tables.NOTHING
