"""Logs and spans are one JSON object a line."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
from remit import telemetry
telemetry.configure_tracing(area="cost", replica="0")
from opentelemetry import trace
with trace.get_tracer("test").start_as_current_span("a span"):
    pass
trace.get_tracer_provider().shutdown()
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


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Tracing and logging are set up once a process, so each test has its own."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


def test_a_span_is_one_line_of_the_log_with_the_services_name() -> None:
    (line,) = run(PROGRAM).stderr.splitlines()
    span = json.loads(line)
    assert span["name"] == "a span"
    assert span["resource"]["attributes"]["service.name"] == "remit-cost"


def test_every_log_line_is_one_json_object() -> None:
    lines = [json.loads(line) for line in run(LOGGING).stderr.splitlines()]
    assert [line["event"] for line in lines] == ["an_event", 'it said "no"', "broke"]
    assert lines[0]["service"] == "cost"
    assert lines[0]["n"] == 1
    assert "ZeroDivisionError" in lines[2]["exception"]
    assert all({"level", "timestamp"} <= set(line) for line in lines)
