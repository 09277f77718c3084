"""A tracer whose spans stay in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from remit.telemetry.export import TraceOptions, Tracer, tracer_to
from remit.telemetry.spans import use_tracer
from remit.telemetry.trace import Trace, fresh, within
from tests.waiting import eventually


class Recorder:
    """What was recorded."""

    def __init__(self, tracer: Tracer, exporter: InMemorySpanExporter) -> None:
        self.tracer = tracer
        self._exporter = exporter
        self.root: Trace = replace(fresh(), sampled=True)
        """A place whose spans are recorded."""

    def all_spans(self) -> tuple[ReadableSpan, ...]:
        """Spans that ended."""
        self.tracer.flush()
        return self._exporter.get_finished_spans()

    async def span(self, name: str) -> ReadableSpan:
        """The span of a name, when it has ended: a server's ends after its answer was sent."""
        await eventually(lambda: name in self.spans())
        return self.spans()[name]

    def spans(self) -> dict[str, ReadableSpan]:
        """Spans that ended, by name."""
        return {span.name: span for span in self.all_spans()}


@contextlib.contextmanager
def recorded(*, ratio: float = 1.0, content_chars: int = 0) -> Iterator[Recorder]:
    """Records the spans of the body, which runs in a trace that is sampled."""
    exporter = InMemorySpanExporter()
    options = TraceOptions("http://unused:1", ratio, queue=1000, content_chars=content_chars)
    tracer = tracer_to(exporter, "test", "0", options)
    recorder = Recorder(tracer, exporter)
    use_tracer(tracer)
    try:
        with within(recorder.root):
            yield recorder
    finally:
        use_tracer(None)
        tracer.close(5.0)
