"""The client's conversations over the real protocol, against an edge with scripted answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from remit.api.agent.v1 import conversation_pb2, conversation_service_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.client import Client, RemitError
from tests.cli.edge_server import EdgeServer
from tests.client.still import StillClock
from tests.client.test_runs import KEY, failing_once

NAME = "conversations/01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b"
TALK = conversation_pb2.Conversation(name=NAME, display_name="Tides", runs=2)


@pytest.fixture
def edge() -> Iterator[EdgeServer]:
    with EdgeServer().serving() as server:
        yield server


@pytest.fixture
async def client(edge: EdgeServer) -> AsyncIterator[Client]:
    async with Client(edge.address, KEY, resumption=StillClock().resumption()) as made:
        yield made


async def test_one_is_begun_once_over_a_break(edge: EdgeServer, client: Client) -> None:
    answer = conversation_service_pb2.CreateConversationResponse(conversation=TALK)
    edge.answers["CreateConversation"] = failing_once(answer)
    assert await client.conversations.create("Tides") == TALK
    first, second = edge.requests("CreateConversation")
    assert first == second
    assert first.display_name == "Tides"
    assert first.request_id
    await client.conversations.create(request_id="r1")
    assert edge.requests("CreateConversation")[2].request_id == "r1"


async def test_one_is_read_and_deleted(edge: EdgeServer, client: Client) -> None:
    edge.answers["GetConversation"] = lambda _: conversation_service_pb2.GetConversationResponse(
        conversation=TALK
    )
    gone = conversation_service_pb2.DeleteConversationResponse(conversation=TALK)
    edge.answers["DeleteConversation"] = failing_once(gone)
    for name in (NAME, NAME.removeprefix("conversations/")):
        assert await client.conversations.get(name) == TALK
        assert await client.conversations.delete(name) == TALK
    assert {request.name for request in edge.requests("GetConversation")} == {NAME}
    first, second, third = edge.requests("DeleteConversation")
    assert first == second
    assert third.request_id != first.request_id


async def test_an_unknown_one_is_an_error(edge: EdgeServer, client: Client) -> None:
    missing = RemitError(reasons.ERROR_REASON_CONVERSATION_NOT_FOUND, f"{NAME} does not exist")

    def refuse(_: Any) -> Any:
        raise missing

    edge.answers["GetConversation"] = refuse
    with pytest.raises(RemitError, match="does not exist") as refused:
        await client.conversations.get(NAME)
    assert refused.value.reason == reasons.ERROR_REASON_CONVERSATION_NOT_FOUND


async def test_they_are_listed_over_pages(edge: EdgeServer, client: Client) -> None:
    def respond(request: Any) -> Any:
        begin = int(request.page_token or 0)
        count = min(request.page_size, 50)
        found = [conversation_pb2.Conversation(name=f"{n}") for n in range(begin, begin + count)]
        return conversation_service_pb2.ListConversationsResponse(
            conversations=found, next_page_token=str(begin + count)
        )

    edge.answers["ListConversations"] = respond
    found = await client.conversations.list(own=True, limit=70)
    assert [talk.name for talk in found.conversations] == [str(n) for n in range(70)]
    assert found.more
    assert [request.own for request in edge.requests("ListConversations")] == [True, True]
