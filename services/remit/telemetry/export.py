"""Spans leave by OTLP over gRPC: sampled, batched, bounded, and never in the way of a call.

A thread of its own sends them. While the collector is down or slow, spans wait in a queue of fixed
length and the oldest are lost; the log says so once in a while. Nothing of this reaches a call.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Final

import grpc
from opentelemetry import propagate
from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.grpc import aio_server_interceptor
from opentelemetry.propagators.textmap import CarrierT, Getter, default_getter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.status import Status, StatusCode

from remit import telemetry
from remit.rpc.calls import TRACE_KEY
from remit.rpc.metrics import SPANS_LOST
from remit.telemetry import table
from remit.telemetry.spans import UNRECORDED, Kind, Span, Value
from remit.telemetry.trace import MAX_LINKS, Trace, within

SEND_TIMEOUT_S: Final = 5.0
"""Longest that one batch may take; a collector that never answers costs a thread this long."""
BATCH_SPANS: Final = 512
SEND_EVERY_S: Final = 1.0
SAY_EVERY_S: Final = 60.0
"""How often the log says that spans are being lost."""
SCHEMA_URL: Final = f"https://opentelemetry.io/schemas/{table.CONVENTIONS}"
_KINDS: Final = {
    Kind.INTERNAL: otel.SpanKind.INTERNAL,
    Kind.CLIENT: otel.SpanKind.CLIENT,
}
_SERVER_FAULTS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Codes that say that the server failed (semantic conventions for gRPC); the others are answers."""
_NOISY: Final = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.sdk._shared_internal",
)

log = telemetry.logger(__name__)


@dataclass(frozen=True)
class TraceOptions:
    """Where spans go and how many."""

    endpoint: str
    """`http://host:port` of an OTLP collector (gRPC), or `https://`."""
    ratio: float
    """Share of traces that begin here and are recorded; one that comes with a call is followed."""
    queue: int
    """Spans that wait for the collector, at most."""
    content_chars: int = 0
    """Most characters of prompts, answers, arguments and results on a span; 0: none at all."""


