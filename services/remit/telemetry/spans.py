"""Spans as the services see them: opened around a piece of work, given counts, closed with it.

A span is recorded only below one that is: background work has none, and a call that is not sampled
costs a look at a variable. The OpenTelemetry SDK is behind `export`, loaded where a collector is
named.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from remit.telemetry import table
from remit.telemetry.trace import Trace, current, enter, for_runs, fresh, parse, runs_of, within

if TYPE_CHECKING:
    from remit.rpc.errors import RemitError
    from remit.telemetry.export import Tracer

T = TypeVar("T")
Value = str | bool | int | float | tuple[str, ...]


class Kind(Enum):
    """What a span stands for: work in this process, a call made, or a call served."""

    INTERNAL = "INTERNAL"
    CLIENT = "CLIENT"


class Span(Protocol):
    """A span that is open. Names of attributes come from `table`."""

    @property
    def place(self) -> Trace | None:
        """What begins below this span stands here; None if it is not recorded."""
        ...

    def set(self, name: str, value: Value | None) -> None:
        """Sets an attribute; None leaves it out."""
        ...

    def failed(self, error_type: str) -> None:
        """Marks the work as failed. `error_type` is a reason or a type, never a text."""
        ...

    def rename(self, name: str) -> None:
        """Gives the span another name."""
        ...

    def link(self, to: Trace) -> None:
        """Says that another span belongs to the same matter."""
        ...

    def end(self, end_time_ns: int | None = None) -> None:
        """Ends the span; what follows is not recorded."""
        ...


class _Unrecorded:
    """Stands for the spans of work that is not sampled."""

    place: Trace | None = None

    def set(self, name: str, value: Value | None) -> None:
        """Nothing."""

    def failed(self, error_type: str) -> None:
        """Nothing."""

    def rename(self, name: str) -> None:
        """Nothing."""

    def link(self, to: Trace) -> None:
        """Nothing."""

    def end(self, end_time_ns: int | None = None) -> None:
        """Nothing."""


UNRECORDED: Span = _Unrecorded()

_tracer: contextvars.ContextVar[Tracer | None] = contextvars.ContextVar(
    "remit_tracer", default=None
)


def use_tracer(tracer: Tracer | None) -> None:
    """Records spans with this tracer from now on, in this task and all that it begins."""
    _tracer.set(tracer)


def current_tracer() -> Tracer | None:
    """The tracer of this service; None where no collector is named."""
    return _tracer.get()


def recording(trace: Trace | None) -> Tracer | None:
    """The tracer that records what begins at this place; None where nothing is recorded."""
    return _tracer.get() if trace is not None and trace.sampled else None


def start(
    name: str, *, kind: Kind = Kind.INTERNAL, attributes: Mapping[str, Value] | None = None
) -> Span:
    """A span below the current one, which the caller ends. It does not become the current one."""
    place = current()
    tracer = recording(place)
    if tracer is None or place is None:
        return UNRECORDED
    return tracer.start(name, kind=kind, parent=place, attributes=attributes or {})


@contextlib.contextmanager
def span(
    name: str, *, kind: Kind = Kind.INTERNAL, attributes: Mapping[str, Value] | None = None
) -> Iterator[Span]:
    """A span around the body, below the current one and the current one for the body.

    What the body raises marks it as failed, by its reason or type.
    """
    opened = start(name, kind=kind, attributes=attributes)
    if opened is UNRECORDED:
        yield opened
        return
    tracer = _tracer.get()
    assert tracer is not None  # noqa: S101 - it made the span
    try:
        with within(opened.place), tracer.current(opened):
            yield opened
    except BaseException as error:
        opened.failed(error_type_of(error))
        raise
    finally:
        opened.end()


async def in_span(name: str, work: Coroutine[Any, Any, T]) -> T:
    """Does work in a span of its own."""
    with span(name):
        return await work


def annotate(name: str, value: Value | None) -> None:
    """Sets an attribute of the current span, if one is recorded here."""
    place = current()
    if place is not None and place.span is not None:
        place.span.set(name, value)


def work_failed(error_type: str) -> None:
    """Marks the current span, if one is recorded here, for a failure that is no exception there."""
    place = current()
    if place is not None and place.span is not None:
        place.span.failed(error_type)


def served(traceparent: str, runs: str) -> Trace:
    """Where the call being served stands: in its caller's trace, or in a new one.

    `runs` is the header by which a service names the runs that the call is for.
    """
    remote = parse(traceparent)
    tracer = _tracer.get()
    place = (tracer.served() if tracer is not None else None) or remote or fresh()
    if not runs and (remote is None or place is remote):
        return place  # it says all of that already
    return replace(place, runs=runs_of(runs), remote=remote.remote if remote is not None else "")


def name_runs(*runs: str) -> None:
    """Says for which runs the current work is done: their names go into its log lines and RPCs."""
    enter(for_runs(current(), runs))


def call_failed(error: RemitError) -> None:
    """Marks the span of the call being served. It is the server's failure by its code alone."""
    tracer = _tracer.get()
    if tracer is not None:
        tracer.call_failed(error.reason_name, error.code)


def error_type_of(error: BaseException) -> str:
    """What tells errors apart without telling content: a reason, or the exception's type."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "CANCELLED"
    return str(getattr(error, "reason_name", type(error).__name__))


@contextlib.contextmanager
def client_span(path: str) -> Iterator[Trace | None]:
    """The span of an RPC that this process makes; gives the place that the called one continues.

    The span of a batch stands below its first item and links to the others, and they link to it.
    The instrumentation's client interceptors are not used: of a call that its caller cancels they
    never end the span, of a stream that is left early only when it is collected, and they take a
    task for each call whether it is recorded or not.
    """
    place = current()
    tracer = recording(place)
    if tracer is None or place is None:
        yield place
        return
    service, _, method = path.removeprefix("/").partition("/")
    attributes = {table.RPC_SYSTEM: "grpc", table.RPC_SERVICE: service, table.RPC_METHOD: method}
    opened = tracer.start(path, kind=Kind.CLIENT, parent=place, attributes=attributes)
    for other in place.others:
        if other.span is not None and opened.place is not None:
            other.span.link(opened.place)
    try:
        yield replace(opened.place, runs=place.runs) if opened.place else place
    except GeneratorExit:
        opened.set(table.RPC_GRPC_STATUS_CODE, 1)  # the caller wanted no more of a stream
        raise
    except BaseException as error:
        opened.set(table.RPC_GRPC_STATUS_CODE, status_code_of(error))
        opened.failed(error_type_of(error))
        raise
    else:
        opened.set(table.RPC_GRPC_STATUS_CODE, 0)
    finally:
        opened.end()


def status_code_of(error: BaseException) -> int:
    """The number of the canonical code: 1 (CANCELLED) or an error's own, 2 (UNKNOWN) if none."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return 1
    code = getattr(error, "code", None)
    value = getattr(code, "value", None)
    return int(value[0]) if isinstance(value, tuple) else 2
