"""Tool calls whose outcome is unknown, where the agent asks people: what the run does then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import struct_pb2

from remit.agent.definitions import OnDoubt
from remit.agent.doubts import Again, again, known_by_now, what_is_left
from remit.agent.failures import Verdict
from remit.agent.journal import ToolCall
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from tests.agent.conftest import Replica, StartReplica, World
from tests.agent.outside import Generate, Turn, results, says
from tests.agent.test_approvals import decide, is_parked
from tests.agent.test_loop import AGENT, ended, reason_of
from tests.waiting import eventually

CLAIM = "claims/01981a2b-0000-7000-8000-000000000001"


def doubt() -> RemitError:
    return RemitError(reasons.ERROR_REASON_EFFECT_IN_DOUBT, "unknown", metadata={"claim": CLAIM})


def think(request: Generate) -> Turn:
    """One mail, and an answer that says what came of it."""
    if len(request.messages) > 2:
        return says(f"I was told: {request.messages[-1].text}")
    return says("", ("send_email", {"to": "ann"}))


@pytest.fixture
async def asking(replica: StartReplica, world: World, agents_dir: Path) -> Replica:
    """A replica whose agent asks people about doubts; its first call of a tool is one."""
    (agents_dir / "tester.yaml").write_text(AGENT + "on_doubt: ask\n")
    world.inference.think = think
    world.tools.act = lambda _: results(message_id="m1")
    world.tools.effects.failures = [doubt()]
    world.tools.effects.wants_approval.add("/tools/c0/2")
    return await replica(agents_dir=agents_dir)


async def parked(made: Replica) -> run_pb2.Run:
    run = await made.client().create(agent="agents/tester")
    await eventually(lambda: is_parked(made, run.name))
    return await made.client().get(run.name)


async def test_the_run_waits_without_a_worker_and_repeats_what_was_approved(
    asking: Replica, world: World
) -> None:
    run = await parked(asking)
    assert len(run.approvals) == 1
    assert not world.tools.effects.performed
    decide(world, run, "APPROVED")
    events = await asking.client().watch(run.name)
    assert events[-1].ended.run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert list(world.tools.effects.performed) == [f"{run.name}/steps/1/tools/c0/2"]
    started = [e.tool_call_started for e in events if e.HasField("tool_call_started")]
    assert [each.repeats_claim for each in started] == ["", CLAIM]
    assert started[1].arguments == started[0].arguments


async def test_the_replay_of_a_repeated_call_agrees(asking: Replica, world: World) -> None:
    run = await parked(asking)
    decide(world, run, "APPROVED")
    await asking.client().ended(run.name)
    replayed = await asking.client().replay(run.name)
    assert not replayed.HasField("divergence")


async def test_a_person_who_says_no_tells_the_model_why(asking: Replica, world: World) -> None:
    run = await parked(asking)
    decide(world, run, "DENIED")
    end = await asking.client().ended(run.name)
    assert end.state == run_pb2.RUN_STATE_SUCCEEDED
    assert "is DENIED" in end.result
    assert not world.tools.effects.performed
    assert not (await asking.client().replay(run.name)).HasField("divergence")


@pytest.mark.parametrize("state", ["EXPIRED", "WITHDRAWN"])
async def test_a_doubt_that_nobody_decided_about_ends_the_run(
    asking: Replica, world: World, state: str
) -> None:
    run = await parked(asking)
    decide(world, run, state)
    end = await asking.client().ended(run.name)
    assert reason_of(end) == reasons.ERROR_REASON_EFFECT_IN_DOUBT
    assert f"is {state}" in end.error.message
    assert not world.tools.effects.performed
    assert not (await asking.client().replay(run.name)).HasField("divergence")


async def test_a_doubt_that_was_resolved_meanwhile_has_its_own_outcome(
    asking: Replica, world: World
) -> None:
    run = await parked(asking)
    world.tools.effects.failures = [
        RemitError(reasons.ERROR_REASON_INVALID_STATE, "in doubt no more")
    ]
    decide(world, run, "APPROVED")
    end = await asking.client().ended(run.name)
    assert end.state == run_pb2.RUN_STATE_SUCCEEDED
    assert list(world.tools.effects.performed) == [f"{run.name}/steps/1/tools/c0"]


async def test_an_idempotent_tool_is_called_again_without_asking(
    asking: Replica, world: World
) -> None:
    world.inference.think = lambda r: (
        says("done") if len(r.messages) > 2 else says("", ("calculator", {"expression": "1"}))
    )
    world.tools.effects.wants_approval.clear()
    run = await asking.client().create(agent="agents/tester")
    events = await asking.client().watch(run.name)
    started = [e.tool_call_started for e in events if e.HasField("tool_call_started")]
    assert [each.repeats_claim for each in started] == ["", ""]
    assert list(world.tools.effects.performed) == [f"{run.name}/steps/1/tools/c0/2"]


async def test_doubt_upon_doubt_ends_the_run(asking: Replica, world: World) -> None:
    world.tools.effects.wants_approval.clear()
    world.tools.effects.failures = [doubt()] * 3
    run = await ended(asking.client(), agent="agents/tester")
    assert reason_of(run) == reasons.ERROR_REASON_EFFECT_IN_DOUBT


def a_call(**fields: Any) -> ToolCall:
    return ToolCall("c0", "tools/send_email", struct_pb2.Struct(), **fields)


@pytest.mark.parametrize(
    ("on_doubt", "is_idempotent", "attempt", "expected"),
    [
        (OnDoubt.FAIL, True, 1, Again.NO),
        (OnDoubt.FAIL, False, 1, Again.NO),
        (OnDoubt.RETRY_IDEMPOTENT, True, 1, Again.FREELY),
        (OnDoubt.RETRY_IDEMPOTENT, False, 1, Again.NO),
        (OnDoubt.ASK, True, 2, Again.FREELY),
        (OnDoubt.ASK, False, 2, Again.IF_APPROVED),
        (OnDoubt.ASK, False, 3, Again.NO),
        (OnDoubt.ASK, True, 3, Again.NO),
    ],
)
def test_the_definition_says_what_is_made_again(
    on_doubt: OnDoubt, is_idempotent: object, attempt: int, expected: Again
) -> None:
    call = a_call(attempt=attempt)
    assert again(on_doubt, call, is_idempotent=bool(is_idempotent), max_attempts=3) is expected


@pytest.mark.parametrize(
    ("reason", "state", "left"),
    [
        ("TOOL_FAILED", "USED", "TOOL_FAILED"),
        ("OUTPUT_REFUSED", "USED", "OUTPUT_REFUSED"),
        ("PERMISSION_DENIED", "DENIED", "PERMISSION_DENIED"),
        ("PERMISSION_DENIED", "EXPIRED", "EFFECT_IN_DOUBT"),
        ("PERMISSION_DENIED", "", "EFFECT_IN_DOUBT"),
        ("TOOL_NOT_FOUND", "", "EFFECT_IN_DOUBT"),
        ("INVALID_TOOL_ARGUMENTS", "", "EFFECT_IN_DOUBT"),
        ("SUSPICIOUS_INPUT", "", "EFFECT_IN_DOUBT"),
    ],
)
def test_only_what_is_known_is_told_to_the_model(reason: str, state: str, left: str) -> None:
    error = RemitError(
        reasons.ErrorReason.Value(f"ERROR_REASON_{reason}"),
        "because",
        metadata={"approval_state": state},
    )
    call = a_call(attempt=2, repeats_claim=CLAIM)
    found = what_is_left(call, Verdict.TELL_MODEL, error)
    assert found.reason_name == left
    if left == "EFFECT_IN_DOUBT":
        assert found.metadata["claim"] == CLAIM
        assert "because" in found.message
    assert what_is_left(a_call(), Verdict.TELL_MODEL, error) is error


def test_the_attempt_before_is_asked_for_only_where_its_doubt_is_resolved() -> None:
    resolved = RemitError(reasons.ERROR_REASON_INVALID_STATE, "resolved")
    call = a_call(attempt=3, repeats_claim=CLAIM)
    before = known_by_now(call, resolved)
    assert before is not None
    assert (before.attempt, before.repeats_claim) == (2, "")
    assert known_by_now(a_call(attempt=3), resolved) is None
    assert known_by_now(call, doubt()) is None
