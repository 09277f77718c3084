"""What the agent's database holds of a person is noise without their key, and ends with it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from remit import webhooks
from remit.agent.erased_runs import ErasedRuns
from remit.agent.reading import RunReader
from remit.agent.records import encode_event, encode_summary, run_id, split_run
from remit.api.agent.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    conversation_service_pb2,
    run_pb2,
)
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.options.v1 import options_pb2
from remit.api.tools.v1 import tool_pb2, tool_service_pb2
from remit.rpc.errors import RemitError
from remit.rpc.remits import Remit
from tests.agent.at_rest import places_of
from tests.agent.conftest import Client, Replica, StartReplica, World, request
from tests.agent.outside import client_remit, results, says
from tests.agent.test_conversations import begin
from tests.agent.test_explaining import explained, parts_around
from tests.agent.test_forking import refused
from tests.agent.test_sub_runs import agents, asks  # noqa: F401 - a fixture
from tests.waiting import eventually

ALICE, ROOT = "orgs/acme/users/alice", "orgs/acme/users/root"
MARK = "Zanzibar"
TASK = f"What is 17 * 23 in {MARK}?"
LONG = f"{MARK} has coconuts. " * 60
URL = f"https://example.com/{MARK}"
FILE = f"A file about {MARK}.".encode()
ERASED = reasons.ERROR_REASON_SUBJECT_ERASED
DELIVERED, FAILED = run_pb2.WEBHOOK_STATE_DELIVERED, run_pb2.WEBHOOK_STATE_FAILED


def admins_remit() -> Remit:
    """Made when it is needed: a remit lives shorter than a run of all tests."""
    return client_remit(ROOT, "admin")


def talks(world: World) -> None:
    """Everything that the mesh says names the marker."""

    def think(asked: Any) -> Any:
        if any(message.tool_call_id for message in asked.messages):
            return says(f"{LONG} It is 391.")
        return says(f"To {MARK}.", ("calculator", {"expression": "17 * 23", "why": LONG}))

    def act(call: tool_service_pb2.CallToolRequest) -> tool_service_pb2.CallToolResponse:
        if call.tool == webhooks.TOOL:
            raise RemitError(reasons.ERROR_REASON_TOOL_FAILED, f"{URL} answered 502")
        answer = results(value=391, text=LONG)
        made = tool_service_pb2.ArtifactContent(content=FILE)
        made.artifact.CopyFrom(tool_pb2.Artifact(name="notes.txt", media_type="text/plain"))
        answer.artifacts.append(made)
        return answer

    world.inference.think, world.tools.act = think, act


async def told_of(client: Client, name: str) -> run_pb2.Run:
    async def look() -> run_pb2.Run | None:
        run = await client.get(name)
        return run if run.webhook.state in {DELIVERED, FAILED} else None

    run = await eventually(look)
    assert run is not None
    return run


async def a_talk(client: Client) -> run_pb2.Run:
    """A run of a conversation that ended, and whose end nobody would hear."""
    conversation = await begin(client, display_name=f"About {MARK}")
    run = await client.create(
        TASK, context={"place": MARK}, webhook=URL, conversation=conversation.name
    )
    return await told_of(client, run.name)


async def test_nothing_that_was_said_is_stored_in_clear(
    replica: StartReplica, world: World
) -> None:
    talks(world)
    made = await replica(webhook_max_tries=1)
    client = made.client()
    run = await a_talk(client)
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED, run.error
    assert (run.task, run.context["place"], run.webhook.url) == (TASK, MARK, URL)
    assert run.webhook.error.message == f"{URL} answered 502"
    fork = await client.fork(run.name, from_sequence=1)
    await client.ended(fork.name)
    asked = request(TASK)
    await client.runs.CreateRun(asked, metadata=client.metadata)
    body = asked.SerializeToString(deterministic=True)
    markers = [MARK.encode(), FILE, body, LONG.encode()]
    assert await places_of(world.database, markers) == []
    # What is stored is found by who has the key.
    assert (await made.client(admins_remit()).get(run.name)).task == TASK
    artifact = await client.runs.GetArtifact(
        agent_service_pb2.GetArtifactRequest(run=run.name, artifact="notes.txt"),
        metadata=client.metadata,
    )
    assert artifact.content == FILE
    assert artifact.digest == hashlib.sha256(FILE).digest()


async def test_what_one_person_says_twice_is_stored_once(
    replica: StartReplica, world: World
) -> None:
    made = await replica()

    async def sealed() -> int:
        rows = await world.database.fetch("SELECT digest, bytes FROM content")
        return sum(hashlib.sha256(row["bytes"]).digest() != row["digest"] for row in rows)

    client = made.client()
    await client.ended((await client.create(LONG)).name)
    first = await sealed()
    await client.ended((await client.create(LONG)).name)
    assert await sealed() == first
    await made.client(admins_remit()).ended((await made.client(admins_remit()).create(LONG)).name)
    assert await sealed() == 2 * first


async def test_after_an_erasure_public_facts_are_left(replica: StartReplica, world: World) -> None:
    talks(world)
    world.subjects.remember_s = 0
    made = await replica(webhook_max_tries=1)
    parts = parts_around(made, world)
    client = made.client()
    run = await a_talk(client)
    parts.know(await client.watch(run.name))
    before = await calls_of(made)
    world.subjects.erase(ALICE)
    for who in (client, made.client(admins_remit())):
        shown = await who.get(run.name)
        assert shown.erased
        assert (shown.name, shown.subject, shown.state) == (run.name, ALICE, run.state)
        assert (shown.usage, shown.cost_nanos) == (run.usage, run.cost_nanos)
        assert (shown.create_time, shown.end_time) == (run.create_time, run.end_time)
        assert (shown.webhook.state, shown.webhook.tries) == (FAILED, 1)
        assert MARK not in str(shown)
        listed = await who.runs.ListRuns(agent_service_pb2.ListRunsRequest(), metadata=who.metadata)
        assert list(listed.runs) == [shown]
        story = await explained(who, run.name)
        assert [(m.part, m.reason) for m in story.missing] == [("journal", "SUBJECT_ERASED")]
        assert len([entry for entry in story.entries if entry.attempts]) == 3
        for call in (
            who.watch(run.name),
            who.fork(run.name),
            who.replay(run.name),
            who.pause(run.name),
            who.runs.GetArtifact(
                agent_service_pb2.GetArtifactRequest(run=run.name, artifact="notes.txt"),
                metadata=who.metadata,
            ),
        ):
            await refused(ERASED, f"{ALICE} was erased", call)
    await refused(reasons.ERROR_REASON_INVALID_STATE, "ended", client.cancel(run.name))
    assert await calls_of(made) == before
    assert len(before) == 3


async def calls_of(made: Replica) -> list[agent_service_pb2.RunCall]:
    stub = made.mesh.as_caller(options_pb2.CALLER_AUDIT).stub(
        agent_service_pb2_grpc.AgentServiceStub
    )
    return list((await stub.ListRunCalls(agent_service_pb2.ListRunCallsRequest())).calls)


async def test_a_list_shows_the_others_too(replica: StartReplica, world: World) -> None:
    world.subjects.remember_s = 0
    made = await replica()
    first = await made.client().create(TASK)
    await made.client().ended(first.name)
    bob = made.client(client_remit("orgs/acme/users/bob"))
    second = await bob.create(TASK)
    await bob.ended(second.name)
    world.subjects.erase(ALICE)
    admin = made.client(admins_remit())
    listed = await admin.runs.ListRuns(agent_service_pb2.ListRunsRequest(), metadata=admin.metadata)
    assert [(r.name, r.erased, r.task) for r in listed.runs] == [
        (second.name, False, TASK),
        (first.name, True, ""),
    ]


async def test_a_conversation_is_left_without_its_name_and_goes_on_no_more(
    replica: StartReplica, world: World
) -> None:
    world.subjects.remember_s = 0
    made = await replica()
    client = made.client()
    conversation = await begin(client, display_name=f"About {MARK}", request_id="talk")
    run = await client.create(TASK, conversation=conversation.name)
    await client.ended(run.name)
    world.subjects.erase(ALICE)
    found = await client.conversations.GetConversation(
        conversation_service_pb2.GetConversationRequest(name=conversation.name),
        metadata=client.metadata,
    )
    assert (found.conversation.display_name, found.conversation.erased) == ("", True)
    assert found.conversation.runs == 1
    listed = await client.conversations.ListConversations(
        conversation_service_pb2.ListConversationsRequest(), metadata=client.metadata
    )
    assert list(listed.conversations) == [found.conversation]
    await refused(ERASED, "was erased", client.create(conversation=conversation.name))
    again = begin(client, display_name=f"About {MARK}", request_id="talk")
    await refused(ERASED, "request_id talk was used before", again)
    await client.conversations.DeleteConversation(
        conversation_service_pb2.DeleteConversationRequest(
            name=conversation.name, request_id="gone"
        ),
        metadata=client.metadata,
    )


async def test_whoever_was_erased_begins_anew(replica: StartReplica, world: World) -> None:
    world.subjects.remember_s = 0
    client = (await replica()).client()
    asked = request(TASK)
    first = await client.runs.CreateRun(asked, metadata=client.metadata)
    await client.ended(first.run.name)
    again = await client.runs.CreateRun(asked, metadata=client.metadata)
    assert again.run.name == first.run.name
    world.subjects.erase(ALICE)
    call = client.runs.CreateRun(asked, metadata=client.metadata)
    await refused(ERASED, "use a new one", call)
    run = await client.create(TASK)
    assert (await client.ended(run.name)).task == TASK


async def held(made: Replica, world: World, **more: Any) -> run_pb2.Run:
    """A run whose first model call does not end."""
    world.inference.effects.hold = asyncio.Event()
    before = world.inference.effects.held
    run = await made.client().create(TASK, **more)
    await eventually(lambda: world.inference.effects.held > before)
    return run


def let_go(world: World) -> None:
    hold, world.inference.effects.hold = world.inference.effects.hold, None
    assert hold is not None
    hold.set()


async def ended_without_content(made: Replica, world: World, name: str) -> run_pb2.Run:
    """The run, which ended because its subject was erased."""

    async def look() -> run_pb2.Run | None:
        run = await made.client(admins_remit()).get(name)
        return run if run.state == run_pb2.RUN_STATE_FAILED else None

    run = await eventually(look)
    assert run is not None
    assert run.erased
    assert RemitError.from_status(run.error).reason == ERASED
    assert run.percent == 100
    assert run.HasField("end_time")
    assert await places_of(world.database, [MARK.encode()]) == []
    return run


async def test_a_run_ends_when_its_worker_meets_the_erasure(
    replica: StartReplica, world: World
) -> None:
    world.subjects.remember_s = 0
    made = await replica()
    run = await held(made, world, webhook=URL)
    world.subjects.erase(ALICE)
    let_go(world)
    ended = await ended_without_content(made, world, run.name)
    assert (ended.webhook.state, ended.webhook.url) == (FAILED, "")
    assert RemitError.from_status(ended.webhook.error).reason == ERASED
    assert world.policy.least[run.name] == 1
    assert made.parts.pool.running == 0


async def test_an_orphan_of_an_erased_subject_ends_at_its_adopter(
    replica: StartReplica, world: World
) -> None:
    world.subjects.remember_s = 0
    first = await replica()
    run = await held(first, world)
    await first.kill()
    world.subjects.erase(ALICE)
    second = await replica()
    await ended_without_content(second, world, run.name)
    assert run.name not in world.inference.effects.performed


Halt = Callable[[Replica, World], Awaitable[str]]


async def paused(made: Replica, world: World) -> str:
    run = await held(made, world)
    await made.client().pause(run.name)
    return run.name


async def scheduled(made: Replica, world: World) -> str:
    later = made.parts.runs.creator.clock.now().timestamp() + 3600
    when = {"seconds": int(later)}
    return (await made.client().create(TASK, schedule_time=when)).name


async def at_work(made: Replica, world: World) -> str:
    return (await held(made, world)).name


@pytest.mark.parametrize("halt", [paused, scheduled, at_work])
async def test_a_run_that_nobody_meets_is_looked_for(
    replica: StartReplica, world: World, halt: Halt
) -> None:
    world.subjects.remember_s = 0
    made = await replica()
    name = await halt(made, world)
    erased: ErasedRuns = made.parts.erased
    await erased.end_all()
    state = (await made.client().get(name)).state
    assert state not in {run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_SUCCEEDED}
    world.subjects.erase(ALICE)
    await erased.end_all()
    await ended_without_content(made, world, name)
    await eventually(lambda: made.parts.pool.running == 0)


async def test_it_is_looked_for_without_being_told(replica: StartReplica, world: World) -> None:
    world.subjects.remember_s = 0
    made = await replica()
    name = await scheduled(made, world)
    looking = asyncio.create_task(made.parts.erased.look(0.05))
    world.subjects.away = True
    await eventually(lambda: len(world.subjects.batches) > 3)
    world.subjects.away = False
    world.subjects.erase(ALICE)
    await ended_without_content(made, world, name)
    looking.cancel()


async def test_a_run_of_an_erased_subject_can_be_cancelled(
    replica: StartReplica, world: World
) -> None:
    world.subjects.remember_s = 0
    made = await replica()
    run = await held(made, world)
    world.subjects.erase(ALICE)
    cancelled = await made.client().cancel(run.name)
    assert cancelled.state == run_pb2.RUN_STATE_FAILED
    await ended_without_content(made, world, run.name)


async def test_sub_runs_end_before_the_run_above_them(
    replica: StartReplica,
    world: World,
    agents: Path,  # noqa: F811 - the fixture
) -> None:
    world.subjects.remember_s = 0
    world.inference.think = asks(("agents/helper", {"task": TASK}))
    world.tools.effects.hold = asyncio.Event()
    made = await replica(agents_dir=agents)
    client = made.client()
    run = await client.create(agent="agents/boss")

    await eventually(lambda: world.tools.effects.held == 1)
    listed = await client.runs.ListRuns(
        agent_service_pb2.ListRunsRequest(parent=run.name), metadata=client.metadata
    )
    world.subjects.erase(ALICE)
    await made.parts.erased.end_all()
    for each in (listed.runs[0].name, run.name):
        await ended_without_content(made, world, each)
    world.tools.effects.hold.set()


@pytest.mark.parametrize("who", [ALICE, ROOT])
async def test_a_fork_of_anothers_run_obeys_both_erasures(
    replica: StartReplica, world: World, who: str
) -> None:
    world.subjects.remember_s = 0
    made = await replica()
    run = await made.client().create(TASK)
    await made.client().ended(run.name)
    admin = made.client(admins_remit())
    fork = await admin.fork(run.name, from_sequence=1)
    assert (await admin.ended(fork.name)).task == TASK
    await held(made, world)
    going_on = await admin.fork(run.name, from_sequence=1)
    await eventually(lambda: world.inference.effects.held == 2)
    world.subjects.erase(who)
    shown = await admin.get(fork.name)
    assert (shown.erased, shown.task) == (True, "")
    await made.parts.erased.end_all()
    await ended_without_content(made, world, going_on.name)
    let_go(world)


async def test_without_keys_nothing_begins_and_nothing_is_lost(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    world.subjects.away = True
    asked = request(TASK)
    call = client.runs.CreateRun(asked, metadata=client.metadata)
    error = await refused(reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "from audit", call)
    assert error.retryable
    assert not world.policy.registered
    assert await world.database.fetchval("SELECT count(*) FROM runs") == 0
    world.subjects.away = False
    run = (await client.runs.CreateRun(asked, metadata=client.metadata)).run
    assert (await client.ended(run.name)).state == run_pb2.RUN_STATE_SUCCEEDED


async def test_an_orphan_waits_for_its_key(replica: StartReplica, world: World) -> None:
    first = await replica()
    run = await held(first, world)
    await first.kill()
    world.inference.effects.hold = None
    world.subjects.away = True
    second = await replica()
    before = len(world.subjects.batches)
    await eventually(lambda: len(world.subjects.batches) > before + 1)
    state = await world.database.fetchval("SELECT state FROM runs")
    assert state in {run_pb2.RUN_STATE_QUEUED, run_pb2.RUN_STATE_RUNNING}
    world.subjects.away = False
    ended = await second.client().ended(run.name)
    assert ended.state == run_pb2.RUN_STATE_SUCCEEDED


async def test_a_worker_waits_for_its_key(replica: StartReplica, world: World) -> None:
    world.subjects.remember_s = 0
    made = await replica()
    run = await held(made, world)
    world.subjects.away = True
    before = len(world.subjects.batches)
    let_go(world)
    await eventually(lambda: len(world.subjects.batches) > before + 2)
    world.subjects.away = False
    assert (await made.client().ended(run.name)).state == run_pb2.RUN_STATE_SUCCEEDED


async def test_a_key_is_asked_for_once(replica: StartReplica, world: World) -> None:
    client = (await replica()).client()
    for _ in range(3):
        run = await client.create(TASK)
        await client.ended(run.name)
    assert world.subjects.batches == [[(ALICE, b"")]]


async def stored_as_before(
    world: World, owner_execute: Callable[..., Awaitable[None]], name: str
) -> None:
    """Stores a run as it was stored before there were keys."""
    run = run_id(name)
    reader = RunReader(world.database, world.area_keys())
    stored = await reader.run(name)
    events = await reader.journal(name, page=100)
    slim, given = split_run(stored.run)
    summary = encode_summary(slim)
    pairs = [encode_event(event) for event in events]
    for content in [given, *(content for _, content in pairs if content)]:
        await owner_execute(
            "INSERT INTO content VALUES ($1, $2) ON CONFLICT DO NOTHING",
            *(content.digest, content.data),
        )
    for row, _ in pairs:
        await owner_execute(
            """UPDATE run_events SET payload = $3, content_digest = $4, digest = $5, claim = NULL,
            resource = NULL, intent_leaf_index = NULL WHERE run = $1 AND sequence = $2""",
            *(run, row.sequence, row.payload, row.content_digest, row.digest),
        )
    await owner_execute(
        """UPDATE runs SET key_id = NULL, sealed = NULL, summary = $2, content_digest = $3,
        body_digest = $4 WHERE run = $1""",
        *(run, summary.public, given.digest, hashlib.sha256(b"body").digest()),
    )


async def test_what_was_stored_before_there_were_keys_is_read_and_goes_on(
    replica: StartReplica, world: World, owner_execute: Callable[..., Awaitable[None]]
) -> None:
    talks(world)
    first = await replica()
    done = await first.client().create(TASK)
    await first.client().ended(done.name)
    calls = await calls_of(first)
    events = await first.client().watch(done.name)
    run = await held(first, world)
    await first.kill()
    for name in (done.name, run.name):
        await stored_as_before(world, owner_execute, name)
    assert await places_of(world.database, [MARK.encode()]) != []
    world.inference.effects.hold = None
    second = await replica()
    client = second.client()
    ended = await client.ended(run.name)
    assert (ended.state, ended.task) == (run_pb2.RUN_STATE_SUCCEEDED, TASK)
    assert await client.get(run.name) == ended
    assert await client.watch(done.name) == events
    assert (await calls_of(second))[: len(calls)] == calls
    forms = await world.database.fetch(
        "SELECT get_byte(payload, 0) = 1 AS sealed"
        " FROM run_events WHERE run = $1 ORDER BY sequence",
        run_id(run.name),
    )
    assert [row["sealed"] for row in forms] == sorted(row["sealed"] for row in forms)
    assert {row["sealed"] for row in forms} == {False, True}
    # What it did since then is sealed under one key, and is erased with it.
    world.subjects.erase(ALICE)
    third = await replica()
    assert (await third.client().get(run.name)).erased
    assert not (await third.client().get(done.name)).erased
