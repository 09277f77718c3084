"""In which trace a piece of work stands, and for which runs it is done.

A trace context follows the work through tasks, into log lines and into the metadata of RPCs (W3C
Trace Context, https://www.w3.org/TR/trace-context/). It is there whether spans are exported or not:
the ids in the logs of every service are the same either way.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from remit.telemetry.spans import Span

MAX_RUNS: Final = 16
"""Runs that a batch names in its metadata and in log lines, at most: those of a whole batch would
fill most of the 8 KiB that gRPC gives the metadata of an RPC, which a remit needs too."""
MAX_LINKS: Final = 256
"""Spans that the span of a batch links to, at most: as many as effects may share an RPC."""

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_RUN: Final = re.compile(r"runs/[0-9a-f-]{36}")
_SAMPLED: Final = 0x01
_NO_VERSION: Final = "ff"
_FIRST_VERSION: Final = "00"


@dataclass(frozen=True, slots=True)
class Trace:
    """Where a piece of work stands."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits: the span below which new ones begin, here or in another service."""
    sampled: bool = False
    """Whether the spans of this trace are recorded."""
    runs: tuple[str, ...] = ()
    """`runs/{run}` that the work is done for; several where effects share an RPC."""
    others: tuple[Trace, ...] = ()
    """Of a batch: where its other items stand. Its span links to theirs."""
    remote: str = ""
    """The traceparent that came with the call being served, if it was valid."""
    span: Span | None = field(default=None, compare=False, repr=False)
    """The span of `span_id`, where it is recorded here."""

    @property
    def traceparent(self) -> str:
        """The W3C header that continues this trace."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


_current: contextvars.ContextVar[Trace | None] = contextvars.ContextVar("remit_trace", default=None)


def current() -> Trace | None:
    """Where the current work stands; None in background work, which belongs to no trace."""
    return _current.get()


def enter(trace: Trace | None) -> None:
    """Makes `trace` the current one for the rest of what `within` began, or of the task."""
    _current.set(trace)


@contextlib.contextmanager
def within(trace: Trace | None) -> Iterator[None]:
    """Makes `trace` the current one for the body."""
    reset = _current.set(trace)
    try:
        yield
    finally:
        # A generator that nobody finished is closed by a task with a context of its own.
        with contextlib.suppress(ValueError):
            _current.reset(reset)


def fresh(runs: tuple[str, ...] = ()) -> Trace:
    """A new trace that is not recorded, for log lines alone."""
    return Trace(secrets.token_hex(16), secrets.token_hex(8), runs=runs)


def parse(traceparent: str) -> Trace | None:
    """The context that a traceparent names; None for anything that the W3C calls invalid."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == _NO_VERSION or (version == _FIRST_VERSION and rest):
        return None
    if not (trace_id.strip("0") and span_id.strip("0")):
        return None
    sampled = bool(int(flags, 16) & _SAMPLED)
    return Trace(trace_id, span_id, sampled, remote=traceparent)


def runs_of(header: str) -> tuple[str, ...]:
    """The runs that a calling service names in its metadata; what is no run is left out."""
    return tuple(run for run in header.split(",", MAX_RUNS)[:MAX_RUNS] if _RUN.fullmatch(run))


def for_runs(trace: Trace | None, runs: Iterable[str]) -> Trace:
    """The same place in a trace (or a new trace), for these runs."""
    named = tuple(run for run in runs if run)
    return fresh(named) if trace is None else replace(trace, runs=named)


def resumed(trace_id: str, run: str) -> Trace:
    """What is left to do of a trace whose spans have ended: its id in log lines, no spans."""
    place = fresh((run,) if run else ())
    is_id = parse(f"00-{trace_id}-{place.span_id}-00") is not None
    return replace(place, trace_id=trace_id) if is_id else place


def together(traces: Sequence[Trace | None]) -> Trace | None:
    """Where a batch stands: at its first recorded item, with links to the others.

    None where no item stands anywhere.
    """
    if len(traces) == 1:
        return traces[0]
    known = [trace for trace in traces if trace is not None]
    if not known:
        return None
    first = next((trace for trace in known if trace.sampled), known[0])
    others = tuple(t for t in known if t.sampled and t.span_id != first.span_id)[:MAX_LINKS]
    runs = tuple(dict.fromkeys(run for trace in known for run in trace.runs))[:MAX_RUNS]
    return replace(first, runs=runs, others=others)
