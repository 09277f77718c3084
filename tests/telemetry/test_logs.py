"""Log lines: one JSON object each, with ids, without content."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from typing import Any

import pytest

from tests.waiting import PATIENCE

LOGGING = """
import logging
from remit import telemetry
from remit.telemetry import fresh, within
from remit.telemetry.trace import Trace, for_runs
telemetry.configure_logging(area="cost", replica="0", level="info", content=CONTENT)
log = telemetry.logger("remit.cost.ledger")
log.debug("not_logged")
log.info("an_event", n=1)
logging.getLogger("library").warning('it said "no"')
try:
    int("secret")
except ValueError:
    log.exception("broke_in_background")
with within(Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", runs=("runs/a",))):
    log.info("of_a_call", stack_info=True)
    logging.getLogger("library").warning("of a library, in a call")
    try:
        int("secret")
    except ValueError as error:
        try:
            from remit.api.errors.v1 import error_reason_pb2 as reasons
            from remit.rpc.errors import RemitError
            raise RemitError(reasons.ERROR_REASON_INTERNAL, "our own words") from error
        except RemitError:
            log.exception("broke_in_a_call")
with within(for_runs(None, ["runs/a", "runs/b"])):
    log.info("of_a_batch")
    log.info("of_one_item", run="runs/b")
from remit.telemetry.logs import own_text
log.info("of_a_tool", error=own_text(RemitError(reasons.ERROR_REASON_TOOL_FAILED, "secret")))
telemetry.name_service("audit")
log.info("of_another_service")
"""


@functools.cache
def logged(*, content: bool = False) -> dict[str, dict[str, Any]]:
    """Logging is set up once a process, so each way of it has its own."""
    done = subprocess.run(
        [sys.executable, "-c", LOGGING.replace("CONTENT", str(content))],
        capture_output=True,
        text=True,
        check=True,
        timeout=60 * PATIENCE,
    )
    return {line["event"]: line for line in map(json.loads, done.stderr.splitlines())}


def test_every_line_tells_level_logger_time_and_service() -> None:
    lines = logged()
    assert "not_logged" not in lines
    for line in lines.values():
        assert {"level", "logger", "timestamp", "service", "replica"} <= set(line)
        assert line["timestamp"].endswith("Z")
        assert line["timestamp"][10] == "T"
    assert lines["an_event"]["logger"] == "remit.cost.ledger"
    assert lines["an_event"]["n"] == 1
    assert "trace_id" not in lines["an_event"]
    assert lines['it said "no"']["logger"] == "library"
    assert lines["an_event"]["service"] == "cost"
    assert lines["of_another_service"]["service"] == "audit"


def test_what_a_call_causes_bears_its_ids_libraries_included() -> None:
    lines = logged()
    for event in ("of_a_call", "of a library, in a call", "broke_in_a_call"):
        assert lines[event]["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
        assert lines[event]["span_id"] == "b7ad6b7169203331"
        assert lines[event]["run"] == "runs/a"
    assert lines["of_a_batch"]["runs"] == ["runs/a", "runs/b"]
    assert lines["of_one_item"]["run"] == "runs/b"
    assert "runs" not in lines["of_one_item"]


def test_an_exception_of_a_call_keeps_its_stack_and_loses_its_text() -> None:
    lines = logged()
    told = lines["broke_in_a_call"]["exception"]
    assert "secret" not in told
    assert "builtins.ValueError: (text withheld)" in told
    assert "our own words" in told
    assert 'File "<string>", line' in told
    assert told.index("ValueError") < told.index("RemitError")
    assert "secret" in lines["broke_in_background"]["exception"]
    assert "Stack (most recent call last)" in lines["of_a_call"]["stack"]


def test_with_content_the_text_stays() -> None:
    assert "secret" in logged(content=True)["broke_in_a_call"]["exception"]
    assert logged(content=True)["of_a_tool"]["error"] == "secret"
    assert logged()["of_a_tool"]["error"] == "(text withheld)"


UNHANDLED = """
import asyncio, gc
import uvloop
from remit import telemetry
from remit.telemetry import fresh, within
telemetry.configure_logging(area="cost", replica="0", level="info", content=CONTENT)

def fails(text):
    raise ValueError(text)

async def fails_later():
    fails("secret")

async def main():
    telemetry.watch_loop()
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(fails_later(), name="later")
    loop.call_soon(fails, "secret")
    await asyncio.wait([task])
    with within(fresh()):
        del task
        gc.collect()
    future = loop.create_future()
    future.set_exception(ValueError("secret"))
    del future
    gc.collect()

RUN(main())
"""


@pytest.mark.parametrize("run", ["asyncio.run", "uvloop.run"])
@pytest.mark.parametrize("content", [False, True])
def test_what_nobody_waited_for_is_told_by_its_type(*, content: bool, run: str) -> None:
    script = UNHANDLED.replace("CONTENT", str(content)).replace("RUN", run)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60 * PATIENCE,
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["event"], line["what"], line.get("task")) for line in lines] == [
        ("unhandled", "Exception in callback", None),
        ("unhandled", "Task exception was never retrieved", "later"),
        ("unhandled", "Future exception was never retrieved", None),
    ]
    assert {line["error_type"] for line in lines} == {"ValueError"}
    assert not [line for line in lines if "trace_id" in line]
    assert all("ValueError" in line["exception"] for line in lines)
    assert ("secret" in done.stderr) is content
    assert "in fails" in lines[0]["exception"]
