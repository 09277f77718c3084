"""What somebody changes about a run or a conversation is in the log before it is changed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from remit.api.agent.v1 import conversation_service_pb2, run_pb2
from remit.api.audit.v1 import audit_service_pb2, event_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.options.v1 import options_pb2
from remit.audit.admission import Limits, check_entry
from remit.rpc.clock import SystemClock
from tests.agent.conftest import Client, StartReplica, World
from tests.agent.outside import client_remit
from tests.agent.test_service import refused
from tests.waiting import eventually

LIMITS = Limits(max_entries=256, max_detail_bytes=16_384, max_text_chars=512, max_future_s=300)


async def held(client: Client, world: World) -> str:
    """A run whose model does not answer."""
    world.inference.effects.hold = asyncio.Event()
    name = (await client.create()).name
    await eventually(lambda: world.inference.effects.held == 1)
    return name


async def paused(client: Client, world: World) -> str:
    name = await held(client, world)
    await client.pause(name)
    return name


async def ended(client: Client, _: World) -> str:
    return (await client.ended((await client.create()).name)).name


async def talk(client: Client, _: World) -> str:
    request = conversation_service_pb2.CreateConversationRequest(request_id="talk")
    made = await client.conversations.CreateConversation(request, metadata=client.metadata)
    return made.conversation.name


async def delete(client: Client, name: str, request_id: str) -> Any:
    request = conversation_service_pb2.DeleteConversationRequest(name=name, request_id=request_id)
    return await client.conversations.DeleteConversation(request, metadata=client.metadata)


async def fork(client: Client, name: str, request_id: str) -> Any:
    return await client.fork(name, request_id=request_id, from_step=1)


CHANGES: dict[str, tuple[Any, Any]] = {
    "runs.cancel": (held, Client.cancel),
    "runs.pause": (held, Client.pause),
    "runs.resume": (paused, Client.resume),
    "runs.fork": (ended, fork),
    "conversations.delete": (talk, delete),
}
"""What each is done to, and how."""


@pytest.mark.parametrize("action", CHANGES)
async def test_each_change_is_recorded_once(
    replica: StartReplica, world: World, action: str
) -> None:
    make, do = CHANGES[action]
    client = (await replica()).client()
    name = await make(client, world)
    world.log.events.clear()
    for _ in range(2):
        await do(client, name, "x")
    (event,) = world.log.events.values()
    assert (event.action, event.resource, event.subject) == (
        action,
        name,
        "orgs/acme/users/alice",
    )
    assert event.kind == event_pb2.EVENT_KIND_ADMIN
    assert event.outcome == event_pb2.OUTCOME_UNSPECIFIED
    assert json.loads(event.detail_json)["own"] is True
    entry = audit_service_pb2.Entry(event=event)
    check_entry(entry, options_pb2.CALLER_AGENT, SystemClock().now(), LIMITS)


@pytest.mark.parametrize("action", CHANGES)
async def test_nothing_is_changed_that_is_not_recorded(
    replica: StartReplica, world: World, action: str
) -> None:
    make, do = CHANGES[action]
    client = (await replica()).client()
    name = await make(client, world)
    before = await rows(world)
    world.log.is_away = True
    await refused(do(client, name, "x"), reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE)
    assert await rows(world) == before
    world.log.is_away = False
    await do(client, name, "x")
    assert await rows(world) != before


async def test_what_cannot_be_done_is_not_recorded_as_asked(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    name = await ended(client, world)
    for do in (client.cancel, client.pause, client.resume):
        await refused(do(name), reasons.ERROR_REASON_INVALID_STATE)
    assert not world.log.events


async def test_whose_it_is_is_not_told_in_anothers_entry(
    replica: StartReplica, world: World
) -> None:
    made = await replica()
    name = await held(made.client(), world)
    admin = client_remit("orgs/acme/users/root", "admin")
    cancelled = await made.client(admin).cancel(name)
    assert cancelled.state == run_pb2.RUN_STATE_CANCELLED
    (event,) = world.log.events.values()
    assert event.subject == "orgs/acme/users/root"
    assert json.loads(event.detail_json)["own"] is False
    assert "alice" not in str(event)


async def rows(world: World) -> list[Any]:
    """What a change would change."""
    runs = await world.database.fetch("SELECT run, state, last_sequence FROM runs ORDER BY run")
    talks = await world.database.fetch("SELECT conversation, delete_time FROM conversations")
    return [*map(tuple, runs), *map(tuple, talks)]
