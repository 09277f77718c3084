"""`remit conversations`, and `remit run` in one: what is asked for, what is told."""

from __future__ import annotations

from typing import Any

import pytest

from remit.api.agent.v1 import (
    agent_service_pb2,
    conversation_pb2,
    conversation_service_pb2,
    run_pb2,
)
from remit.api.errors.v1 import error_reason_pb2
from remit.cli import exit_codes
from remit.rpc.errors import RemitError
from tests.cli.conftest import Remit
from tests.cli.edge_server import EdgeServer
from tests.cli.journals import accepted_run, ended_run, journal, responses

ID = "01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b"
NAME = f"conversations/{ID}"


def talk() -> conversation_pb2.Conversation:
    found = conversation_pb2.Conversation(
        name=NAME, subject="orgs/local/users/ann", display_name="Tides", runs=2
    )
    found.create_time.FromJsonString("2026-11-28T12:00:00Z")
    found.update_time.FromJsonString("2026-11-28T13:30:00Z")
    return found


@pytest.fixture
def answering(edge: EdgeServer) -> EdgeServer:
    """An edge with one conversation of two runs, the second of which failed."""
    failed = ended_run(
        run_pb2.RUN_STATE_FAILED,
        RemitError(error_reason_pb2.ERROR_REASON_RUN_LIMIT_REACHED, "the run used its 8 steps"),
    )
    failed.task = "And then?"
    service = conversation_service_pb2
    edge.answers |= {
        "CreateConversation": lambda _: service.CreateConversationResponse(conversation=talk()),
        "GetConversation": lambda _: service.GetConversationResponse(conversation=talk()),
        "DeleteConversation": lambda _: service.DeleteConversationResponse(conversation=talk()),
        "ListConversations": lambda _: service.ListConversationsResponse(conversations=[talk()]),
        "ListRuns": lambda _: agent_service_pb2.ListRunsResponse(runs=[failed, ended_run()]),
    }
    return edge


def test_create_prints_the_name_alone(remit: Remit, answering: EdgeServer) -> None:
    assert remit("conversations", "create", "Tides").out == f"{NAME}\n"
    (request,) = answering.requests("CreateConversation")
    assert request.display_name == "Tides"
    assert request.request_id
    (document,) = remit("conversations", "create", "--request-id", "r1", "--json").documents
    assert document["conversation"]["name"] == NAME
    assert answering.requests("CreateConversation")[1].request_id == "r1"


def test_list(remit: Remit, answering: EdgeServer) -> None:
    head, row = remit("conversations", "list", "--own").out.splitlines()
    assert head.split() == ["CONVERSATION", "RUNS", "CREATED", "USED", "BY", "ABOUT"]
    assert row.split()[:2] == [ID, "2"]
    assert "2026-11-28 13:30:00" in row
    assert row.endswith("ann  Tides")
    assert answering.requests("ListConversations")[0].own
    (document,) = remit("conversations", "list", "--json").documents
    assert (document["conversations"][0]["runs"], document["more"]) == (2, False)


def test_show_prints_what_was_said_in_order(remit: Remit, answering: EdgeServer) -> None:
    out = remit("conversations", "show", ID).out
    assert answering.requests("GetConversation")[0].name == NAME
    assert answering.requests("ListRuns")[0].conversation == NAME
    said = [line for line in out.splitlines() if line.startswith((">", "17", "failed"))]
    assert said == [
        "> What is 17 * 23?",
        "17 * 23 = 391",
        "> And then?",
        "failed: the run used its 8 steps",
    ]
    (document,) = remit("conversations", "show", ID, "--json").documents
    assert [run["task"] for run in document["runs"]] == ["What is 17 * 23?", "And then?"]


def test_delete(remit: Remit, answering: EdgeServer) -> None:
    assert remit("conversations", "delete", NAME).out == f"{NAME} is deleted; it had 2 runs\n"
    assert answering.requests("DeleteConversation")[0].name == NAME
    (document,) = remit("conversations", "delete", ID, "--json").documents
    assert document["conversation"]["name"] == NAME


def test_an_unknown_one_ends_with_its_code(remit: Remit, edge: EdgeServer) -> None:
    def refuse(_: Any) -> Any:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_CONVERSATION_NOT_FOUND, f"{NAME} does not exist"
        )

    edge.answers["GetConversation"] = refuse
    outcome = remit("conversations", "show", ID)
    assert outcome.code == exit_codes.NOT_FOUND
    assert "remit conversations list" in outcome.err


@pytest.mark.parametrize(
    "options", [("--conversation", ID), ("--conversation", NAME), ("--continue",)]
)
def test_a_run_continues_one(remit: Remit, answering: EdgeServer, options: tuple[str, ...]) -> None:
    events = journal()
    created = events[0].created.run
    created.conversation, created.history_runs = NAME, 1
    answering.answers["StreamRun"] = lambda _: responses(events)
    outcome = remit("run", *options, "And then?")
    assert outcome.code == exit_codes.OK
    (asked,) = answering.requests("StreamRun")
    assert asked.request.conversation == NAME
    assert f"continues {NAME}, sees 1 exchange of it" in outcome.out
    listed = answering.requests("ListConversations")
    assert [(request.own, request.page_size) for request in listed] == [(True, 1)] * (
        options == ("--continue",)
    )


def test_there_may_be_none_to_continue(remit: Remit, edge: EdgeServer) -> None:
    none = conversation_service_pb2.ListConversationsResponse()
    edge.answers["ListConversations"] = lambda _: none
    outcome = remit("run", "--continue", "And then?")
    assert outcome.code == exit_codes.USAGE
    assert "`remit conversations create` begins one" in outcome.err
    assert not edge.requests("StreamRun")


def test_one_is_named_or_the_newest_taken(remit: Remit, edge: EdgeServer) -> None:
    outcome = remit("run", "--continue", "--conversation", ID, "And then?")
    assert outcome.code == exit_codes.USAGE
    assert not edge.calls


def test_a_run_in_none_says_nothing_of_any(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["GetRun"] = lambda _: agent_service_pb2.GetRunResponse(run=accepted_run())
    assert "continues" not in remit("runs", "show", ID).out
    of_one = accepted_run()
    of_one.conversation = NAME
    edge.answers["GetRun"] = lambda _: agent_service_pb2.GetRunResponse(run=of_one)
    assert f"{NAME}, sees 0 exchanges of it" in remit("runs", "show", ID).out


def test_runs_are_listed_of_one(remit: Remit, answering: EdgeServer) -> None:
    remit("runs", "list", "--conversation", ID)
    assert answering.requests("ListRuns")[0].conversation == NAME
