"""Tracing is off without an endpoint, and spans arrive at a real OTLP receiver with one."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

PROGRAM = """
import sys
from remit import telemetry
telemetry.configure_tracing(area="cost", replica="0", endpoint=sys.argv[1])
from opentelemetry import trace
with trace.get_tracer("test").start_as_current_span("a span"):
    pass
provider = trace.get_tracer_provider()
if hasattr(provider, "shutdown"):
    provider.shutdown()
print(type(provider).__name__)
"""

LOGGING = """
import logging
from remit import telemetry
telemetry.configure_logging(area="cost", replica="0", level="info")
telemetry.logger("m").info("an_event", n=1)
logging.getLogger("library").warning('it said "no"')
try:
    1 / 0
except ZeroDivisionError:
    telemetry.logger("m").exception("broke")
"""


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the names of spans and services."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str]] = []

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, _context: object
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
            self.spans += [
                (attributes["service.name"], span.name)
                for scope in resource.scope_spans
                for span in scope.spans
            ]
        return trace_service_pb2.ExportTraceServiceResponse()


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Tracing and logging are set up once a process, so each test has its own."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


def test_spans_are_exported_with_the_services_name() -> None:
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        run(PROGRAM, f"http://127.0.0.1:{port}")
    finally:
        server.stop(None)
    assert collector.spans == [("remit-cost", "a span")]


def test_without_an_endpoint_nothing_is_set_up() -> None:
    assert run(PROGRAM, "").stdout.strip() == "ProxyTracerProvider"


def test_every_log_line_is_one_json_object() -> None:
    lines = [json.loads(line) for line in run(LOGGING).stderr.splitlines()]
    assert [line["event"] for line in lines] == ["an_event", 'it said "no"', "broke"]
    assert lines[0]["service"] == "cost"
    assert lines[0]["n"] == 1
    assert "ZeroDivisionError" in lines[2]["exception"]
    assert all({"level", "timestamp"} <= set(line) for line in lines)
