"""Replays among replicas: of what they journalled, without any service, and of what was changed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from remit.agent.records import encode_event
from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from tests.agent.conftest import StartReplica, World
from tests.agent.outside import away, client_remit
from tests.agent.test_conversations import begin
from tests.agent.test_forking import TESTER, Overrides, place, refused, source_of
from tests.waiting import eventually


def rows(world: World) -> Any:
    return world.database.fetchval(
        "SELECT (SELECT count(*) FROM run_events) + (SELECT count(*) FROM runs)"
    )


async def test_a_replay_finds_no_difference_and_does_nothing(
    replica: StartReplica, world: World
) -> None:
    world.tools.effects.failures = [away("tools")]
    client = (await replica()).client()
    source, events = await source_of(client)
    fork = await client.fork(source, from_sequence=place(events, "tool_call_started"))
    await client.ended(fork.name)
    talk = await begin(client)
    await talk.run("Good morning")
    spoken = await talk.run("What is 3 * 5?")
    world.tools.effects.failures = [RemitError(reasons.ERROR_REASON_BUDGET_EXHAUSTED, "no money")]
    failed, _ = await source_of(client)
    asked, issued, before = len(world.inference.requests), len(world.policy.issued), rows(world)
    stored = await before
    for name, requests in ((source, 2), (fork.name, 1), (spoken.name, 2), (failed, 1)):
        answer = await client.replay(name)
        assert not answer.HasField("divergence"), answer
        run = await client.get(name)
        assert (answer.last_sequence, answer.requests_compared) == (run.last_sequence, requests)
        assert (answer.requests_unrecorded, answer.agent_version) == (0, run.agent_version)
    assert (len(world.inference.requests), len(world.policy.issued)) == (asked, issued)
    assert await rows(world) == stored


async def test_a_run_that_goes_on_is_replayed_up_to_where_it_stands(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    world.inference.effects.hold = asyncio.Event()
    run = await client.create()
    await eventually(lambda: world.inference.effects.held == 1)
    answer = await client.replay(run.name)
    assert not answer.HasField("divergence")
    assert (answer.last_sequence >= 4, answer.requests_compared) == (True, 0)
    await client.cancel(run.name)
    assert not (await client.replay(run.name)).HasField("divergence")


async def test_another_definition_differs_at_the_first_request(
    replica: StartReplica, agents_dir: Path
) -> None:
    (agents_dir / "tester.yaml").write_text(TESTER.format(instructions="Old."))
    old = await replica(agents_dir=agents_dir)
    source, events = await source_of(old.client(), agent="agents/tester")
    current = Overrides(agent_version="current")
    assert not (await old.client().replay(source, current)).HasField("divergence")
    await old.kill()
    (agents_dir / "tester.yaml").write_text(TESTER.format(instructions="New."))
    client = (await replica(agents_dir=agents_dir)).client()
    assert not (await client.replay(source)).HasField("divergence"), "its own version is pinned"
    found = (await client.replay(source, current)).divergence
    assert found == agent_service_pb2.Divergence(
        sequence=place(events, "model_call_ended"),
        step=1,
        field="request.messages[0].text",
        recorded="Old.",
        replayed="New.",
    )


async def test_other_wishes_differ_where_they_matter(replica: StartReplica) -> None:
    client = (await replica()).client()
    source, events = await source_of(client)
    task = (await client.replay(source, Overrides(task="What is 3 * 5?"))).divergence
    assert (task.field, task.replayed) == ("request.messages[1].text", "What is 3 * 5?")
    steps = (
        await client.replay(source, Overrides(limits=run_pb2.RunLimits(max_steps=1)))
    ).divergence
    assert (steps.sequence, steps.field) == (place(events, "tool_call_started"), "event")
    assert steps.replayed == "end: FAILED RUN_LIMIT_REACHED"
    for overrides, words in (
        (Overrides(priority=1), "overrides.priority: says nothing in a replay"),
        (Overrides(agent_version="x"), "overrides.agent_version: must be `current`"),
        (Overrides(limits=run_pb2.RunLimits(max_steps=99)), "overrides.limits.max_steps"),
    ):
        await refused(reasons.ERROR_REASON_INVALID_REQUEST, words, client.replay(source, overrides))


async def test_a_run_is_replayed_by_whoever_may_read_it(replica: StartReplica) -> None:
    made = await replica()
    source, _ = await source_of(made.client())
    for user in ("orgs/acme/users/bob", "orgs/globex/users/eve"):
        call = made.client(client_remit(user)).replay(source)
        await refused(reasons.ERROR_REASON_RUN_NOT_FOUND, "does not exist", call)
    admin = made.client(client_remit("orgs/acme/users/root", "admin"))
    assert (await admin.replay(source)).requests_compared == 2


async def rewrite(owner_execute: Any, event: run_pb2.RunEvent) -> None:
    """Puts an event in the place of the one that is there, in clear: no digest tells of it."""
    row, _ = encode_event(event)
    await owner_execute(
        "UPDATE run_events SET payload = $3, digest = $4, claim = NULL, resource = NULL,"
        " intent_leaf_index = NULL WHERE run = $1 AND sequence = $2",
        row.run,
        row.sequence,
        row.payload,
        row.digest,
    )


async def test_an_event_that_was_forged_with_its_seal_is_named(
    replica: StartReplica, owner_execute: Any
) -> None:
    client = (await replica()).client()
    source, events = await source_of(client)
    cheaper = events[place(events, "tool_call_ended") - 1]
    cheaper.tool_call_ended.cost_nanos = 1
    await rewrite(owner_execute, cheaper)
    found = (await client.replay(source)).divergence
    assert (found.sequence, found.field) == (events[-1].sequence, "ended.run.cost_nanos")
    told = events[place(events, "tool_call_ended") - 1]
    told.tool_call_ended.cost_nanos = 50
    told.tool_call_ended.result["value"] = 392
    await rewrite(owner_execute, told)
    found = (await client.replay(source)).divergence
    assert found.sequence == place(events, "model_call_ended", 1)
    assert found.field == "model_call_ended.request_digest", "what was asked is not known any more"


async def test_a_journal_from_before_digests_says_so(
    replica: StartReplica, owner_execute: Any
) -> None:
    client = (await replica()).client()
    source, events = await source_of(client)
    for nth in (0, 1):
        ended = events[place(events, "model_call_ended", nth) - 1]
        ended.model_call_ended.ClearField("request_digest")
        await rewrite(owner_execute, ended)
    answer = await client.replay(source)
    assert (answer.requests_compared, answer.requests_unrecorded) == (0, 2)
    assert not answer.HasField("divergence")


@pytest.mark.parametrize("sequence", [1, 3])
async def test_a_journal_that_was_changed_by_hand_is_corrupt(
    replica: StartReplica, owner_execute: Any, sequence: int
) -> None:
    client = (await replica()).client()
    source, _ = await source_of(client)
    await owner_execute(
        "UPDATE run_events SET payload = '\\x00'::bytea WHERE run = $1 AND sequence = $2",
        source.removeprefix("runs/"),
        sequence,
    )
    await refused(
        reasons.ERROR_REASON_DATA_CORRUPT,
        f"{source}: event {sequence} does not match its digest",
        client.replay(source),
    )
