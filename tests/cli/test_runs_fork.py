"""`remit runs fork` and `retry` ask for what their options say, and tell the new run's name."""

from __future__ import annotations

from typing import Any

import pytest

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.cli.runs_fork import origin
from remit.rpc.errors import Violation, invalid_request
from tests.cli.conftest import Remit
from tests.cli.edge_server import EdgeServer
from tests.cli.journals import RUN

RUN_ID = RUN.removeprefix("runs/")
FORK = RUN[:-1] + ("0" if RUN[-1] != "0" else "1")


@pytest.fixture(autouse=True)
def answers(edge: EdgeServer) -> None:
    run = run_pb2.Run(name=FORK, fork=run_pb2.RunFork(run=RUN, sequence=12, turns=1))
    edge.answers["ForkRun"] = lambda _: agent_service_pb2.ForkRunResponse(run=run)


def test_a_fork_prints_its_name(remit: Remit, edge: EdgeServer) -> None:
    assert remit("runs", "fork", RUN_ID, "--from", "12").out == f"{FORK}\n"
    (document,) = remit("runs", "fork", RUN_ID, "--step", "2", "--json").documents
    assert document["run"]["fork"]["run"] == RUN
    first, second = edge.requests("ForkRun")
    assert (first.name, first.from_sequence, second.from_step) == (RUN, 12, 2)
    assert first.WhichOneof("point") == "from_sequence"
    assert first.request_id != second.request_id
    asked = first.overrides
    assert not asked.HasField("task")
    assert not asked.HasField("context")
    assert asked.agent_version == ""


def test_what_is_to_be_other(remit: Remit, edge: EdgeServer) -> None:
    options = ("--task", "Other.", "-c", "a=b", "--max-cost", "0.05", "--max-steps", "3")
    more = ("--timeout", "2min", "--priority", "1", "--current", "--request-id", "r1")
    remit("runs", "fork", RUN_ID, "--step", "1", *options, *more)
    remit("runs", "fork", RUN_ID, "--step", "1", "--no-context")
    first, second = edge.requests("ForkRun")
    asked = first.overrides
    assert (asked.task, dict(asked.context.entries)) == ("Other.", {"a": "b"})
    assert (asked.limits.max_cost_nanos, asked.limits.max_steps) == (50_000_000, 3)
    assert (asked.limits.max_duration.seconds, asked.priority) == (120, 1)
    assert (asked.agent_version, first.request_id) == ("current", "r1")
    assert second.overrides.HasField("context")
    assert not second.overrides.context.entries
    assert not second.overrides.HasField("task")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--from EVENT or --step STEP"),
        (("--from", "3", "--step", "1"), "one of them"),
        (("--step", "1", "-c", "a=b", "--no-context"), "exclude each other"),
    ],
)
def test_options_that_say_nothing_clear(
    remit: Remit, edge: EdgeServer, options: tuple[str, ...], words: str
) -> None:
    outcome = remit("runs", "fork", RUN_ID, *options)
    assert outcome.code == 2
    assert words in outcome.err
    assert edge.requests("ForkRun") == []


def test_a_retry_leaves_the_step_to_the_service(remit: Remit, edge: EdgeServer) -> None:
    assert remit("runs", "retry", RUN_ID).out == f"{FORK}\n"
    remit("runs", "retry", RUN_ID, "--step", "2", "--request-id", "r1")
    first, second = edge.requests("ForkRun")
    assert (first.name, first.WhichOneof("point")) == (RUN, None)
    assert (second.from_step, second.request_id) == (2, "r1")


def test_a_point_that_is_none_is_told(remit: Remit, edge: EdgeServer) -> None:
    def refuse(_: Any) -> Any:
        raise invalid_request([Violation("from_sequence", "must be from 1 to 9, the newest event")])

    edge.answers["ForkRun"] = refuse
    outcome = remit("runs", "fork", RUN_ID, "--from", "0")
    assert outcome.code != 0
    assert "from_sequence: must be from 1 to 9, the newest event" in outcome.err


def test_where_a_fork_took_over_in_words() -> None:
    assert origin(run_pb2.Run()) == ""
    taken = run_pb2.RunFork(run=RUN, sequence=12, turns=2, overrides=["context", "task"])
    words = f"{RUN} at event 12, 2 steps taken over; other: context, task"
    assert origin(run_pb2.Run(fork=taken)) == words


def replayed(**more: Any) -> agent_service_pb2.ReplayRunResponse:
    return agent_service_pb2.ReplayRunResponse(
        last_sequence=14, requests_compared=2, agent_version="ab" * 32, **more
    )


def test_a_replay_without_a_difference(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ReplayRun"] = lambda _: replayed(requests_unrecorded=1)
    outcome = remit("runs", "replay", RUN_ID)
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "14 events, 2 model requests compared, version abababababab",
        "1 model turns are from before it was recorded what was asked",
        "no difference",
    ]
    (request,) = edge.requests("ReplayRun")
    assert (request.name, request.overrides) == (RUN, agent_service_pb2.RunOverrides())


def test_a_replay_names_the_first_difference(remit: Remit, edge: EdgeServer) -> None:
    where = agent_service_pb2.Divergence(
        sequence=7, step=1, field="request.messages[0].text", recorded="Old.", replayed="New."
    )
    edge.answers["ReplayRun"] = lambda _: replayed(divergence=where)
    options = ("--current", "--task", "Other.", "--max-steps", "3")
    outcome = remit("runs", "replay", RUN_ID, *options)
    assert outcome.code == 1
    assert outcome.out.splitlines()[1:] == [
        "event 7, step 1 differs: request.messages[0].text",
        "  recorded  Old.",
        "  replayed  New.",
    ]
    asked = edge.requests("ReplayRun")[0].overrides
    assert (asked.agent_version, asked.task, asked.limits.max_steps) == ("current", "Other.", 3)
    outcome = remit("runs", "replay", RUN_ID, "--json")
    assert outcome.documents[0]["divergence"]["sequence"] == 7
    assert outcome.code == 1
