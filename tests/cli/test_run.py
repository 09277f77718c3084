"""`remit run`: asks, follows, resumes, cancels, and ends with a code that means something."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.errors.v1.error_reason_pb2 import ErrorReason
from remit.cli.run import exit_code_of
from remit.rpc.errors import RemitError
from tests.cli.conftest import API_KEY, Remit
from tests.cli.edge_server import EdgeServer
from tests.cli.journals import COST_NANOS, RUN, ended_run, journal, responses
from tests.waiting import eventually, in_time

UNAVAILABLE = RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "socket closed")


def whole(end: run_pb2.Run | None = None) -> Any:
    return lambda request: responses(journal(end), request.after_sequence)


def test_a_run_ends_with_answer_tokens_cost_and_position(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["StreamRun"] = whole()
    outcome = remit("run", "What is 17 * 23?")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert "17 * 23 = 391" in lines
    assert "tokens  1,460 in, 14 out, 3 calls" in lines
    assert "cost    0.0000768 USD" in lines
    assert f"audit   leaf 5; remit audit list --run {RUN}" in lines
    assert outcome.err == ""


def test_everything_that_was_asked_for_is_sent(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["StreamRun"] = whole()
    options = ("--agent", "clerk", "-c", "a=1", "-c", "b=x=y", "--max-cost", "0.05")
    remit("run", "Do it.", *options, "--max-steps", "3", "--timeout", "2min", "--request-id", "r1")
    request = edge.requests("StreamRun")[0].request
    assert (request.agent, request.task) == ("agents/clerk", "Do it.")
    assert dict(request.context) == {"a": "1", "b": "x=y"}
    assert request.limits.max_cost_nanos == 50_000_000
    assert request.limits.max_steps == 3
    assert request.limits.max_duration.seconds == 120
    assert request.request_id == "r1"


def test_what_was_not_asked_for_is_absent(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["StreamRun"] = whole()
    remit("run", "Do it.")
    request = edge.requests("StreamRun")[0].request
    assert request.agent == "agents/assistant"
    assert not request.limits.HasField("max_cost_nanos")
    assert not request.limits.HasField("max_steps")
    assert not request.limits.HasField("max_duration")
    assert 1 <= len(request.request_id) <= 64


def test_a_detached_run_is_named_and_left(remit: Remit, edge: EdgeServer) -> None:
    accepted = run_pb2.Run(name=RUN, state=run_pb2.RUN_STATE_QUEUED, priority=1)
    edge.answers["CreateRun"] = lambda _: agent_service_pb2.CreateRunResponse(run=accepted)
    begun = datetime.now(UTC)
    outcome = remit("run", "Do it.", "--detach", "--priority", "1", "--at", "2h")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{RUN}\n", "")
    (request,) = edge.requests("CreateRun")
    assert request.priority == 1
    later_s = request.schedule_time.ToDatetime(UTC) - begun
    assert timedelta(hours=2) <= later_s < timedelta(hours=3)
    (document,) = remit("run", "Do it.", "--detach", "--json").documents
    assert document["run"]["name"] == RUN
    assert not edge.requests("CreateRun")[1].HasField("schedule_time")


def test_a_priority_that_there_is_not_is_a_wrong_command_line(remit: Remit) -> None:
    assert remit("run", "Do it.", "--priority", "6").code == 2


def test_a_scheduled_run_says_when_it_starts(remit: Remit, edge: EdgeServer) -> None:
    events = journal()
    events[0].created.run.schedule_time.FromJsonString("2026-11-23T15:00:00Z")
    edge.answers["StreamRun"] = lambda request: responses(events, request.after_sequence)
    outcome = remit("run", "Do it.", "--at", "2026-11-23T15:00:00Z")
    assert "starts at 2026-11-23" in outcome.out


def test_the_task_may_come_from_standard_input(
    remit: Remit, edge: EdgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge.answers["StreamRun"] = whole()
    monkeypatch.setattr(sys, "stdin", io.StringIO("a long task\n"))
    remit("run", "-")
    assert edge.requests("StreamRun")[0].request.task == "a long task\n"


def test_machines_get_an_object_for_each_event_and_a_summary(
    remit: Remit, edge: EdgeServer
) -> None:
    edge.answers["StreamRun"] = whole()
    documents = remit("run", "What is 17 * 23?", "--json").documents
    assert [d["sequence"] for d in documents[:-1]] == list(range(1, 14))
    assert documents[8]["type"] == "tool_call_started"
    assert documents[8]["tool_call_started"]["arguments"] == {"expression": "17 * 23"}
    assert documents[-1]["type"] == "summary"
    assert documents[-1]["cost_nanos"] == COST_NANOS


def test_a_broken_stream_is_resumed_with_the_same_request(remit: Remit, edge: EdgeServer) -> None:
    def breaking(request: Any) -> Any:
        for response in responses(journal(), request.after_sequence):
            if response.sequence == 6 and request.after_sequence == 0:
                raise UNAVAILABLE
            yield response

    edge.answers["StreamRun"] = breaking
    outcome = remit("run", "What is 17 * 23?")
    first, second = edge.requests("StreamRun")
    assert outcome.code == 0
    assert first.request == second.request
    assert (first.after_sequence, second.after_sequence) == (0, 5)
    assert "the connection broke after event 5: socket closed; the run goes on" in outcome.out
    assert outcome.out.count("→ calculator") == 1


def test_machines_are_told_of_a_resumption(remit: Remit, edge: EdgeServer) -> None:
    def breaking(request: Any) -> Any:
        rest = responses(journal(), request.after_sequence)
        yield from rest if request.after_sequence else rest[:3]
        if not request.after_sequence:
            raise UNAVAILABLE

    edge.answers["StreamRun"] = breaking
    documents = remit("run", "What is 17 * 23?", "--json").documents
    (resuming,) = [d for d in documents if d["type"] == "resuming"]
    assert resuming["after_sequence"] == 2
    assert resuming["error"]["message"] == "socket closed"
    assert [d["sequence"] for d in documents if "sequence" in d] == list(range(1, 14))


def test_a_refused_run_is_an_error(remit: Remit, edge: EdgeServer) -> None:
    def refuse(_: Any) -> Any:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_AGENT_NOT_FOUND,
            "agents/asistant does not exist; did you mean agents/assistant?",
        )

    edge.answers["StreamRun"] = refuse
    outcome = remit("run", "--agent", "asistant", "hello")
    assert outcome.code == 5
    assert "did you mean agents/assistant? [AGENT_NOT_FOUND]" in outcome.err
    assert remit("run", "hello", "--json").documents[-1]["type"] == "error"
    assert len(edge.requests("StreamRun")) == 2


def failed(reason: str) -> run_pb2.Run:
    error = RemitError(ErrorReason.Value(f"ERROR_REASON_{reason}"), "it failed")
    return ended_run(run_pb2.RUN_STATE_FAILED, error)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (ended_run(), 0),
        (failed("TOOL_FAILED"), 1),
        (failed("BUDGET_EXHAUSTED"), 6),
        (failed("RUN_LIMIT_REACHED"), 6),
        (failed("DEADLINE_EXCEEDED"), 3),
        (ended_run(run_pb2.RUN_STATE_CANCELLED), 130),
        (run_pb2.Run(state=run_pb2.RUN_STATE_FAILED), 1),
    ],
)
def test_the_exit_code_tells_how_the_run_ended(end: run_pb2.Run, code: int) -> None:
    assert exit_code_of(end) == code


def test_a_failed_run_ends_with_its_reason(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["StreamRun"] = whole(failed("BUDGET_EXHAUSTED"))
    outcome = remit("run", "What is 17 * 23?")
    assert outcome.code == 6
    assert "failed: it failed [BUDGET_EXHAUSTED]" in outcome.out
    assert remit("run", "x", "--json").documents[-1]["exit_code"] == 6


class CancellableRun:
    """A run that goes on until it is cancelled, and then ends or not."""

    def __init__(self, edge: EdgeServer, *, ends: bool) -> None:
        self._cancelled = threading.Event()
        self._ends = ends
        edge.answers["StreamRun"] = self.stream
        edge.answers["CancelRun"] = self.cancel

    def stream(self, request: Any) -> Any:
        yield from responses(journal()[:3], request.after_sequence)
        if not self._cancelled.wait(30) or not self._ends:
            threading.Event().wait(20)
            return
        last = run_pb2.RunEvent(run=RUN, sequence=4, percent=100)
        last.ended.run.CopyFrom(ended_run(run_pb2.RUN_STATE_CANCELLED))
        yield agent_service_pb2.StreamRunResponse(event=last, sequence=4)

    def cancel(self, request: Any) -> Any:
        self._cancelled.set()
        return agent_service_pb2.CancelRunResponse(run=run_pb2.Run(name=request.name))


async def started(edge: EdgeServer, tmp_path: Path) -> asyncio.subprocess.Process:
    """A `remit run` in a process of its own, after its third event."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "remit.cli.main", "run", "wait", "--json"),
        *("--address", edge.address, "--state", str(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"REMIT_API_KEY": API_KEY},
    )
    assert process.stdout is not None
    for _ in range(3):
        await in_time(process.stdout.readline(), 30)
    return process


async def test_ctrl_c_cancels_the_run_at_the_server(edge: EdgeServer, tmp_path: Path) -> None:
    CancellableRun(edge, ends=True)
    process = await started(edge, tmp_path)
    process.send_signal(signal.SIGINT)
    out, err = await in_time(process.communicate(), 30)
    assert process.returncode == 130
    assert [request.name for request in edge.requests("CancelRun")] == [RUN]
    assert b'"state": "RUN_STATE_CANCELLED"' in out
    assert b"cancelling the run" in err
    assert b"Traceback" not in err


async def test_a_second_ctrl_c_does_not_wait(edge: EdgeServer, tmp_path: Path) -> None:
    CancellableRun(edge, ends=False)
    process = await started(edge, tmp_path)
    process.send_signal(signal.SIGINT)
    await eventually(lambda: edge.requests("CancelRun"))
    process.send_signal(signal.SIGINT)
    out, err = await in_time(process.communicate(), 15)
    assert process.returncode == 130
    assert b'"reason": "CANCELLED"' in out
    assert b"Traceback" not in err