class Tracer:
    """Makes the spans of one service."""

    def __init__(self, provider: TracerProvider, ids: ChosenIds, content_chars: int) -> None:
        self._provider = provider
        self._ids = ids
        self._tracer = provider.get_tracer("remit", schema_url=SCHEMA_URL)
        self.content_chars = content_chars

    def start(
        self,
        name: str,
        *,
        kind: Kind,
        parent: Trace,
        attributes: Mapping[str, Value],
        start_time_ns: int | None = None,
        span_id: str = "",
    ) -> Span:
        """A span below `parent`. `span_id` names it where others knew the name before it began."""
        with self._ids.next(span_id):
            made = self._tracer.start_span(
                name,
                context=_context(parent),
                kind=_KINDS[kind],
                attributes=dict(attributes),
                links=[otel.Link(_span_context(other)) for other in parent.others],
                start_time=start_time_ns,
            )
        return _Recorded(made, parent) if made.is_recording() else UNRECORDED

    @contextlib.contextmanager
    def current(self, span: Span) -> Iterator[None]:
        """Shows the span to libraries that a tool brings and that make spans of their own."""
        made = span.made if isinstance(span, _Recorded) else otel.INVALID_SPAN
        with otel.use_span(made, record_exception=False, set_status_on_exception=False):
            yield

    def served(self) -> Trace | None:
        """Where the call stands that the instrumentation has just begun to serve here."""
        span = otel.get_current_span()
        context = span.get_span_context()
        if not context.is_valid:
            return None
        trace = Trace(
            otel.format_trace_id(context.trace_id),
            otel.format_span_id(context.span_id),
            sampled=context.trace_flags.sampled,
        )
        if not span.is_recording():
            return trace
        return replace(trace, span=_Recorded(span, trace))

    def call_failed(self, reason: str, code: grpc.StatusCode) -> None:
        """Marks the span of the call that is served; the instrumentation does not see details."""
        span = otel.get_current_span()
        if span.is_recording():
            span.set_attribute(table.ERROR_TYPE, reason)
            span.set_attribute(table.RPC_GRPC_STATUS_CODE, code.value[0])
            if code in _SERVER_FAULTS:
                span.set_status(Status(StatusCode.ERROR))

    def server_interceptor(self, filter_: Callable[[object], bool]) -> object:
        """The instrumentation of served calls; `filter_` tells which calls get a span."""
        make: Callable[..., object] = aio_server_interceptor
        return make(tracer_provider=self._provider, filter_=filter_)

    def flush(self) -> None:
        """Sends what waits, and waits for the collector."""
        self._provider.force_flush()

    def close(self, timeout_s: float) -> None:
        """Sends what waits, for at most so long: a collector that is away delays no exit."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(timeout_s)


def open_tracer(area: str, replica: str, options: TraceOptions) -> Tracer:
    """The tracer of a service, whose spans go to the collector of `options`."""
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # `Losses` says it, once in a while
    exporter = OTLPSpanExporter(endpoint=options.endpoint, timeout=SEND_TIMEOUT_S)
    return tracer_to(exporter, area, replica, options)


def tracer_to(exporter: SpanExporter, area: str, replica: str, options: TraceOptions) -> Tracer:
    """The tracer of a service over an exporter."""
    propagate.set_global_textmap(TraceparentAlone())
    ids = ChosenIds()
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(options.ratio)),
        resource=Resource.create(
            {"service.name": f"remit-{area}", "service.instance.id": f"{area}-{replica}"}
        ),
        shutdown_on_exit=False,
        id_generator=ids,
        # An event would be an exception with its text, which may quote what a user sent.
        span_limits=SpanLimits(max_events=0, max_links=MAX_LINKS),
    )
    provider.add_span_processor(_NamesService(area))
    losses = Losses(area, options.endpoint)
    provider.add_span_processor(_Queue(Reporting(exporter, losses), losses, options.queue))
    return Tracer(provider, ids, options.content_chars)


class TraceparentAlone(TraceContextTextMapPropagator):
    """Reads `traceparent` of a call, and nothing else.

    What clients send as baggage or `tracestate` is nobody's business here: it would stand on spans,
    and where it is malformed, in the log.
    """

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        """The context of a call."""
        return super().extract(carrier, context, _OfOne(getter))


class _OfOne(Getter[CarrierT]):
    """Knows no header but `traceparent`."""

    def __init__(self, getter: Getter[CarrierT]) -> None:
        self._getter = getter

    def get(self, carrier: CarrierT, key: str) -> list[str] | None:
        return self._getter.get(carrier, key) if key == TRACE_KEY else None

    def keys(self, carrier: CarrierT) -> list[str]:
        return [key for key in self._getter.keys(carrier) if key == TRACE_KEY]


class _NamesService(SpanProcessor):
    """Puts the service on each span: some viewers keep nothing of the resource."""

    def __init__(self, area: str) -> None:
        self._area = area

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        """Names the service."""
        del parent_context
        span.set_attribute(table.SERVICE, self._area)


class ChosenIds(RandomIdGenerator):
    """Random ids, but for a span whose id was told to others before it begins."""

    def __init__(self) -> None:
        self._next = ""

    @contextlib.contextmanager
    def next(self, span_id: str) -> Iterator[None]:
        """Gives the span that the body starts this id, unless it is empty."""
        self._next = span_id
        try:
            yield
        finally:
            self._next = ""

    def generate_span_id(self) -> int:
        """The id of a new span."""
        return int(self._next, 16) if self._next else super().generate_span_id()


class Losses:
    """Counts spans that are lost, and says so in the log once in a while."""

    def __init__(
        self, area: str, endpoint: str, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._endpoint = endpoint
        self._monotonic = monotonic
        self._counter = SPANS_LOST.labels(area)
        # Batches are refused to a thread of their own, and the queue is full for whoever ends one.
        self._lock = threading.Lock()
        self._lost = 0
        self._said = False
        self._dropping = False
        self._say_after = -math.inf

    def refused(self, count: int) -> None:
        """The collector did not take a batch."""
        with self._lock:
            self._lose(count)

    def dropped(self) -> None:
        """The queue was full."""
        with self._lock:
            self._dropping = True
            self._lose(1)

    def taken(self) -> None:
        """The collector took a batch: losses have ended, unless the queue was full since."""
        with self._lock:
            if self._said and not self._dropping:
                self._say(log.info, "spans_taken_again")
                self._lost, self._said = 0, False
            self._dropping = False

    def _lose(self, count: int) -> None:
        self._lost += count
        self._counter.inc(count)
        now = self._monotonic()
        if now >= self._say_after:
            self._say_after = now + SAY_EVERY_S
            self._said = True
            self._say(log.warning, "spans_lost")

    def _say(self, say: Callable[..., object], event: str) -> None:
        with within(None):  # it is no matter of the call whose span found no place
            say(event, endpoint=self._endpoint, lost=self._lost)


class _Queue(BatchSpanProcessor):
    """The SDK's queue; what it drops because it is full is counted."""

    def __init__(self, exporter: SpanExporter, losses: Losses, size: int) -> None:
        super().__init__(
            exporter,
            max_queue_size=size,
            schedule_delay_millis=SEND_EVERY_S * 1000,
            max_export_batch_size=min(BATCH_SPANS, size),
        )
        self._losses = losses
        self._size = size
        # The SDK tells nobody else. Looked up here, where a change of its names stops the start.
        self._waiting: Sized = self._batch_processor._queue  # noqa: SLF001

    def on_end(self, span: ReadableSpan) -> None:
        """Keeps the span for the next batch, in the place of the oldest one if there is none."""
        if len(self._waiting) >= self._size and span.context.trace_flags.sampled:
            self._losses.dropped()
        super().on_end(span)


