"""A collector in the test process: OTLP over gRPC, kept in memory, with questions about traces."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2,
    trace_service_pb2_grpc,
)
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.ports import free_ports


@dataclass(frozen=True)
class Seen:
    """One span as it arrived."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for a root."""
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...]
    """(trace id, span id) of each."""
    failed: bool
    start_ns: int
    end_ns: int
    events: int
    text: str
    """The whole span as text."""


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it is sent."""

    endpoint: str
    spans: list[Seen] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _server: grpc.Server | None = None

    def listen(self) -> None:
        """Takes spans from now on."""
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4))
        add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        add(self, self._server)
        assert self._server.add_insecure_port(self.endpoint.removeprefix("http://"))
        self._server.start()

    def stop(self) -> None:
        """Is gone, as after a crash."""
        if self._server is not None:
            self._server.stop(None).wait()
        self._server = None

    def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any) -> Any:
        """Takes a batch."""
        del context
        found = [
            _seen(_plain(resource.resource.attributes).get("service.name", ""), span)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self.spans += found
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace(self, trace_id: str) -> list[Seen]:
        """What arrived of one trace so far."""
        with self._lock:
            return [span for span in self.spans if span.trace_id == trace_id]

    def everything(self) -> list[Seen]:
        """What arrived so far."""
        with self._lock:
            return list(self.spans)


@contextlib.contextmanager
def running_collector(port: int | None = None) -> Iterator[Collector]:
    """A collector on a free port, or on this one."""
    chosen = port or free_ports(1)[0]
    collector = Collector(f"http://127.0.0.1:{chosen}")
    collector.listen()
    try:
        yield collector
    finally:
        collector.stop()


def orphans(spans: list[Seen], *, outside: tuple[str, ...] = ()) -> list[Seen]:
    """Spans whose parent did not arrive; `outside` are ids of the client's own spans."""
    known = {span.span_id for span in spans} | set(outside)
    return [span for span in spans if span.parent_id and span.parent_id not in known]


def above(span: Seen, spans: list[Seen]) -> list[Seen]:
    """The ancestors of a span, the nearest first."""
    by_id = {other.span_id: other for other in spans}
    found = []
    while (parent := by_id.get(span.parent_id)) is not None:
        found.append(parent)
        span = parent
    return found


def _seen(service: str, span: trace_pb2.Span) -> Seen:
    return Seen(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_plain(span.attributes),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        events=len(span.events),
        text=str(span),
    )


def _plain(attributes: Any) -> dict[str, Any]:
    return {a.key: _value(a.value) for a in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None
