"""Runs through the public contract, with the outside played by small services."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from remit.rpc.ids import SystemIds
from tests.agent.conftest import Client, StartReplica, World, request
from tests.agent.outside import (
    MODEL_COST_NANOS,
    TOOL_COST_NANOS,
    away,
    client_remit,
    says,
)
from tests.monitoring.values import gained
from tests.waiting import eventually

CREATE_RUN = "/remit.api.agent.v1.AgentService/CreateRun"
JOURNAL = [
    "created",
    "started",
    "stage_started",
    "model_call_started",
    "stage_started",
    "text_delta",
    "model_call_ended",
    "stage_started",
    "tool_call_started",
    "tool_call_ended",
    "stage_started",
    "model_call_started",
    "stage_started",
    "text_delta",
    "model_call_ended",
    "ended",
]


def kinds(events: list[run_pb2.RunEvent]) -> list[str]:
    return [event.WhichOneof("event") or "" for event in events]


async def refused(call: Awaitable[Any], reason: reasons.ErrorReason.ValueType) -> RemitError:
    with pytest.raises(RemitError) as caught:
        await call
    assert caught.value.reason == reason, caught.value
    return caught.value


async def stream(
    client: Client, asked: agent_service_pb2.CreateRunRequest, after: int = 0
) -> list[agent_service_pb2.StreamRunResponse]:
    return [
        response
        async for response in client.runs.StreamRun(
            agent_service_pb2.StreamRunRequest(request=asked, after_sequence=after),
            metadata=client.metadata,
        )
    ]


async def test_a_run_calls_a_tool_and_answers(replica: StartReplica, world: World) -> None:
    client = (await replica()).client()
    run = await client.create(context={"unit": "apples"})
    events = await client.watch(run.name)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert kinds(events) == JOURNAL
    ended = events[-1].ended.run
    assert ended.state == run_pb2.RUN_STATE_SUCCEEDED
    assert ended.result == "The result is 391."
    assert ended.cost_nanos == 2 * MODEL_COST_NANOS + TOOL_COST_NANOS
    assert ended.usage.input_tokens == 20
    assert ended.last_leaf_index == 8
    assert ended.last_sequence == len(events)
    assert ended.subject == "orgs/acme/users/alice"
    assert events[-1].percent == 100
    assert max(event.percent for event in events[:-1]) < 100
    assert await client.get(run.name) == ended
    assert ended.context["unit"] == "apples"
    assert '"unit": "apples"' in world.inference.requests[0].messages[0].text


async def test_every_effect_carries_its_own_key_and_the_runs_remit(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    run = await client.create()
    await client.ended(run.name)
    performed = world.inference.effects.performed + world.tools.effects.performed
    assert performed == {
        f"{run.name}/steps/1/model": 1,
        f"{run.name}/steps/1/tools/c0": 1,
        f"{run.name}/steps/2/model": 1,
    }
    assert world.policy.issued == [(run.name, 1)]
    assert world.policy.registered[run.name].max_cost_nanos == 500_000_000


async def test_commits_and_calls_a_run_are_few(replica: StartReplica, world: World) -> None:
    made = await replica()
    client = made.client()
    await client.ended((await client.create()).name)  # the offer of tools is known from here on
    before = made.parts.store.commits
    run = await client.create()
    await client.ended(run.name)
    assert made.parts.store.commits - before == 4
    assert world.tools.listings == 1


async def test_the_same_stream_is_followed_live_and_resumed_anywhere(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    asked = request()
    first = await stream(client, asked)
    assert kinds([response.event for response in first]) == JOURNAL
    for after in range(len(first) + 1):
        again = await stream(client, asked, after)
        assert again == first[after:]
        assert await client.watch(first[0].event.run, after) == [r.event for r in first[after:]]
    assert sum(world.inference.effects.performed.values()) == 2


async def test_a_watcher_sees_text_before_the_turn_ends(
    replica: StartReplica, world: World
) -> None:
    released = asyncio.Event()

    async def pieces() -> Any:
        yield "first "
        await released.wait()
        yield "second"

    world.inference.think = lambda _: says("first second")
    world.inference.pieces = pieces()
    client = (await replica(delta_interval_ms=1)).client()
    run = await client.create()
    seen: list[str] = []
    async for response in client.runs.WatchRun(
        agent_service_pb2.WatchRunRequest(name=run.name), metadata=client.metadata
    ):
        if response.event.HasField("text_delta"):
            seen.append(response.event.text_delta.text)
            released.set()
    assert seen[0] == "first "
    assert "".join(seen) == "first second"


async def test_percent_and_stage_of_a_run_are_read_without_its_journal(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    world.tools.effects.hold = asyncio.Event()
    run = await client.create(limits=run_pb2.RunLimits(max_steps=2))
    assert (run.percent, run.stage) in {(0, ""), (0, "thinking")}

    async def uses_tools() -> run_pb2.Run | None:
        read = await client.get(run.name)
        return read if read.stage == "using tools" else None

    halfway = await eventually(uses_tools)
    assert halfway is not None
    listed = await client.runs.ListRuns(
        agent_service_pb2.ListRunsRequest(), metadata=client.metadata
    )
    assert list(listed.runs) == [halfway]
    assert halfway.percent == 0
    world.tools.effects.hold.set()
    ended = await client.ended(run.name)
    assert (ended.percent, ended.stage) == (100, "answering")
    assert await client.get(run.name) == ended


async def test_a_silent_stream_sends_heartbeats(replica: StartReplica, world: World) -> None:
    world.inference.effects.hold = asyncio.Event()
    client = (await replica(heartbeat_s=0.05)).client()
    run = await client.create()
    await eventually(lambda: world.inference.effects.held == 1)  # its four events are journalled
    heartbeats = 0
    async for response in client.runs.WatchRun(
        agent_service_pb2.WatchRunRequest(name=run.name), metadata=client.metadata
    ):
        heartbeats += not response.HasField("event")
        if heartbeats == 2:
            assert response.sequence == 4
            world.inference.effects.hold.set()
            heartbeats += 1
    assert heartbeats >= 3


async def test_the_same_request_gets_the_same_run_and_another_body_is_refused(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    asked = request()
    first, second = await asyncio.gather(
        *(client.runs.CreateRun(asked, metadata=client.metadata) for _ in range(2))
    )
    assert first.run.name == second.run.name
    await client.ended(first.run.name)
    world.policy.failures = [away("policy")]  # a repetition asks nobody
    third = await client.runs.CreateRun(asked, metadata=client.metadata)
    assert third.run.name == first.run.name
    asked.task = "Another task"
    await refused(
        client.runs.CreateRun(asked, metadata=client.metadata), reasons.ERROR_REASON_KEY_REUSED
    )


async def test_another_users_request_id_is_another_run(replica: StartReplica, world: World) -> None:
    made = await replica()
    asked = request()
    names = set()
    for user in ("orgs/acme/users/alice", "orgs/acme/users/bob", "orgs/other/users/alice"):
        client = made.client(client_remit(user))
        response = await client.runs.CreateRun(asked, metadata=client.metadata)
        names.add(response.run.name)
    assert len(names) == 3


async def test_a_bad_request_is_refused_before_anything_is_stored(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    for asked, reason in (
        (request(""), reasons.ERROR_REASON_INVALID_REQUEST),
        (request("x" * 10_001), reasons.ERROR_REASON_INVALID_REQUEST),
        (request("<script>"), reasons.ERROR_REASON_SUSPICIOUS_INPUT),
        (request(agent="agents/asistant"), reasons.ERROR_REASON_AGENT_NOT_FOUND),
        (request(limits=run_pb2.RunLimits(max_steps=9)), reasons.ERROR_REASON_INVALID_REQUEST),
    ):
        await refused(client.runs.CreateRun(asked, metadata=client.metadata), reason)
    assert await world.database.fetchval("SELECT count(*) FROM runs") == 0
    assert world.policy.registered == {}


async def test_what_is_replaced_is_nowhere_and_the_request_is_the_same(
    replica: StartReplica, world: World
) -> None:
    client = (await replica(guardrails="personal_data.input=redact")).client()
    asked = request("What is 17 * 23, alice@example.com?", context={"of": "alice@example.com"})
    run = (await client.runs.CreateRun(asked, metadata=client.metadata)).run
    again = (await client.runs.CreateRun(asked, metadata=client.metadata)).run
    assert again.name == run.name
    assert run.task == "What is 17 * 23, [email]?"
    assert dict(run.context) == {"of": "[email]"}
    ended = await client.ended(run.name)
    assert ended.result == "The result is 391."
    assert "alice@" not in str(await client.watch(run.name))


async def test_what_is_found_in_a_streamed_request_is_counted_once(replica: StartReplica) -> None:
    client = (await replica()).client()
    flagged = {"detector": "secrets", "direction": "input", "mode": "flag"}
    found = gained("remit_guardrail_findings_total", **flagged)
    await stream(client, request("What is 17 * 23, AKIAIOSFODNN7EXAMPLE?"))
    assert found() == 1
    asked = request("What is 17 * 23, AKIAIOSFODNN7EXAMPLE? <script>")
    for after in (0, -1):
        with pytest.raises(RemitError) as refusal:
            await stream(client, asked, after)
        assert "task" in {violation.field for violation in refusal.value.violations}
    assert found() == 3


async def test_no_run_starts_while_policy_is_away(replica: StartReplica, world: World) -> None:
    made = await replica()
    client = made.client()
    world.policy.failures = [away("policy")]
    await refused(client.create(), reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE)
    assert await world.database.fetchval("SELECT count(*) FROM runs") == 0
    assert (await client.ended((await client.create()).name)).result == "The result is 391."


async def test_a_run_is_seen_by_its_owner_and_admins_of_its_org_alone(
    replica: StartReplica, world: World
) -> None:
    made = await replica()
    owner = made.client()
    run = await owner.create()
    await owner.ended(run.name)
    admin = made.client(client_remit("orgs/acme/users/root", "admin"))
    assert (await admin.get(run.name)).name == run.name
    for stranger in ("orgs/acme/users/bob", "orgs/other/users/alice"):
        client = made.client(client_remit(stranger))
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
            await refused(call(client), reasons.ERROR_REASON_RUN_NOT_FOUND)
    foreign_admin = made.client(client_remit("orgs/other/users/root", "admin"))
    await refused(foreign_admin.get(run.name), reasons.ERROR_REASON_RUN_NOT_FOUND)


async def test_unknown_runs_and_sequences_from_the_future_are_refused(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    unknown = f"runs/{SystemIds().uuid7()}"
    await refused(client.get(unknown), reasons.ERROR_REASON_RUN_NOT_FOUND)
    await refused(client.get("runs/nonsense"), reasons.ERROR_REASON_INVALID_REQUEST)
    run = await client.create()
    await client.ended(run.name)
    await refused(client.watch(run.name, 99), reasons.ERROR_REASON_INVALID_REQUEST)
    await refused(client.watch(run.name, -1), reasons.ERROR_REASON_INVALID_REQUEST)


async def test_runs_are_listed_in_pages_newest_first(replica: StartReplica, world: World) -> None:
    made = await replica()
    client, bob = made.client(), made.client(client_remit("orgs/acme/users/bob"))
    mine = [(await client.create()).name for _ in range(5)]
    theirs = (await bob.create()).name
    for name in mine:
        await client.ended(name)
    await bob.ended(theirs)

    async def listed(who: Client, **filters: Any) -> list[str]:
        names: list[str] = []
        token = ""
        while True:
            page = await who.runs.ListRuns(
                agent_service_pb2.ListRunsRequest(page_size=2, page_token=token, **filters),
                metadata=who.metadata,
            )
            assert len(page.runs) <= 2
            names += [run.name for run in page.runs]
            token = page.next_page_token
            if not token:
                return names

    assert await listed(client) == mine[::-1]
    admin = made.client(client_remit("orgs/acme/users/root", "admin"))
    assert await listed(admin) == [theirs, *mine[::-1]]
    assert await listed(client, state=run_pb2.RUN_STATE_FAILED) == []
    assert await listed(client, agent="agents/clerk") == []
    assert len(await listed(client, agent="agents/assistant")) == 5
    for wrong in ({"page_token": "%%"}, {"page_token": "YQ=="}, {"page_size": -1}, {"state": 9}):
        await refused(
            client.runs.ListRuns(
                agent_service_pb2.ListRunsRequest(**wrong),
                metadata=client.metadata,
            ),
            reasons.ERROR_REASON_INVALID_REQUEST,
        )


async def test_a_page_of_large_runs_fits_a_message(replica: StartReplica, world: World) -> None:
    client = (await replica()).client()
    context = {f"fact{n}": "x" * 10_000 for n in range(25)}
    names = [(await client.create("big", context=context)).name for _ in range(16)]
    first = await client.runs.ListRuns(
        agent_service_pb2.ListRunsRequest(), metadata=client.metadata
    )
    assert 1 < len(first.runs) < 16
    assert first.ByteSize() < 4 * 2**20
    rest = await client.runs.ListRuns(
        agent_service_pb2.ListRunsRequest(page_token=first.next_page_token),
        metadata=client.metadata,
    )
    assert [run.name for run in [*first.runs, *rest.runs]] == names[::-1]


async def test_thirty_two_runs_at_once_all_end(replica: StartReplica, world: World) -> None:
    client = (await replica(max_running=8)).client()

    async def one(number: int) -> str:
        responses = await stream(client, request(f"What is {number} * 3?"))
        return responses[-1].event.ended.run.result

    answers = await asyncio.gather(*(one(number) for number in range(32)))
    assert answers == [f"The result is {number * 3}." for number in range(32)]
    assert set(world.inference.effects.performed.values()) == {1}
    assert set(world.tools.effects.performed.values()) == {1}


async def test_a_full_queue_refuses_at_once_with_advice(
    replica: StartReplica, world: World
) -> None:
    world.inference.effects.hold = asyncio.Event()
    client = (await replica(max_running=1, max_queued_runs=2)).client()
    names = [(await client.create()).name for _ in range(3)]
    shed = gained("remit_rpc_overloaded_total", method=CREATE_RUN)
    error = await refused(client.create(), reasons.ERROR_REASON_OVERLOADED)
    assert shed() == 1
    assert error.retry_after_s
    world.inference.effects.hold.set()
    for name in names:
        assert (await client.ended(name)).state == run_pb2.RUN_STATE_SUCCEEDED


async def test_the_catalogue_lists_agents_in_pages(replica: StartReplica) -> None:
    client = (await replica(running=False)).client()
    from remit.api.agent.v1 import agent_catalog_service_pb2 as catalog  # noqa: PLC0415

    first = await client.catalog.ListAgents(
        catalog.ListAgentsRequest(page_size=2), metadata=client.metadata
    )
    rest = await client.catalog.ListAgents(
        catalog.ListAgentsRequest(page_size=2, page_token=first.next_page_token),
        metadata=client.metadata,
    )
    agents = [*first.agents, *rest.agents]
    assert [a.name for a in agents] == [
        "agents/assistant",
        "agents/clerk",
        "agents/coordinator",
        "agents/researcher",
    ]
    assert list(agents[2].agents) == ["agents/assistant", "agents/researcher", "agents/clerk"]
    assert rest.next_page_token == ""
    one = await client.catalog.GetAgent(
        catalog.GetAgentRequest(name="agents/clerk"), metadata=client.metadata
    )
    assert one.agent == agents[1]
    await refused(
        client.catalog.GetAgent(
            catalog.GetAgentRequest(name="agents/clark"), metadata=client.metadata
        ),
        reasons.ERROR_REASON_AGENT_NOT_FOUND,
    )


async def test_a_client_without_a_remit_is_refused(replica: StartReplica) -> None:
    made = await replica(running=False)
    stub = made.client().runs
    await refused(
        stub.GetRun(agent_service_pb2.GetRunRequest(name="runs/x")),
        reasons.ERROR_REASON_REMIT_INVALID,
    )


async def test_a_client_that_leaves_while_policy_is_away_makes_no_lost_error(
    replica: StartReplica, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, going_on = asyncio.Event(), asyncio.Event()

    async def away_in_a_while(*_: Any) -> Any:
        asked.set()
        await going_on.wait()
        raise away("policy")

    monkeypatch.setattr(world.policy, "IssueRemit", away_in_a_while)
    client = (await replica()).client()
    lost: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
    creating = asyncio.create_task(client.create())
    await asked.wait()
    creating.cancel()
    with pytest.raises((asyncio.CancelledError, RemitError)):
        await creating
    going_on.set()
    await eventually(lambda: not _creations())
    del creating
    gc.collect()
    assert lost == []


def _creations() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("new-")]