class Reporting(SpanExporter):
    """Tells of the batches that the collector does not take."""

    def __init__(self, exporter: SpanExporter, losses: Losses) -> None:
        self._exporter = exporter
        self._losses = losses

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends a batch; what the collector does not take is lost."""
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._losses.taken()
        else:
            self._losses.refused(len(spans))
        return result

    def shutdown(self) -> None:
        """Stops sending."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is kept here."""
        return self._exporter.force_flush(timeout_millis)


class _Recorded:
    """A span of the SDK under the services' own names."""

    def __init__(self, made: otel.Span, parent: Trace) -> None:
        self.made = made
        context = made.get_span_context()
        self.place: Trace | None = replace(
            parent,
            trace_id=otel.format_trace_id(context.trace_id),
            span_id=otel.format_span_id(context.span_id),
            others=(),
            span=self,
        )

    def set(self, name: str, value: Value | None) -> None:
        if value is not None and self.made.is_recording():
            self.made.set_attribute(name, value)

    def failed(self, error_type: str) -> None:
        if self.made.is_recording():
            self.made.set_attribute(table.ERROR_TYPE, error_type)
            self.made.set_status(Status(StatusCode.ERROR))

    def rename(self, name: str) -> None:
        if self.made.is_recording():
            self.made.update_name(name)

    def link(self, to: Trace) -> None:
        if self.made.is_recording():
            self.made.add_link(_span_context(to))

    def end(self, end_time_ns: int | None = None) -> None:
        if self.made.is_recording():
            self.made.end(end_time_ns)


def _context(parent: Trace) -> Context:
    return otel.set_span_in_context(otel.NonRecordingSpan(_span_context(parent)), Context())


def _span_context(place: Trace) -> otel.SpanContext:
    return otel.SpanContext(
        trace_id=int(place.trace_id, 16),
        span_id=int(place.span_id, 16),
        is_remote=False,
        trace_flags=otel.TraceFlags(
            otel.TraceFlags.SAMPLED if place.sampled else otel.TraceFlags.DEFAULT
        ),
    )
