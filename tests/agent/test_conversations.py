"""Conversations: runs that see what came before, one at a time, by their owner alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from remit.api.agent.v1 import (
    conversation_pb2,
    conversation_service_pb2,
    run_pb2,
)
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import message_pb2
from remit.rpc.ids import SystemIds
from tests.agent.conftest import Client, StartReplica, World
from tests.agent.outside import Generate, Turn, says

NOT_FOUND = reasons.ERROR_REASON_CONVERSATION_NOT_FOUND


@dataclass
class Talk:
    """A client in one conversation."""

    client: Client
    name: str

    async def run(self, task: str, **more: Any) -> run_pb2.Run:
        """A run of it, from its creation to its end."""
        run = await self.start(task, **more)
        return await self.client.ended(run.name)

    async def start(self, task: str, **more: Any) -> run_pb2.Run:
        return await self.client.create(task, conversation=self.name, **more)

    async def get(self) -> conversation_pb2.Conversation:
        response = await self.client.conversations.GetConversation(
            conversation_service_pb2.GetConversationRequest(name=self.name),
            metadata=self.client.metadata,
        )
        return response.conversation

    async def delete(self, request_id: str = "away") -> conversation_pb2.Conversation:
        response = await self.client.conversations.DeleteConversation(
            conversation_service_pb2.DeleteConversationRequest(
                name=self.name, request_id=request_id
            ),
            metadata=self.client.metadata,
        )
        return response.conversation

    def of(self, client: Client) -> Talk:
        """The same conversation in another's hands."""
        return Talk(client, self.name)


async def begin(client: Client, display_name: str = "", request_id: str = "") -> Talk:
    response = await client.conversations.CreateConversation(
        conversation_service_pb2.CreateConversationRequest(
            display_name=display_name, request_id=request_id or SystemIds().uuid7()
        ),
        metadata=client.metadata,
    )
    return Talk(client, response.conversation.name)


async def listed(client: Client, size: int = 50, *, own: bool = False) -> list[str]:
    """The names of all conversations that a client may see, in pages."""
    names: list[str] = []
    token = ""
    while True:
        page = await client.conversations.ListConversations(
            conversation_service_pb2.ListConversationsRequest(
                page_size=size, page_token=token, own=own
            ),
            metadata=client.metadata,
        )
        assert len(page.conversations) <= size
        names += [conversation.name for conversation in page.conversations]
        token = page.next_page_token
        if not token:
            return names


def echoes(asked: Generate) -> Turn:
    """Answers with the number of messages that it saw before, and the last one."""
    return says(f"{len(asked.messages) - 1}: {asked.messages[-1].text}")


def told(world: World) -> list[tuple[str, str]]:
    """What the newest model request said, role and text, without the instructions."""
    return [
        (message_pb2.Role.Name(message.role).removeprefix("ROLE_").lower(), message.text)
        for message in world.inference.requests[-1].messages[1:]
    ]


async def test_a_run_sees_the_exchanges_before_it(replica: StartReplica, world: World) -> None:
    world.inference.think = echoes
    talk = await begin((await replica()).client(), "Greetings")
    first = await talk.run("Good morning", context={"place": "Bern"})
    assert (first.conversation, first.previous_run, first.history_runs) == (talk.name, "", 0)
    second = await talk.run("And now?")
    assert (second.previous_run, second.history_runs) == (first.name, 1)
    third = await talk.run("And later?")
    assert (third.previous_run, third.history_runs) == (second.name, 2)
    (_, greeting), *rest = told(world)
    assert greeting.startswith("Good morning\n")
    assert '"place": "Bern"' in greeting
    assert rest == [
        ("assistant", "1: Good morning"),
        ("user", "And now?"),
        ("assistant", "3: And now?"),
        ("user", "And later?"),
    ]
    known = await talk.get()
    assert (known.display_name, known.runs, known.last_run) == ("Greetings", 3, third.name)
    assert known.update_time == third.create_time
    assert known.subject == "orgs/acme/users/alice"


async def test_a_run_that_waits_for_a_worker_sees_them_too(
    replica: StartReplica, world: World
) -> None:
    world.inference.think = echoes
    made = await replica()
    talk = await begin(made.client())
    await talk.run("one")
    later = await replica(running=False, max_running=1)
    later.parts.pool.reserve("orgs/acme")  # its one place
    run = await talk.of(later.client()).start("two")
    assert run.state == run_pb2.RUN_STATE_QUEUED
    assert (await talk.client.ended(run.name)).result == "3: two"


async def test_only_runs_that_succeeded_are_seen(replica: StartReplica, world: World) -> None:
    world.inference.think = lambda asked: (
        says("") if asked.messages[-1].text == "fail" else echoes(asked)
    )
    made = await replica()
    talk = await begin(made.client())
    first = await talk.run("one")
    failed = await talk.run("fail")
    assert failed.state == run_pb2.RUN_STATE_FAILED
    again = await talk.run("fail")
    assert again.previous_run == failed.previous_run == first.name
    last = await talk.run("two")
    assert (last.previous_run, last.history_runs) == (first.name, 1)
    assert told(world) == [("user", "one"), ("assistant", "1: one"), ("user", "two")]
    assert (await talk.get()).runs == 4
