"""Guardrails by policy where tasks and contexts come in: by the client's remit and by the run's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from remit.api.agent.v1 import agent_service_pb2, conversation_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.guardrails import parse_wanted
from remit.rpc.errors import RemitError
from remit.rpc.remits import Remit
from tests.agent.conftest import StartReplica, World, request
from tests.agent.outside import client_remit
from tests.agent.test_service import refused, stream
from tests.agent.test_sub_runs import agents, asks, boss, the_one_below
from tests.monitoring.values import gained

__all__ = ["agents"]

ASSISTANT = "agents/assistant"
ADDRESS = "alice@example.com"
TASK = f"What is 17 * 23, {ADDRESS}?"
REFUSE = "agent.personal_data.input=refuse"
REDACT = "agent.personal_data.input=redact"


def told(guardrails: str) -> Remit:
    """A client's remit with what policy wants of the client's own calls."""
    return replace(client_remit(), guardrails=parse_wanted(guardrails).claim)


async def stored(world: World) -> int:
    count: int = await world.database.fetchval("SELECT count(*) FROM runs")
    return count


async def test_a_task_is_refused_for_one_client_and_not_for_another(
    replica: StartReplica, world: World
) -> None:
    made = await replica()
    guarded = made.client(told(f"{REFUSE}, secrets.input=redact"))
    asked = request(TASK, context={"of": ADDRESS})
    error = await refused(
        guarded.runs.CreateRun(asked, metadata=guarded.metadata),
        reasons.ERROR_REASON_SUSPICIOUS_INPUT,
    )
    assert {violation.field for violation in error.violations} == {"task", "context[of]"}
    assert (await stored(world), world.policy.registered) == (0, {})
    assert (await made.client().create(TASK)).task == TASK


async def test_a_refusal_is_told_beside_what_is_malformed(replica: StartReplica) -> None:
    client = (await replica()).client(told(REFUSE))
    asked = agent_service_pb2.StreamRunRequest(request=request(TASK), after_sequence=-1)
    with pytest.raises(RemitError) as caught:
        async for _ in client.runs.StreamRun(asked, metadata=client.metadata):
            pass
    assert {violation.field for violation in caught.value.violations} == {"after_sequence", "task"}


async def test_a_stream_is_resumed_though_its_request_would_be_refused_now(
    replica: StartReplica,
) -> None:
    made = await replica()
    asked = request(TASK)
    before = await stream(made.client(), asked)
    resumed = await stream(made.client(told(REFUSE)), asked, after=before[2].sequence)
    assert [event.sequence for event in resumed] == [event.sequence for event in before[3:]]


async def test_what_is_wanted_of_an_agents_runs_comes_with_the_runs_remit(
    replica: StartReplica, world: World
) -> None:
    world.policy.guardrails[ASSISTANT] = REDACT
    client = (await replica()).client()
    redacted = gained(
        "remit_guardrail_findings_total",
        detector="personal_data", direction="input", mode="redact",
    )  # fmt: skip
    asked = request(TASK, context={"of": ADDRESS})
    run = (await client.runs.CreateRun(asked, metadata=client.metadata)).run
    assert (run.task, dict(run.context)) == ("What is 17 * 23, [email]?", {"of": "[email]"})
    assert redacted() == 2
    again = (await client.runs.CreateRun(asked, metadata=client.metadata)).run
    assert again.name == run.name
    assert (await client.ended(run.name)).result == "The result is 391."
    assert ADDRESS not in str(await client.watch(run.name))
    assert ADDRESS not in str(world.inference.requests)


async def test_what_an_agent_may_not_be_asked_starts_no_run(
    replica: StartReplica, world: World
) -> None:
    world.policy.guardrails[ASSISTANT] = REFUSE
    made = await replica(concurrency=1)
    client = made.client()
    for _ in range(3):
        error = await refused(client.create(TASK), reasons.ERROR_REASON_SUSPICIOUS_INPUT)
        assert [violation.field for violation in error.violations] == ["task"]
    assert await stored(world) == 0
    # No place is lost by it.
    world.policy.guardrails.clear()
    assert (await client.ended((await client.create(TASK)).name)).result == "The result is 391."


async def test_what_was_looked_for_already_is_not_looked_for_again(
    replica: StartReplica, world: World
) -> None:
    world.policy.guardrails[ASSISTANT] = REDACT
    client = (await replica()).client(told(REDACT))
    redacted = gained(
        "remit_guardrail_findings_total",
        detector="personal_data", direction="input", mode="redact",
    )  # fmt: skip
    await client.create(TASK)
    assert redacted() == 1


async def test_a_sub_run_is_refused_by_what_is_wanted_of_its_agent_and_its_parent_is_told(
    replica: StartReplica, world: World, agents: Path
) -> None:
    world.policy.guardrails["agents/helper"] = REFUSE
    world.inference.think = asks(("agents/helper", {"task": TASK}))
    client = (await replica(agents_dir=agents)).client()
    run = await client.ended((await boss(client)).name)
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert "an e-mail address" in run.result
    assert await stored(world) == 1


async def test_a_sub_run_is_given_what_is_left(
    replica: StartReplica, world: World, agents: Path
) -> None:
    world.policy.guardrails["agents/helper"] = REDACT
    world.inference.think = asks(("agents/helper", {"task": TASK}))
    client = (await replica(agents_dir=agents)).client()
    run = await boss(client)
    assert (await the_one_below(client, run.name)).task == "What is 17 * 23, [email]?"


async def test_a_fork_is_screened_by_what_is_wanted_now_and_says_that_its_task_is_another(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    source = await client.ended((await client.create(TASK)).name)
    asked = agent_service_pb2.ForkRunRequest(
        name=source.name,
        from_step=1,
        request_id="fork",
        overrides=agent_service_pb2.RunOverrides(priority=2),
    )
    world.policy.guardrails[ASSISTANT] = REFUSE
    error = await refused(
        client.runs.ForkRun(asked, metadata=client.metadata),
        reasons.ERROR_REASON_SUSPICIOUS_INPUT,
    )
    assert [violation.field for violation in error.violations] == ["overrides.task"]
    world.policy.guardrails[ASSISTANT] = REDACT
    fork = (await client.runs.ForkRun(asked, metadata=client.metadata)).run
    assert fork.task == "What is 17 * 23, [email]?"
    assert list(fork.fork.overrides) == ["priority", "task"]


async def test_the_name_of_a_conversation_is_screened_for_its_client(
    replica: StartReplica,
) -> None:
    client = (await replica()).client(told(REDACT))
    asked = conversation_service_pb2.CreateConversationRequest(
        display_name=f"About {ADDRESS}", request_id="c1"
    )
    response = await client.conversations.CreateConversation(asked, metadata=client.metadata)
    assert response.conversation.display_name == "About [email]"


async def test_what_policy_wants_and_this_version_cannot_do_starts_nothing(
    replica: StartReplica, world: World
) -> None:
    made = await replica()
    newer = made.client(replace(client_remit(), guardrails="newer_detector:30000"))
    await refused(newer.create(TASK), reasons.ERROR_REASON_REMIT_INVALID)
    assert await stored(world) == 0
