"""The tables of docs/BENCHMARKS.md, made from results alone: plain data in, Markdown out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from remit.rpc.contracts import AREAS
from tests.bench.figures import Result, is_unlikely, ratio
from tests.bench.stats import Spread, ratios

PARTS: Final = (*AREAS, "envoy", "postgres", "supervisor")
"""The processes of a mesh, replicas and children together; `supervisor` is `remit up`."""
CLIENT: Final = "client"
NOTHING: Final = "-"

WAYS: Final = (
    ("health_direct", "health check, direct over mTLS", "health_direct"),
    ("health_envoy", "health check, through Envoy", "health_direct"),
    ("list_direct", "ListAgents, direct over mTLS with a remit", "list_direct"),
    ("list_envoy_key", "ListAgents, through Envoy with an API key", "list_direct"),
    ("list_rest_key", "GET /v1/agents, the same in REST", "list_direct"),
)
"""Name among the figures, what it is, and what it is compared with."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; numbers are to the right, the first column to the left."""
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    return "\n".join([*lines, *(_line(row) for row in rows)])


def number(value: float) -> str:
    """Three digits that mean something, and never an exponent."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 0.1:
        return f"{value:.2f}"
    return f"{value:.3f}" if size >= 0.0005 else "0"


def spread(values: Spread) -> str:
    """Median (quartiles)."""
    if values.rounds == 1:
        return number(values.median)
    return f"{number(values.median)} ({number(values.low)} to {number(values.high)})"


def shown(result: Result, name: str) -> str:
    """The spread of a figure; a dash if it was not measured."""
    return spread(result.spread(name)) if result.has(name) else NOTHING


def median(result: Result, name: str, scale: float = 1.0) -> str:
    """The median of a figure alone, where quartiles would make a table too wide."""
    return number(result.spread(name).median * scale) if result.has(name) else NOTHING


# --------------------------------------------------------------------------------------- machine


def machine(result: Result) -> str:
    """What it ran on, and how steady that was."""
    facts = [[name, value] for name, value in result.machine.items()]
    steady = result.spread("machine.mloops_per_s")
    facts += [
        ["source", f"`{result.tree}`"],
        ["measured", result.measured.partition("T")[0]],
        ["rounds", str(result.effort["rounds"])],
        ["speed of the machine", f"{spread(steady)} million empty Python loops a second"],
    ]
    return table(["", ""], facts).replace("---:", "---")


# ----------------------------------------------------------------------------------------- calls


def calls(result: Result) -> str:
    """A unary call on each way in."""
    head = ["Call", "p50 ms", "to direct", "p99 ms", "calls/s, 32 in flight", "CPU ms", "of which"]
    return table(head, [_call(result, *way) for way in WAYS if result.has(f"call.{way[0]}.p50_ms")])


def _call(result: Result, name: str, meaning: str, direct: str) -> list[str]:
    key, base = f"call.{name}", f"call.{direct}.p50_ms"
    each = ratios(result.values(base), result.values(f"{key}.p50_ms"))
    cpu = {part: result.spread(f"{key}.cpu_ms.{part}").median for part in PARTS}
    largest = sorted(cpu, key=lambda part: -cpu[part])[:3]
    return [
        meaning,
        shown(result, f"{key}.p50_ms"),
        NOTHING if name == direct else f"{Spread.of(each).median:.2f}",
        median(result, f"{key}.p99_ms"),
        shown(result, f"{key}.calls_per_s"),
        number(sum(cpu.values())),
        ", ".join(f"{part} {number(cpu[part])}" for part in largest if cpu[part] >= 0.02),
    ]


# ------------------------------------------------------------------------------------------ runs


def loads(result: Result) -> list[str]:
    """The concurrencies that were measured."""
    return [str(each) for each in result.effort["concurrencies"]]


def runs(result: Result) -> str:
    """Whole runs: how fast, and what one costs."""
    head = [
        "Concurrent",
        "runs/s",
        "p50 ms",
        "p99 ms",
        "CPU ms",
        "RPCs",
        "commits",
        "flushes",
        "switches",
    ]
    names = ("runs_per_s", "p50_ms", "p99_ms", "cpu_ms_per_run")
    counts = ("rpcs_per_run", "commits_per_run", "flushes_per_run", "switches_per_run")
    rows = [
        [
            load,
            *(shown(result, f"load_{load}.{name}") for name in names),
            *(median(result, f"load_{load}.{name}") for name in counts),
        ]
        for load in loads(result)
    ]
    failed = sum(sum(result.values(f"load_{load}.failed")) for load in loads(result))
    ended = sum(sum(result.values(f"load_{load}.runs")) for load in loads(result))
    return f"{table(head, rows)}\n\n{failed:,.0f} of {ended + failed:,.0f} runs failed."


def bill(result: Result) -> str:
    """CPU of one run by process, and RPCs served and commits by service."""
    numbers = loads(result)
    cpu = [
        [part, *(median(result, f"load_{load}.cpu_ms.{part}") for load in numbers)]
        for part in (*PARTS, CLIENT)
    ]
    work = [
        [
            area,
            *(median(result, f"load_{load}.rpcs.{area}") for load in numbers),
            *(median(result, f"load_{load}.commits.{area}") for load in numbers),
        ]
        for area in AREAS
    ]
    rpcs = [f"RPCs at {load}" for load in numbers]
    commits = [f"commits at {load}" for load in numbers]
    return "\n\n".join(
        [
            table(["CPU ms a run", *(f"at {load}" for load in numbers)], cpu),
            table(["A run, served by", *rpcs, *commits], work),
        ]
    )


def time(result: Result) -> str:
    """How the time of a load was spent: at work, and waiting for a core."""
    numbers = loads(result)
    head = ["Share in %"]
    head += [f"of a core at {load}" for load in numbers]
    head += [f"waiting for one at {load}" for load in numbers]
    rows = [
        [
            part,
            *(median(result, f"load_{load}.core_share.{part}", 100) for load in numbers),
            *(median(result, f"load_{load}.wait_share.{part}", 100) for load in numbers),
        ]
        for part in (*PARTS, CLIENT)
    ]
    idle = [median(result, f"load_{load}.idle_share", 100) for load in numbers]
    stolen = [median(result, f"load_{load}.stolen_share", 100) for load in numbers]
    blank = [""] * len(numbers)
    rows += [["machine idle, of all cores", *idle, *blank]]
    rows += [["taken by the hypervisor, of all cores", *stolen, *blank]]
    return table(head, rows)


CODE: Final = {
    "python": "the Python interpreter",
    "kernel": "the kernel: system calls, network, scheduling, disk",
    "grpc": "gRPC's C core, TLS included",
    "protobuf": "protobuf's C core",
    "event_loop": "uvloop and asyncio's C parts",
    "libc": "libc: memory, copying",
    "postgres": "PostgreSQL",
    "envoy": "Envoy",
    "cryptography": "signatures and hashes",
    "cedar": "Cedar",
    "other": "other libraries",
}


def native(result: Result) -> str:
    """Where the CPU of the mesh goes by kind of code, at 32 concurrent."""
    names = result.parts("native")
    if not names:
        return "`perf` was not installed, so native code was not sampled."
    rows = [[CODE[name], shown(result, f"native.{name}")] for name in names]
    return table(["Code that runs in the mesh, 32 concurrent", "% of its CPU"], rows)


# --------------------------------------------------------------------------------------- streams


def streams(result: Result) -> str:
    """Streamed events and text."""
    watchers = result.effort["watchers"]
    rows = [
        [f"events of running runs to {watchers} watchers", "events/s", "live.events_per_s"],
        ["from an event's time to its watcher, half of them", "ms", "live.delay_p50_ms"],
        ["from an event's time to its watcher, 99 of 100", "ms", "live.delay_p99_ms"],
        ["mesh CPU, the runs included", "µs an event", "live.cpu_us_per_event"],
        ["from an event's time to a watcher at its replica, alone", "ms", "latency.same_p50_ms"],
        ["the same, 99 of 100", "ms", "latency.same_p99_ms"],
        ["from an event's time to a watcher at another, alone", "ms", "latency.other_p50_ms"],
        ["the same, 99 of 100", "ms", "latency.other_p99_ms"],
        [f"an ended journal to {watchers} watchers", "events/s", "replayed.events_per_s"],
        ["mesh CPU", "µs an event", "replayed.cpu_us_per_event"],
        ["StreamGenerateText, 8 turns at once", "chunks/s", "text.chunks_per_s"],
        ["", "words/s", "text.words_per_s"],
        ["first chunk after the request", "ms", "text.first_chunk_p50_ms"],
        ["mesh CPU, the governed effect included", "µs a chunk", "text.cpu_us_per_chunk"],
    ]
    figures = table(
        ["Stream", "unit", "figure"], [[what, unit, shown(result, key)] for what, unit, key in rows]
    )
    kinds = (("live", "live"), ("replayed", "again"), ("text", "text"))
    shares = [
        [part, *(median(result, f"{kind}.core_share.{part}", 100) for kind, _ in kinds)]
        for part in (*PARTS, CLIENT)
    ]
    return "\n\n".join([figures, table(["% of a core", *(name for _, name in kinds)], shares)])


# ------------------------------------------------------------------------------ start and memory


def start(result: Result) -> str:
    """Start of the mesh, and of each service alone."""
    whole = (
        f"`remit up` on an empty folder: {shown(result, 'up.mesh_s')} s, "
        f"in which it takes {shown(result, 'up.cpu_s')} s of CPU."
    )
    rows = [
        [
            part,
            shown(result, f"up.ready_s.{_replica(part)}"),
            shown(result, f"start.ready_s.{part}"),
            median(result, f"start.cpu_s.{part}"),
        ]
        for part in ("postgres", "envoy", *AREAS)
    ]
    head = ["Part", "ready in `remit up`, s", "ready if started alone, s", "CPU s until then"]
    return f"{whole}\n\n{table(head, rows)}"


def memory(result: Result) -> str:
    """MiB by part, before and after load, and what 1,000 more runs add."""
    head = ["MiB", "RSS idle", "PSS idle", "RSS loaded", "PSS loaded", "PSS per 1,000 runs"]
    rows = [
        [
            part,
            median(result, f"memory_idle.rss_mib.{part}"),
            median(result, f"memory_idle.pss_mib.{part}"),
            median(result, f"memory_loaded.rss_mib.{part}"),
            median(result, f"memory_loaded.pss_mib.{part}"),
            median(result, f"memory.growth_pss_mib.{part}"),
        ]
        for part in (*PARTS, "mesh")
    ]
    idle = sum(result.spread(f"idle.core_share.{part}").median for part in PARTS)
    quiet = (
        f"While nobody asks anything, the mesh takes {number(idle * 100)} % of one core, serves "
        f"{median(result, 'idle.rpcs_per_s') if result.has('idle.rpcs_per_s') else 0} RPCs and "
        f"commits {median(result, 'idle.commits_per_s')} times a second."
    )
    return f"{table(head, rows)}\n\n{quiet}"


def _replica(part: str) -> str:
    return f"{part}-0" if part in AREAS else part


# ------------------------------------------------------------------------------ before and after

COMPARED: Final = (
    ("runs_per_s", "runs/s"),
    ("p50_ms", "p50 ms"),
    ("p99_ms", "p99 ms"),
    ("cpu_ms_per_run", "CPU ms a run"),
    ("rpcs_per_run", "RPCs a run"),
    ("commits_per_run", "commits a run"),
    ("flushes_per_run", "log flushes a run"),
    ("switches_per_run", "context switches a run"),
)
ALONE: Final = (
    ("call.list_envoy_key.p50_ms", "ListAgents with an API key, p50 ms"),
    ("call.list_envoy_key.calls_per_s", "the same, calls/s"),
    ("live.events_per_s", "events/s to watchers of running runs"),
    ("replayed.events_per_s", "events/s of an ended journal"),
    ("text.chunks_per_s", "chunks/s of streamed text"),
    ("up.mesh_s", "start of `remit up`, s"),
    ("memory_loaded.pss_mib.mesh", "memory after load, MiB"),
)


def before_and_after(before: Result, after: Result) -> str:
    """What the work on speed has changed as a whole."""
    rows = [
        _change(before, after, f"load_{load}.{name}", f"{load} concurrent: {meaning}")
        for load in loads(after)
        for name, meaning in COMPARED
    ]
    rows += [_change(before, after, name, meaning) for name, meaning in ALONE]
    how = (
        "Both were measured in turn by one run of the program; the ratio is of neighbours."
        if before.measured == after.measured
        else "They were measured by two runs of the program: the ratio is of the medians, and the "
        "machine's speed may differ."
    )
    head = ["", f"before (`{before.tree}`)", f"after (`{after.tree}`)", "after/before"]
    return f"{how}\n\n{table(head, rows)}"


def _change(before: Result, after: Result, name: str, meaning: str) -> list[str]:
    change = ratio(before, after, name)
    return [
        meaning,
        median(before, name),
        median(after, name),
        NOTHING if change is None else _marked(spread(change), is_unlikely(before, after, name)),
    ]


def _marked(text: str, marked: bool) -> str:  # noqa: FBT001 - told by its name
    """The first number of a cell in bold."""
    first, _, rest = text.partition(" ")
    return f"**{first}** {rest}".rstrip() if marked else text


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
