"""Forks among replicas: begun where the source stood, under keys and a bill of their own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from remit.agent.forks import MAX_CHAIN
from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from tests.agent.conftest import Client, StartReplica, World
from tests.agent.outside import MODEL_COST_NANOS, TOOL_COST_NANOS, away, client_remit, says
from tests.agent.test_conversations import begin, told
from tests.waiting import eventually

ANSWER = "The result is 391."
Overrides = agent_service_pb2.RunOverrides


def place(events: list[run_pb2.RunEvent], kind: str, nth: int = 0) -> int:
    """The sequence of an event of that kind."""
    return [e.sequence for e in events if e.HasField(kind)][nth]  # type: ignore[arg-type]


async def source_of(client: Client, **more: Any) -> tuple[str, list[run_pb2.RunEvent]]:
    run = await client.create(**more)
    return run.name, await client.watch(run.name)


async def refused(reason: int, words: str, call: Any) -> RemitError:
    with pytest.raises(RemitError, match=words) as caught:
        await call
    assert caught.value.reason == reason
    return caught.value


async def test_every_point_of_a_run_leads_to_the_same_answer_at_the_price_of_what_is_left(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    source, events = await source_of(client)
    first_turn, call = place(events, "model_call_ended"), place(events, "tool_call_ended")
    recorded = place(events, "tool_call_started")
    last = place(events, "model_call_ended", 1)
    whole = 2 * MODEL_COST_NANOS + TOOL_COST_NANOS
    for sequence in range(1, last):
        fork = await client.fork(source, from_sequence=sequence)
        kept = 0 if sequence < recorded else 1
        assert fork.fork == run_pb2.RunFork(run=source, sequence=sequence, turns=kept)
        assert (fork.cost_nanos, fork.usage.calls) == (0, 0)
        own = await client.watch(fork.name)
        ended = own[-1].ended.run
        assert ended.result == ANSWER
        left = whole - (MODEL_COST_NANOS if kept else 0)
        left -= TOOL_COST_NANOS if sequence >= call else 0
        assert (ended.cost_nanos, ended.fork) == (left, fork.fork)
        assert [e.sequence for e in own] == [*range(1, len(own) + 1)]
        assert {e.run for e in own} == {fork.name}
    assert first_turn < recorded < call < last
    assert set(world.inference.effects.performed.values()) == {1}
    assert set(world.tools.effects.performed.values()) == {1}
    for sequence in range(last, events[-1].sequence + 1):
        await refused(
            reasons.ERROR_REASON_INVALID_REQUEST,
            "nothing is left to do after event .* step 2 gave the answer",
            client.fork(source, from_sequence=sequence),
        )


async def test_points_that_are_none(replica: StartReplica) -> None:
    client = (await replica()).client()
    source, events = await source_of(client)
    for sequence in (-1, 0, events[-1].sequence + 1):
        await refused(
            reasons.ERROR_REASON_INVALID_REQUEST,
            f"from_sequence: must be from 1 to {events[-1].sequence}, the newest event",
            client.fork(source, from_sequence=sequence),
        )
    for step in (0, 3):
        await refused(
            reasons.ERROR_REASON_INVALID_REQUEST,
            "from_step: must be from 1 to 2, the newest step that began",
            client.fork(source, from_step=step),
        )
    await refused(
        reasons.ERROR_REASON_INVALID_STATE,
        "is SUCCEEDED and has no step that failed; say from_step or from_sequence",
        client.fork(source),
    )
    call = place(events, "tool_call_ended")
    for field, overrides in (
        ("overrides.task", Overrides(task=" ")),
        ("overrides.priority", Overrides(priority=9)),
        ("overrides.limits.max_steps", Overrides(limits=run_pb2.RunLimits(max_steps=1))),
        ("overrides.limits.max_cost_nanos", Overrides(limits=run_pb2.RunLimits(max_cost_nanos=-1))),
        ("overrides.agent_version", Overrides(agent_version="newest")),
    ):
        error = await refused(
            reasons.ERROR_REASON_INVALID_REQUEST,
            field,
            client.fork(source, from_sequence=call, overrides=overrides),
        )
        assert [v.field for v in error.violations] == [field]
    await refused(
        reasons.ERROR_REASON_SUSPICIOUS_INPUT,
        "overrides.task: contains a script tag",
        client.fork(source, from_step=1, overrides=Overrides(task="<script>")),
    )


async def test_a_source_is_forked_by_whoever_may_read_it(
    replica: StartReplica, world: World
) -> None:
    made = await replica()
    source, _ = await source_of(made.client())
    unknown = "runs/01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b"
    for user in ("orgs/acme/users/bob", "orgs/globex/users/eve"):
        client = made.client(client_remit(user))
        for name in (source, unknown):
            await refused(
                reasons.ERROR_REASON_RUN_NOT_FOUND,
                f"{name} does not exist",
                client.fork(name, from_step=1),
            )
    admin = made.client(client_remit("orgs/acme/users/root", "admin"))
    fork = await admin.fork(source, from_step=2)
    assert fork.subject == "orgs/acme/users/root"
    assert (await admin.ended(fork.name)).result == ANSWER
    assert world.policy.registered[fork.name].client_remit
    await refused(
        reasons.ERROR_REASON_RUN_NOT_FOUND, "does not exist", made.client().get(fork.name)
    )


async def test_the_same_request_gets_the_same_fork_and_another_body_is_refused(
    replica: StartReplica,
) -> None:
    made, other = await replica(), await replica()
    client = made.client()
    source, _ = await source_of(client, request_id="the source's")
    asked = [
        each.client().fork(source, from_step=2, request_id="f1")
        for each in (made, other, made, other, made, other)
    ]
    forks = await asyncio.gather(*asked)
    assert len({fork.name for fork in forks}) == 1
    assert forks[0].name != source
    for more in ({"from_step": 1}, {"from_sequence": 2}, {}):
        await refused(
            reasons.ERROR_REASON_KEY_REUSED,
            "f1 was used for another request",
            client.fork(source, request_id="f1", **more),
        )
    await refused(
        reasons.ERROR_REASON_KEY_REUSED,
        "was used for another request",
        client.fork(source, from_step=2, request_id="the source's"),
    )
    await refused(
        reasons.ERROR_REASON_KEY_REUSED,
        "was used for another request",
        client.create(request_id="f1"),
    )


async def test_a_changed_task_is_the_model_s_first_message(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    source, _ = await source_of(client, context={"unit": "kg"})
    overrides = Overrides(
        task="What is 3 * 5?",
        context=agent_service_pb2.RunContext(entries={"unit": "g"}),
        limits=run_pb2.RunLimits(max_steps=2),
        priority=1,
    )
    fork = await client.fork(source, from_step=1, overrides=overrides)
    assert list(fork.fork.overrides) == ["context", "limits.max_steps", "priority", "task"]
    assert (await client.ended(fork.name)).result == "The result is 15."
    asked = world.inference.requests[-1]
    assert (asked.messages[1].text, '"g"' in asked.messages[0].text) == ("What is 3 * 5?", True)
    late = await client.fork(source, from_step=2, overrides=Overrides(task="What is 3 * 5?"))
    assert (await client.ended(late.name)).result == ANSWER, "its tool result stands"


async def test_a_failed_step_is_tried_again(replica: StartReplica, world: World) -> None:
    fail = RemitError(reasons.ERROR_REASON_BUDGET_EXHAUSTED, "no money")
    client = (await replica()).client()
    world.tools.effects.failures = [fail]
    source, events = await source_of(client)
    assert events[-1].ended.run.state == run_pb2.RUN_STATE_FAILED
    fork = await client.fork(source)
    assert fork.fork == run_pb2.RunFork(
        run=source, sequence=place(events, "model_call_started") - 1, turns=0
    )
    world.tools.effects.failures = [fail]
    again = (await client.ended(fork.name)).name
    third = await client.fork(again)
    assert third.fork.run == again
    assert (await client.ended(third.name)).result == ANSWER


async def test_a_fork_of_a_fork_follows_the_chain_to_its_bound(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    name, events = await source_of(client)
    sequence = place(events, "tool_call_ended")
    for _ in range(MAX_CHAIN - 1):
        fork = await client.fork(name, from_sequence=sequence)
        name, sequence = fork.name, 1
        assert (await client.ended(name)).result == ANSWER
    await refused(
        reasons.ERROR_REASON_INVALID_REQUEST,
        f"name: {name} ends a chain of {MAX_CHAIN} forks, the longest allowed",
        client.fork(name, from_sequence=1),
    )
    assert sum(world.tools.effects.performed.values()) == 1
    assert [e.HasField("tool_call_started") for e in await client.watch(name)].count(True) == 0


async def test_a_step_that_a_fork_took_over_is_tried_again_from_the_fork(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    source, events = await source_of(client)
    fork = await client.fork(source, from_sequence=place(events, "tool_call_started"))
    await client.ended(fork.name)
    again = await client.fork(fork.name, from_step=1)
    assert again.fork == run_pb2.RunFork(run=fork.name, sequence=1, turns=0)
    own = await client.watch(again.name)
    assert own[-1].ended.run.result == ANSWER
    assert sum(world.tools.effects.performed.values()) == 3
    assert [e.HasField("tool_call_started") for e in own].count(True) == 1


async def test_a_fork_whose_worker_dies_goes_on_from_what_it_took_over(
    replica: StartReplica, world: World
) -> None:
    first = await replica()
    source, events = await source_of(first.client())
    world.inference.effects.hold = asyncio.Event()
    fork = await first.client().fork(source, from_sequence=place(events, "tool_call_ended"))
    await eventually(lambda: world.inference.effects.held == 1)
    await first.kill()
    world.inference.effects.hold = None
    second = await replica()
    assert (await second.client().ended(fork.name)).result == ANSWER
    assert sum(world.tools.effects.performed.values()) == 1
    assert set(world.inference.effects.performed.values()) == {1}


async def test_a_fork_that_waited_for_a_place_goes_on_from_what_it_took_over(
    replica: StartReplica, world: World
) -> None:
    client = (await replica(max_running=1, max_running_per_org=1)).client()
    source, events = await source_of(client)
    world.inference.effects.hold = hold = asyncio.Event()
    busy = await client.create()
    await eventually(lambda: world.inference.effects.held == 1)
    fork = await client.fork(source, from_sequence=place(events, "tool_call_ended"))
    assert fork.state == run_pb2.RUN_STATE_QUEUED
    world.inference.effects.hold = None
    hold.set()
    assert (await client.ended(busy.name)).result == ANSWER
    assert (await client.ended(fork.name)).result == ANSWER
    assert sum(world.tools.effects.performed.values()) == 2


async def test_a_fork_that_policy_did_not_register_is_not_there_and_may_be_asked_for_again(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    source, _ = await source_of(client)
    world.policy.failures = [away("policy")]
    call = client.fork(source, from_step=2, request_id="f1")
    await refused(reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "policy", call)
    assert await world.database.fetchval("SELECT count(*) FROM runs") == 1
    fork = await client.fork(source, from_step=2, request_id="f1")
    assert (await client.ended(fork.name)).result == ANSWER


async def test_a_fork_is_paused_and_cancelled_like_any_run(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    source, events = await source_of(client)
    world.inference.effects.hold = hold = asyncio.Event()
    fork = await client.fork(source, from_sequence=place(events, "tool_call_ended"))
    await eventually(lambda: world.inference.effects.held == 1)
    assert (await client.pause(fork.name)).state == run_pb2.RUN_STATE_PAUSED
    world.inference.effects.hold = None
    hold.set()
    await client.resume(fork.name)
    assert (await client.ended(fork.name)).result == ANSWER
    world.inference.effects.hold = asyncio.Event()
    fork = await client.fork(source, from_sequence=place(events, "tool_call_ended"))
    await eventually(lambda: world.inference.effects.held == 2)
    cancelled = await client.cancel(fork.name)
    assert cancelled.state == run_pb2.RUN_STATE_CANCELLED
    world.inference.effects.hold.set()
    world.inference.effects.hold = None
    revived = await client.fork(fork.name, from_sequence=cancelled.last_sequence)
    assert (await client.ended(revived.name)).result == ANSWER


async def test_a_source_that_was_changed_by_hand_is_named(
    replica: StartReplica, owner_execute: Any
) -> None:
    client = (await replica()).client()
    source, events = await source_of(client)
    fork = await client.fork(source, from_sequence=place(events, "tool_call_ended"))
    await client.ended(fork.name)
    await owner_execute(
        "UPDATE run_events SET payload = payload || '\\x00'::bytea WHERE run = $1 AND sequence = 3",
        source.removeprefix("runs/"),
    )
    for name in (source, fork.name):
        await refused(
            reasons.ERROR_REASON_DATA_CORRUPT,
            f"{source}: event 3 does not match its digest",
            client.fork(name, from_sequence=4),
        )
    assert (await client.fork(source, from_sequence=2)).fork.turns == 0, "before it all is well"


TESTER = """\
name: tester
display_name: Tester
description: Tests.
instructions: {instructions}
model: builtin-rules
tools: [calculator]
"""


async def test_a_fork_keeps_its_source_s_version_unless_the_current_one_is_asked_for(
    replica: StartReplica, world: World, agents_dir: Path
) -> None:
    def define(instructions: str) -> None:
        (agents_dir / "tester.yaml").write_text(TESTER.format(instructions=instructions))

    define("Old.")
    old = await replica(agents_dir=agents_dir)
    source = await old.client().create(agent="agents/tester")
    await old.client().ended(source.name)
    await old.kill()
    define("New.")
    new = await replica(agents_dir=agents_dir)
    client = new.client()
    kept = await client.fork(source.name, from_step=2)
    assert kept.agent_version == source.agent_version
    assert (await client.ended(kept.name)).result == ANSWER
    assert world.inference.requests[-1].messages[0].text == "Old."
    current = await client.fork(
        source.name, from_step=2, overrides=Overrides(agent_version="current")
    )
    assert current.agent_version != source.agent_version
    assert list(current.fork.overrides) == ["agent_version"]
    assert (await client.ended(current.name)).result == ANSWER
    assert world.inference.requests[-1].messages[0].text == "New."
    await new.kill()
    (agents_dir / "tester.yaml").unlink()
    bare = await replica(agents_dir=agents_dir)
    await refused(
        reasons.ERROR_REASON_AGENT_NOT_FOUND,
        "agents/tester does not exist",
        bare.client().fork(source.name, from_step=2),
    )


async def test_used_up_steps_are_asked_for_again_with_more_of_them(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    limits = run_pb2.RunLimits(max_steps=1)
    source, events = await source_of(client, limits=limits)
    ended = events[-1].ended.run
    assert RemitError.from_status(ended.error).reason == reasons.ERROR_REASON_RUN_LIMIT_REACHED
    more = Overrides(limits=run_pb2.RunLimits(max_steps=3))
    fork = await client.fork(source, overrides=more)
    assert (await client.ended(fork.name)).result == ANSWER


async def test_a_fork_s_calls_say_their_stage_and_its_sub_runs_are_its_own(
    replica: StartReplica, world: World, agents_dir: Path
) -> None:
    (agents_dir / "lead.yaml").write_text(
        TESTER.format(instructions="Lead.").replace("tester", "lead") + "agents: [assistant]\n"
    )

    def think(request: Any) -> Any:
        told = request.messages
        if told[0].text == "Lead." and len(told) == 2:
            turn = says("I ask.", ("calculator", {"expression": "2 * 3"}))
            turn.message.tool_calls.add(id="s", tool="agents/assistant")
            turn.message.tool_calls[1].arguments.update({"task": "hello"})
            return turn
        return says("Done.")

    world.inference.think = think
    client = (await replica(agents_dir=agents_dir)).client()
    source, events = await source_of(client, agent="agents/lead")
    assert events[-1].ended.run.result == "Done."
    below = events[place(events, "sub_run_started") - 1].sub_run_started.run
    fork = await client.fork(source, from_sequence=place(events, "sub_run_started"))
    own = await client.watch(fork.name)
    assert own[-1].ended.run.result == "Done."
    started = own[place(own, "sub_run_started") - 1].sub_run_started.run
    assert started != below
    assert (await client.get(started)).parent == fork.name
    assert own[place(own, "stage_started") - 1].stage_started.stage == "using tools"
    kept = await client.fork(source, from_sequence=place(events, "tool_call_ended", 1))
    ended = await client.ended(kept.name)
    assert (ended.result, ended.cost_nanos) == ("Done.", MODEL_COST_NANOS)


async def test_a_fork_sees_what_its_source_saw_and_is_no_part_of_the_conversation(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    talk = await begin(client)
    first = await talk.run("Good morning")
    source = await talk.run("What is 17 * 23?")
    seen = told(world)[:2]
    await talk.run("And later?")
    fork = await client.fork(source.name, from_step=1, overrides=Overrides(task="Good night"))
    assert (fork.conversation, fork.previous_run, fork.history_runs) == ("", first.name, 1)
    assert (await client.ended(fork.name)).result == "You said: Good night"
    assert told(world) == [*seen, ("user", "Good night")]
    assert (await talk.get()).last_run != fork.name
    await talk.delete()
    await refused(
        reasons.ERROR_REASON_RUN_NOT_FOUND,
        "does not exist",
        client.fork(source.name, from_step=1),
    )
    assert (await client.get(fork.name)).name == fork.name
