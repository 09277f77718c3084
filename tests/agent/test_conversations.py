"""Conversations: runs that see what came before, one at a time, by their owner alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from remit.api.agent.v1 import (
    agent_service_pb2,
    conversation_pb2,
    conversation_service_pb2,
    run_pb2,
)
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import message_pb2
from remit.rpc.errors import RemitError
from remit.rpc.ids import SystemIds
from tests.agent.conftest import Client, StartReplica, World, request
from tests.agent.outside import Generate, Turn, client_remit, says
from tests.agent.test_service import refused
from tests.agent.test_sub_runs import TASK, agent, asks, the_one_below
from tests.waiting import eventually

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


async def test_a_run_sees_the_newest_exchanges_that_fit(
    replica: StartReplica, world: World
) -> None:
    world.inference.think = lambda _: says("yes")
    client = (await replica(max_history_runs=2)).client()
    talk = await begin(client)
    runs = [await talk.run(f"task {n}") for n in range(5)]
    assert [run.history_runs for run in runs] == [0, 1, 2, 2, 2]
    assert [text for role, text in told(world) if role == "user"] == ["task 2", "task 3", "task 4"]
    tight = (await replica(max_history_bytes=len("task 4" + "yes"))).client()
    assert (await talk.of(tight).run("x" * 99)).history_runs == 1
    last = await talk.of(tight).run("y")
    assert last.history_runs == 0  # the exchange before it is whole or not there
    assert told(world) == [("user", "y")]


async def test_long_conversations_are_read_in_pages(replica: StartReplica, world: World) -> None:
    world.inference.think = lambda asked: says(str(len(asked.messages)))
    talk = await begin((await replica()).client())
    results = [(await talk.run(f"task {n}")).result for n in range(20)]
    assert results == [str(2 + 2 * n) for n in range(20)]


async def test_what_would_not_fit_is_not_read(replica: StartReplica, world: World) -> None:
    """Many large contexts behind one another cost a creation no more than the bound."""
    world.inference.think = lambda _: says("yes")
    made = await replica(max_history_bytes=100_000)
    talk = await begin(made.client())
    large = {f"fact{n}": "x" * 9_000 for n in range(5)}
    runs = [await talk.run(f"task {n}", context=large) for n in range(6)]
    assert [run.history_runs for run in runs] == [0, 1, 2, 2, 2, 2]
    reader = made.parts.runs.reader
    read = await reader.exchanges(runs[-1].name, limit=16, max_bytes=100_000)
    assert [exchange.run for exchange in read] == [run.name for run in runs[:2:-1]]
    assert len(await reader.exchanges(runs[-1].name, limit=16)) == 6


async def test_nothing_that_was_said_is_stored_twice(replica: StartReplica, world: World) -> None:
    world.inference.think = lambda asked: says(asked.messages[-1].text)
    talk = await begin((await replica()).client())
    sizes: list[int] = []
    for n in range(8):
        await talk.run(f"{n}" * 4_000)
        sizes.append(await stored_bytes(world))
    grown = [after - before for before, after in pairwise(sizes)]
    assert max(grown) - min(grown) < 1_000, grown


async def stored_bytes(world: World) -> int:
    """Bytes of everything that runs store."""
    size: int = await world.database.fetchval(
        "SELECT (SELECT sum(octet_length(bytes)) FROM content)"
        " + (SELECT sum(octet_length(payload)) FROM run_events)"
        " + (SELECT sum(octet_length(summary)) FROM runs)"
    )
    return size


async def test_one_run_at_a_time(replica: StartReplica, world: World) -> None:
    world.inference.effects.hold = asyncio.Event()
    talk = await begin((await replica()).client())
    first = await talk.start("one")
    error = await refused(talk.start("two"), reasons.ERROR_REASON_INVALID_STATE)
    assert first.name in error.message
    assert "cancel" in error.message
    await talk.client.pause(first.name)
    await refused(talk.start("two"), reasons.ERROR_REASON_INVALID_STATE)
    await talk.client.cancel(first.name)
    world.inference.effects.hold.set()
    second = await talk.run("two")
    assert second.state == run_pb2.RUN_STATE_SUCCEEDED
    assert second.previous_run == ""


@pytest.mark.parametrize("replicas", [1, 2])
async def test_of_runs_that_come_at_once_one_joins(
    replicas: int, replica: StartReplica, world: World
) -> None:
    made = [await replica() for _ in range(replicas)]
    talk = await begin(made[0].client())
    for length in range(1, 4):
        world.inference.effects.hold = asyncio.Event()
        answers = await asyncio.gather(
            *(
                talk.of(made[n % replicas].client()).start(f"What is {n} * 3?", priority=n % 5 + 1)
                for n in range(6)
            ),
            return_exceptions=True,
        )
        (run,) = [answer for answer in answers if isinstance(answer, run_pb2.Run)]
        for answer in answers:
            if answer is not run:
                assert isinstance(answer, RemitError), answer
                assert answer.reason == reasons.ERROR_REASON_INVALID_STATE
                assert run.name in answer.message or "another run" in answer.message
        world.inference.effects.hold.set()
        ended = await talk.client.ended(run.name)
        assert (ended.history_runs, (await talk.get()).runs) == (length - 1, length)
    count = await world.database.fetchval("SELECT count(*) FROM runs")
    assert count == 3


async def test_the_same_request_joins_once(replica: StartReplica, world: World) -> None:
    world.inference.effects.hold = asyncio.Event()
    made = [await replica(), await replica()]
    talk = await begin(made[0].client())
    asked = request(conversation=talk.name)
    runs = await asyncio.gather(
        *(
            client.runs.CreateRun(asked, metadata=client.metadata)
            for client in (made[n % 2].client() for n in range(6))
        )
    )
    assert len({response.run.name for response in runs}) == 1
    again = await talk.client.runs.CreateRun(asked, metadata=talk.client.metadata)
    assert again.run.name == runs[0].run.name
    asked.task = "Another task"
    await refused(
        talk.client.runs.CreateRun(asked, metadata=talk.client.metadata),
        reasons.ERROR_REASON_KEY_REUSED,
    )
    world.inference.effects.hold.set()
    await talk.client.ended(again.run.name)
    assert (await talk.get()).runs == 1


@pytest.mark.parametrize("service", ["inference", "tools"])
async def test_whoever_adopts_a_run_asks_its_model_for_the_same(
    service: str, replica: StartReplica, world: World
) -> None:
    """The recorded effect refuses another body under the same key."""
    first = await replica()
    talk = await begin(first.client())
    for n in (2, 3):
        await talk.run(f"What is {n} * 3?", context={"b": "<2>", "a": "1"})
    effects = getattr(world, service).effects
    effects.hold = asyncio.Event()
    run = await talk.start("What is 17 * 23?")
    await eventually(lambda: effects.held == 1)
    await first.kill()
    effects.hold.set()
    asked = len(world.inference.requests)
    # Settings count when a run is created, and never again.
    second = await replica(max_history_runs=1, max_history_bytes=0)
    ended = await talk.of(second.client()).client.ended(run.name)
    assert (ended.result, ended.history_runs) == ("The result is 391.", 2)
    assert len(world.inference.requests) > asked
    for later in world.inference.requests[asked - 1 :]:
        assert [m.text for m in later.messages[1:5]] == [
            m.text for m in world.inference.requests[asked - 1].messages[1:5]
        ]
    assert set(world.inference.effects.performed.values()) == {1}


async def test_a_conversation_is_its_owners_alone(replica: StartReplica, world: World) -> None:
    made = await replica()
    talk = await begin(made.client(), "Mine")
    await talk.run("one")
    admin = talk.of(made.client(client_remit("orgs/acme/users/root", "admin")))
    assert (await admin.get()).display_name == "Mine"
    error = await refused(admin.start("two"), NOT_FOUND)
    assert "not yours to continue" in error.message
    for user in ("orgs/acme/users/bob", "orgs/other/users/alice"):
        stranger = talk.of(made.client(client_remit(user)))
        for call in (stranger.get(), stranger.start("two"), stranger.delete()):
            await refused(call, NOT_FOUND)
        assert await listed(stranger.client) == []
    foreign = talk.of(made.client(client_remit("orgs/other/users/root", "admin")))
    for call in (foreign.get(), foreign.start("two"), foreign.delete()):
        await refused(call, NOT_FOUND)
    unknown = Talk(talk.client, f"conversations/{SystemIds().uuid7()}")
    for call in (unknown.get(), unknown.start("two"), unknown.delete()):
        await refused(call, NOT_FOUND)
    assert (await talk.get()).runs == 1
    assert (await admin.delete()).name == talk.name
    await refused(talk.get(), NOT_FOUND)


async def test_bad_requests_are_refused(replica: StartReplica) -> None:
    client = (await replica(running=False)).client()
    invalid = reasons.ERROR_REASON_INVALID_REQUEST
    bad = Talk(client, "conversations/nonsense")
    for call in (bad.get(), bad.start("one"), bad.delete()):
        await refused(call, invalid)
    talk = await begin(client)
    await refused(talk.delete(request_id=""), invalid)
    for display_name in ("x" * 101, "two\nlines", "nul\x00"):
        await refused(begin(client, display_name), invalid)
    await refused(begin(client, request_id="x" * 65), invalid)
    await refused(begin(client, "<script>"), reasons.ERROR_REASON_SUSPICIOUS_INPUT)
    filters = agent_service_pb2.ListRunsRequest(conversation="conversations/nonsense")
    await refused(client.runs.ListRuns(filters, metadata=client.metadata), invalid)
    for wrong in ({"page_size": -1}, {"page_token": "%%"}):
        listing = conversation_service_pb2.ListConversationsRequest(**wrong)
        await refused(
            client.conversations.ListConversations(listing, metadata=client.metadata), invalid
        )


async def test_the_same_request_begins_one_conversation(
    replica: StartReplica, world: World
) -> None:
    client = (await replica(running=False)).client()
    first, second = await asyncio.gather(*(begin(client, "a", "r1") for _ in range(2)))
    assert first.name == second.name
    await refused(begin(client, "b", "r1"), reasons.ERROR_REASON_KEY_REUSED)
    await first.delete()
    await refused(begin(client, "a", "r1"), NOT_FOUND)
    assert await world.database.fetchval("SELECT count(*) FROM conversations") == 1


async def test_conversations_are_listed_by_their_last_use(replica: StartReplica) -> None:
    made = await replica()
    client = made.client()
    talks = [await begin(client) for _ in range(5)]
    bobs = await begin(made.client(client_remit("orgs/acme/users/bob")))
    newest_first = [talk.name for talk in reversed(talks)]
    assert await listed(client, 2) == newest_first
    await talks[1].run("one")
    used = [talks[1].name, *(name for name in newest_first if name != talks[1].name)]
    assert await listed(client, 2) == used
    admin = made.client(client_remit("orgs/acme/users/root", "admin"))
    assert await listed(admin, 2) == [talks[1].name, bobs.name, *used[1:]]
    assert await listed(admin, own=True) == []
    await talks[4].delete()
    assert await listed(client, 3) == [name for name in used if name != talks[4].name]


async def test_the_runs_of_a_conversation_are_listed(replica: StartReplica) -> None:
    client = (await replica()).client()
    talk, other = await begin(client), await begin(client)
    await other.run("elsewhere")
    runs = [(await talk.run(f"task {n}")).name for n in range(3)]
    asked = agent_service_pb2.ListRunsRequest(conversation=talk.name)
    page = await client.runs.ListRuns(asked, metadata=client.metadata)
    assert [run.name for run in page.runs] == runs[::-1]


async def test_a_deleted_conversation_is_neither_shown_nor_used(
    replica: StartReplica, world: World
) -> None:
    made = await replica()
    talk = await begin(made.client(), "Secret")
    asked = request(conversation=talk.name)
    client = talk.client
    run = (await client.runs.CreateRun(asked, metadata=client.metadata)).run
    await client.ended(run.name)
    deleted = await talk.delete()
    assert deleted.HasField("delete_time")
    assert deleted.display_name == ""
    assert await talk.delete() == deleted  # the same request, the same answer
    await refused(talk.delete("another"), NOT_FOUND)
    admin = made.client(client_remit("orgs/acme/users/root", "admin"))
    for who in (client, admin):
        await refused(talk.of(who).get(), NOT_FOUND)
        assert await listed(who) == []
        calls: list[Callable[[Client], Awaitable[Any]]] = [
            lambda c: c.get(run.name),
            lambda c: c.watch(run.name),
            lambda c: c.cancel(run.name),
            lambda c: c.runs.GetArtifact(
                agent_service_pb2.GetArtifactRequest(run=run.name, artifact="a"),
                metadata=c.metadata,
            ),
        ]
        for call in calls:
            await refused(call(who), reasons.ERROR_REASON_RUN_NOT_FOUND)
        page = await who.runs.ListRuns(agent_service_pb2.ListRunsRequest(), metadata=who.metadata)
        assert not page.runs
    await refused(talk.start("two"), NOT_FOUND)
    await refused(client.runs.CreateRun(asked, metadata=client.metadata), NOT_FOUND)
    # The record stays whole.
    journal = await made.parts.runs.reader.journal(run.name, page=100)
    assert journal[-1].ended.run.result == "The result is 391."
    rows = await world.database.fetch("SELECT display_name FROM conversations")
    assert [row["display_name"] for row in rows] == [""]


async def test_a_conversation_in_which_a_run_goes_on_is_not_deleted(
    replica: StartReplica, world: World
) -> None:
    world.inference.effects.hold = asyncio.Event()
    talk = await begin((await replica()).client())
    run = await talk.start("one")
    error = await refused(talk.delete(), reasons.ERROR_REASON_INVALID_STATE)
    assert run.name in error.message
    await talk.client.pause(run.name)
    await refused(talk.delete(), reasons.ERROR_REASON_INVALID_STATE)
    await talk.client.cancel(run.name)
    world.inference.effects.hold.set()
    assert (await talk.delete()).HasField("delete_time")


async def test_a_run_joins_or_its_conversation_is_deleted(
    replica: StartReplica, world: World
) -> None:
    """Both at once, many times over: never both, and never neither."""
    world.inference.think = lambda _: says("yes")
    made = [await replica(), await replica()]
    won: set[str] = set()
    for _ in range(12):
        talk = await begin(made[0].client())
        await talk.run("first")
        joined, deleted = await asyncio.gather(
            talk.start("second"),
            talk.of(made[1].client()).delete(),
            return_exceptions=True,
        )
        if isinstance(joined, RemitError):
            assert joined.reason == NOT_FOUND
            assert isinstance(deleted, conversation_pb2.Conversation)
            won.add("deleted")
        else:
            assert isinstance(joined, run_pb2.Run)
            assert isinstance(deleted, RemitError | conversation_pb2.Conversation)
            # The run may have ended before the deletion looked.
            if isinstance(deleted, RemitError):
                assert deleted.reason == reasons.ERROR_REASON_INVALID_STATE
                await talk.client.ended(joined.name)
            won.add("joined")
    hidden = await world.database.fetch(
        "SELECT bool_and((r.delete_time IS NULL) = (c.delete_time IS NULL)) AS alike"
        " FROM runs r JOIN conversations c USING (conversation)"
    )
    assert hidden[0]["alike"] is True
    assert won


async def test_an_earlier_journal_that_was_changed_is_named(
    replica: StartReplica, world: World, owner_execute: Any
) -> None:
    client = (await replica()).client()
    talk, healthy = await begin(client), await begin(client)
    first = await talk.run("one")
    await healthy.run("one")
    await owner_execute(
        "UPDATE run_events SET payload = payload || '\\x00'::bytea"
        " WHERE run = $1::uuid AND sequence = $2",
        first.name.removeprefix("runs/"),
        first.last_sequence,
    )
    error = await refused(talk.start("two"), reasons.ERROR_REASON_DATA_CORRUPT)
    assert error.message == f"{first.name}: event {first.last_sequence} does not match its digest"
    assert (await healthy.run("two")).state == run_pb2.RUN_STATE_SUCCEEDED


async def test_a_run_whose_history_is_changed_under_it_ends_and_says_so(
    replica: StartReplica, world: World, owner_execute: Any
) -> None:
    first = await replica()
    talk = await begin(first.client())
    earlier = [await talk.run(task) for task in ("one", "two")]
    world.inference.effects.hold = asyncio.Event()
    run = await talk.start("three")
    await eventually(lambda: world.inference.effects.held == 1)
    await first.kill()
    world.inference.effects.hold.set()
    await owner_execute(
        "UPDATE runs SET previous_run = NULL WHERE run = $1::uuid",
        earlier[1].name.removeprefix("runs/"),
    )
    ended = await talk.of((await replica()).client()).client.ended(run.name)
    assert ended.state == run_pb2.RUN_STATE_FAILED
    error = RemitError.from_status(ended.error)
    assert error.reason == reasons.ERROR_REASON_DATA_CORRUPT
    assert "2 runs came before it, and 1 are found" in error.message


async def test_a_sub_run_belongs_to_no_conversation_and_is_hidden_with_it(
    replica: StartReplica, world: World, agents_dir: Path
) -> None:
    for text in (agent("boss", agents="helper"), agent("helper")):
        (agents_dir / f"{text.split()[1]}.yaml").write_text(text)
    client = (await replica(agents_dir=agents_dir)).client()
    talk = await begin(client)
    await talk.run("What is 2 * 3?")
    world.inference.think = asks(("agents/helper", TASK))
    run = await talk.run("Lead.", agent="agents/boss")
    assert run.history_runs == 1
    child = await the_one_below(client, run.name)
    assert (child.conversation, child.previous_run, child.history_runs) == ("", "", 0)
    asked = next(r for r in world.inference.requests if r.request_id.startswith(child.name))
    assert [message.text for message in asked.messages[1:]] == [TASK["task"]]
    # What a run did on its way is its own; later runs see its answer.
    await talk.run("And?")
    assert [role for role, _ in told(world)] == ["user", "assistant", "user", "assistant", "user"]
    await talk.delete()
    await refused(client.get(child.name), reasons.ERROR_REASON_RUN_NOT_FOUND)
