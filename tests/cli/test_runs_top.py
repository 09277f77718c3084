"""The table of runs: those that go on first, once into a pipe, fresh in a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError
from tests.cli.conftest import API_KEY, Remit
from tests.cli.edge_server import EdgeServer
from tests.waiting import eventually, in_time

AWAY = RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the service drains")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def a_run(number: int, state: str, **fields: Any) -> run_pb2.Run:
    run = run_pb2.Run(
        name=f"runs/00000000-0000-7000-8000-{number:012}",
        agent="agents/clerk",
        state=run_pb2.RunState.Value(f"RUN_STATE_{state}"),
        **fields,
    )
    run.create_time.GetCurrentTime()
    run.create_time.seconds -= 125
    return run


class Service:
    """Lists runs as the agent service does."""

    def __init__(self, edge: EdgeServer, runs: list[run_pb2.Run]) -> None:
        self.runs = runs
        self.fault: RemitError | None = None
        edge.answers["ListRuns"] = self._list

    def _list(self, request: agent_service_pb2.ListRunsRequest) -> Any:
        if self.fault is not None:
            raise self.fault
        fitting = [run for run in self.runs if request.state in {0, run.state}]
        more = str(request.page_size) if len(fitting) > request.page_size else ""
        return agent_service_pb2.ListRunsResponse(
            runs=fitting[: request.page_size], next_page_token=more
        )


def mixed() -> list[run_pb2.Run]:
    scheduled = a_run(6, "QUEUED")
    scheduled.schedule_time.GetCurrentTime()
    scheduled.schedule_time.seconds += 7_300
    return [
        scheduled,
        a_run(5, "SUCCEEDED", percent=100, stage="answering", cost_nanos=76_800),
        a_run(4, "QUEUED"),
        a_run(3, "RUNNING", percent=37, stage="using tools", cost_nanos=50_000_000),
        a_run(2, "FAILED", percent=100),
        a_run(1, "PAUSED", percent=12, stage="thinking"),
    ]


def numbers(out: str) -> list[int]:
    """The runs of a table, from top to bottom."""
    return [int(found) for found in re.findall(r"00000000-0000-7000-8000-0{11}(\d)", out)]


def test_a_pipe_gets_one_table_with_what_goes_on_first(remit: Remit, edge: EdgeServer) -> None:
    Service(edge, mixed())
    outcome = remit("runs", "top")
    assert outcome.code == 0
    head, names, first, *_ = outcome.out.splitlines()
    assert head == "1 running, 1 paused, 2 queued"
    assert names.split() == ["AGENT", "STATE", "STAGE", "%", "COST", "AGE", "RUN"]
    for cell in ("clerk", "running", "using tools", " 37 ", "0.05 USD", "2 min 5 s"):
        assert cell in first
    assert numbers(outcome.out) == [3, 1, 6, 4, 5, 2]
    assert "starts in 2 h 1 min" in outcome.out
    assert "\x1b" not in outcome.out


def test_machines_get_one_document(remit: Remit, edge: EdgeServer) -> None:
    Service(edge, mixed())
    (document,) = remit("runs", "top", "--json", "--agent", "clerk").documents
    assert document["counts"] == {"running": 1, "paused": 1, "queued": 2}
    assert [run["name"][-1] for run in document["runs"]] == list("316452")
    assert document["runs"][0]["percent"] == 37
    assert document["runs"][0]["stage"] == "using tools"
    assert {request.agent for request in edge.requests("ListRuns")} == {"agents/clerk"}


def test_the_table_is_bounded_and_says_that_there_are_more(remit: Remit, edge: EdgeServer) -> None:
    Service(edge, [a_run(number, "RUNNING") for number in range(9, 0, -1)])
    outcome = remit("runs", "top", "--limit", "3")
    assert outcome.out.splitlines()[0] == "3+ running, 0 paused, 0 queued"
    assert numbers(outcome.out) == [9, 8, 7]


@pytest.mark.parametrize("interval", ["0", "199ms", "2h"])
def test_an_interval_out_of_bounds_is_refused(remit: Remit, interval: str) -> None:
    outcome = remit("runs", "top", "--interval", interval)
    assert outcome.code == 2
    assert "from 200ms to 1h" in outcome.err


def test_a_mesh_that_is_away_is_told(remit: Remit, edge: EdgeServer) -> None:
    Service(edge, []).fault = AWAY
    assert remit("runs", "top").code == 3


class Screen:
    """A `remit runs top` in a terminal of 100 columns and 12 lines."""

    def __init__(self, process: asyncio.subprocess.Process, terminal: int) -> None:
        self.process = process
        self._terminal = terminal
        self._raw = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def shows(self, text: str) -> bool:
        return text in _ESCAPES.sub("", self._raw)

    def forget(self) -> None:
        self._raw = ""

    def close(self) -> None:
        self._reader.join(5)
        os.close(self._terminal)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other side is gone
            while data := os.read(self._terminal, 65_536):
                self._raw += data.decode(errors="replace")


@contextlib.asynccontextmanager
async def on_screen(edge: EdgeServer, state: Path) -> Any:
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "remit.cli.main", "runs", "top", "--interval", "200ms"),
        *("--state", str(state), "--address", edge.address, "--api-key", API_KEY),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "12"},
    )
    os.close(theirs)
    screen = Screen(process, ours)
    try:
        yield screen
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        screen.close()


async def test_a_terminal_stays_fresh_until_ctrl_c_and_ends_with_0(
    edge: EdgeServer, tmp_path: Path
) -> None:
    service = Service(edge, mixed())
    async with on_screen(edge, tmp_path) as screen:
        await eventually(lambda: screen.shows("using tools"), 30)
        service.runs = [a_run(7, "RUNNING", percent=50, stage="answering")]
        await eventually(lambda: screen.shows("answering") and screen.shows("1 running"))
        service.fault = AWAY
        await eventually(lambda: screen.shows("no answer since then: the service drains"))
        screen.forget()
        service.fault = None
        await eventually(lambda: screen.shows("Ctrl-C ends it"))
        screen.process.send_signal(signal.SIGINT)
        assert await in_time(screen.process.wait(), 20) == 0
        assert not screen.shows("Traceback")


async def test_a_terminal_shows_as_many_runs_as_fit(edge: EdgeServer, tmp_path: Path) -> None:
    Service(edge, [a_run(number, "RUNNING") for number in range(30, 0, -1)])
    async with on_screen(edge, tmp_path) as screen:
        await eventually(lambda: screen.shows("more do not fit"), 30)
        await eventually(lambda: screen.shows("0023"), 30)
        assert not screen.shows("000000000022")
        screen.process.send_signal(signal.SIGINT)
        assert await in_time(screen.process.wait(), 20) == 0


async def test_a_refusal_ends_a_terminals_table(edge: EdgeServer, tmp_path: Path) -> None:
    denied = RemitError(error_reason_pb2.ERROR_REASON_CREDENTIAL_REVOKED, "the key was revoked")
    service = Service(edge, mixed())
    async with on_screen(edge, tmp_path) as screen:
        await eventually(lambda: screen.shows("using tools"), 30)
        service.fault = denied
        assert await in_time(screen.process.wait(), 20) == 4
        await eventually(lambda: screen.shows("the key was revoked"))
