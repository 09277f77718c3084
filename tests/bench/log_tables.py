"""The tables of the log's benchmark, made from its results alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.bench import tables
from tests.bench.figures import FOLDER, Result
from tests.bench.ledger_side import CORE, GRPC
from tests.bench.log_files import EXPORT, TILES
from tests.bench.stats import Spread, ratios

LOG: Final = FOLDER / "log.json"
AIM: Final = 10.0
"""Times as many appends a second, batched, as with a transaction each."""
AIM_AT: Final = 256
AIM_S: Final = 10.0
"""In which 100,000 entries are to be verified."""
AIM_ENTRIES: Final = 100_000
MEANINGS: Final[Mapping[str, Mapping[str, str]]] = {
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
LEVELS: Final = {CORE: "the core: sealing, tree and store", GRPC: "through gRPC"}
PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    CORE: ("log", "postgres"),
    GRPC: ("client", "audit", "postgres"),
}
"""Processes whose CPU is told: `log` is caller and log in one."""
BLOCKS: Final = ("log-machine", "log-core", "log-grpc", "log-verify", "log-bytes")
_EVENTS: Final = 2
"""Of a pair: intent and outcome."""


def kept(path: Path = LOG) -> dict[str, str]:
    """The parts of the docs from the results that are kept; without any, they say so."""
    if path.exists():
        return blocks(Result.load(path))
    return dict.fromkeys(BLOCKS, "Not measured on a machine of its own yet.")


def blocks(result: Result) -> dict[str, str]:
    """The parts of the docs by the names of their markers."""
    return {
        "log-machine": machine(result),
        "log-core": f"{level(result, CORE)}\n\n{verdict(result, CORE)}",
        "log-grpc": f"{level(result, GRPC)}\n\n{verdict(result, GRPC)}",
        "log-verify": f"{verification(result)}\n\n{verified_in_time(result)}",
        "log-bytes": size(result),
    }


def as_text(result: Result) -> str:
    """All of it, for a terminal."""
    return "\n\n".join(f"{name}\n{text}" for name, text in blocks(result).items())


def machine(result: Result) -> str:
    """What it ran on, how long its disk takes, and how much ran beside."""
    rows = [
        tables.machine(result),
        f"| write of 8 KiB to the disk | {tables.shown(result, 'machine.flush_ms')} ms |",
        f"| load average of the minute before a round | {tables.shown(result, 'machine.load')} |",
    ]
    return "\n".join(rows)


def level(result: Result, name: str) -> str:
    """A row for each number of writers and way."""
    head = ["at once", "how", "appends/s", "to a transaction each", "p50 ms", "p99 ms"]
    head += ["events a commit", "idle %", *(f"{part} CPU µs" for part in PARTS[name])]
    return tables.table(head, _rows(result, name))


def _rows(result: Result, name: str) -> Iterator[list[str]]:
    for load in result.effort["concurrencies"]:
        for way, meaning in MEANINGS[name].items():
            key = f"{name}.{load}.{way}"
            if not result.has(f"{key}.appends_per_s"):
                continue
            times = _times(result, name, load, way)
            row = [str(load), meaning, tables.shown(result, f"{key}.appends_per_s")]
            row.append(tables.number(times.median) if times and way != "each" else tables.NOTHING)
            row += [tables.median(result, f"{key}.reserve_{each}_ms") for each in ("p50", "p99")]
            row.append(tables.median(result, f"{key}.operations_per_commit"))
            row.append(tables.median(result, f"{key}.idle_share", 100))
            for part in PARTS[name]:
                row.append(tables.median(result, f"{key}.cpu_us.{part}", 1 / _EVENTS))
            yield row


def _times(result: Result, name: str, load: int, way: str) -> Spread | None:
    """Round by round, each against its neighbour; None where not one append ended in time."""
    base, other = (result.values(f"{name}.{load}.{each}.appends_per_s") for each in ("each", way))
    rounds = ratios(base, other)
    return Spread.of(rounds) if rounds else None


def verdict(result: Result, name: str) -> str:
    """Whether the aim is met, and how many were too late."""
    last = [*MEANINGS[name]][-1]
    first, meaning = MEANINGS[name]["each"], MEANINGS[name][last]
    told = []
    times = _times(result, name, AIM_AT, last)
    if times and AIM_AT in result.effort["concurrencies"]:
        aim = "the aim" if times.median >= AIM else f"**below the aim of {AIM:.0f}**"
        told.append(
            f"Appends/s at {AIM_AT} at once, {meaning}, to {first}: {tables.spread(times)}, {aim}."
        )
    keys = [key for key in result.figures if key.startswith(f"{name}.") and key.endswith(".failed")]
    late = sum(sum(result.values(key)) for key in keys)
    if late:
        told.append(f"{late:,.0f} effects missed the deadline of an append.")
    return " ".join(told)


def verification(result: Result) -> str:
    """A row for each form."""
    head = ["of", "s", "entries/s", "CPU s", "entries/s without the start of Python"]
    names = {EXPORT: "an export", TILES: "a folder of tiles"}
    rows = [
        [
            f"{names[what]} of {result.effort['entries']:,} entries",
            tables.shown(result, f"verify.{what}.seconds"),
            tables.median(result, f"verify.{what}.entries_per_s"),
            tables.median(result, f"verify.{what}.cpu_s"),
            tables.median(result, f"verify.{what}.alone_entries_per_s"),
        ]
        for what in names
    ]
    return tables.table(head, rows)


def verified_in_time(result: Result) -> str:
    """Whether the aim is met."""
    slowest = max(max(result.values(f"verify.{what}.seconds")) for what in (EXPORT, TILES))
    share = AIM_ENTRIES / result.effort["entries"]
    met = "the aim" if slowest * share < AIM_S else "**not the aim**"
    return (
        f"The slowest round took {slowest:.1f} s for {result.effort['entries']:,} entries:"
        f" {AIM_ENTRIES:,} in less than {AIM_S:.0f} s is {met}."
    )


def size(result: Result) -> str:
    """Bytes of an entry: by relation, and as files."""
    names = [name for name in result.figures if name.startswith("bytes.")]
    sizes = {name.removeprefix("bytes."): result.values(name)[0] for name in names}
    kept = {name: found for name, found in sizes.items() if name.startswith("database.")}
    rows = [
        [f"`{name.removeprefix('database.')}`", tables.number(found)]
        for name, found in sorted(kept.items(), key=lambda pair: -pair[1])
    ]
    rows.append(["**the database**", f"**{tables.number(sum(kept.values()))}**"])
    rows += [["an export", tables.number(sizes[EXPORT])]]
    rows += [["a folder of tiles", tables.number(sizes[TILES])]]
    return tables.table(["where", "bytes an entry"], rows)
