"""What a journal holds is told to who made it, once the journal has it and never before."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.rpc import status_pb2
from structlog.testing import capture_logs

from remit.agent.receipts import _Teller, recorded_calls, recorded_turns
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from tests.agent.conftest import StartReplica, World
from tests.agent.outside import Generate, Turn, says
from tests.waiting import eventually, in_time

Event = run_pb2.RunEvent


def turn(step: int, tool_calls: int, *, error: bool = False) -> Event:
    ended = run_pb2.ModelCallEnded(step=step, claim=f"claims/{step}", tool_calls=tool_calls)
    if error:
        ended.error.code = 9
    return Event(model_call_ended=ended)


def call(step: int) -> Event:
    return Event(tool_call_started=run_pb2.ToolCallStarted(step=step))


def test_a_turn_is_recorded_with_all_of_its_calls() -> None:
    assert list(recorded_turns([turn(1, 2), call(1), call(1)])) == ["claims/1"]
    assert list(recorded_turns([turn(1, 0)])) == ["claims/1"]


def test_a_turn_whose_calls_are_not_in_the_journal_stays_at_the_gate() -> None:
    assert list(recorded_turns([turn(1, 2), call(1)])) == []
    assert list(recorded_turns([turn(1, 1), call(2)])) == []


def test_a_failed_effect_has_no_result() -> None:
    failed = run_pb2.ToolCallEnded(claim="claims/a", error=status_pb2.Status(code=9))
    assert list(recorded_turns([turn(1, 0, error=True)])) == []
    assert list(recorded_calls([Event(tool_call_ended=failed)])) == []


async def test_every_result_of_a_run_is_told(world: World, replica: StartReplica) -> None:
    one = await replica()
    run = await one.client().create()
    events = await one.client().watch(run.name)
    turns = {e.model_call_ended.claim for e in events} - {""}
    calls = {e.tool_call_ended.claim for e in events} - {""}
    assert (len(turns), len(calls)) == (2, 1)
    await eventually(lambda: world.inference.effects.acknowledged == turns)
    await eventually(lambda: world.tools.effects.acknowledged == calls)


async def test_the_turn_at_the_step_limit_is_not_told_since_its_calls_are_nowhere_else(
    world: World, replica: StartReplica
) -> None:
    def always_calls(request: Generate) -> Turn:
        return says("Again.", ("calculator", {"expression": "1 * 1"}))

    world.inference.think = always_calls
    one = await replica()
    limits = run_pb2.RunLimits(max_steps=2)
    run = await one.client().create(limits=limits)
    events = await one.client().watch(run.name)
    first, last = (e.model_call_ended for e in events if e.HasField("model_call_ended"))
    await eventually(lambda: first.claim in world.inference.effects.acknowledged)
    await one.parts.receipts.drain()
    assert last.claim not in world.inference.effects.acknowledged


async def test_a_worker_that_adopts_a_run_tells_what_its_predecessor_did_not(
    world: World, replica: StartReplica
) -> None:
    world.inference.effects.away = world.tools.effects.away = True
    world.tools.effects.hold = asyncio.Event()
    one = await replica()
    run = await one.client().create()
    await eventually(lambda: world.tools.effects.held)
    await one.kill()
    assert world.inference.effects.acknowledged == set()
    world.inference.effects.away = world.tools.effects.away = False
    world.tools.effects.hold.set()
    two = await replica()
    ended = await two.client().ended(run.name)
    assert ended.state == run_pb2.RUN_STATE_SUCCEEDED
    events = await two.client().watch(run.name)
    turns = {e.model_call_ended.claim for e in events} - {""}
    await eventually(lambda: world.inference.effects.acknowledged == turns)


@pytest.mark.parametrize("crash_after_events", range(1, 14))
async def test_a_crash_between_journal_and_receipt_loses_no_result(
    world: World, replica: StartReplica, crash_after_events: int
) -> None:
    """Killed at each event; what is journalled may be dropped, and nobody asks for it again.

    The gate of these tests answers RESULT_NOT_KEPT to who does, and the run would fail.
    """
    one = await replica()
    run = await one.client().create()

    async def reached() -> bool:
        rows = await world.database.fetchval("SELECT max(sequence) FROM run_events")
        return bool(rows >= crash_after_events)

    await eventually(reached)
    await one.kill()
    two = await replica()
    ended = await two.client().ended(run.name)
    assert ended.state == run_pb2.RUN_STATE_SUCCEEDED, ended.error
    assert "391" in ended.result
    assert max(world.inference.effects.performed.values()) == 1
    assert max(world.tools.effects.performed.values()) == 1


class Gate:
    """The other side of a teller."""

    def __init__(self, *failures: RemitError) -> None:
        self.failures = list(failures)
        self.told: list[list[str]] = []
        self.results: dict[str, status_pb2.Status] = {}

    async def __call__(self, claims: Any) -> list[status_pb2.Status]:
        if self.failures:
            raise self.failures.pop(0)
        self.told.append(list(claims))
        return [self.results.get(claim, status_pb2.Status()) for claim in claims]


async def test_claims_that_come_together_share_a_call() -> None:
    gate = Gate()
    teller = _Teller("tools", gate, linger_s=0.01, max_waiting=1000)
    for number in range(300):
        teller.add([f"claims/{number}"])
    await teller.drain()
    assert [len(claims) for claims in gate.told] == [256, 44]


async def test_an_outage_delays_and_loses_nothing() -> None:
    outage = RemitError(reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "away")
    gate = Gate(outage, outage)
    teller = _Teller("tools", gate, linger_s=0.0, max_waiting=10)
    teller.add(["claims/a"])
    await eventually(lambda: gate.told == [["claims/a"]])


async def test_a_service_that_does_not_know_the_rpc_is_not_asked_for_ever() -> None:
    gate = Gate(RemitError(reasons.ERROR_REASON_METHOD_UNKNOWN, "older"))
    teller = _Teller("tools", gate, linger_s=0.0, max_waiting=10)
    teller.add(["claims/a"])
    await teller.drain()
    assert (gate.told, gate.failures) == ([], [])


async def test_a_drain_tries_once_and_does_not_wait_for_an_outage() -> None:
    outage = RemitError(reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "away")
    gate = Gate(*[outage] * 5)
    teller = _Teller("tools", gate, linger_s=60.0, max_waiting=10)
    teller.add(["claims/a"])
    await in_time(teller.drain(), 5)
    assert len(gate.failures) == 4


async def test_what_waits_is_bounded_and_the_oldest_give_way() -> None:
    gate = Gate()
    teller = _Teller("tools", gate, linger_s=60.0, max_waiting=2)
    teller.add(["claims/a", "claims/b", "claims/c", ""])
    await teller.drain()
    assert gate.told == [["claims/b", "claims/c"]]


async def test_refused_claims_are_logged_in_a_line_and_not_told_again() -> None:
    gate = Gate()
    refused = RemitError(reasons.ERROR_REASON_RESOURCE_NOT_FOUND, "no such claim").to_status()
    gate.results["claims/b"] = refused
    teller = _Teller("tools", gate, linger_s=0.0, max_waiting=10)
    with capture_logs() as logs:
        teller.add(["claims/a", "claims/b"])
        await teller.drain()
    assert gate.told == [["claims/a", "claims/b"]]
    (line,) = logs
    assert (line["event"], line["count"], line["claim"]) == ("receipts_refused", 1, "claims/b")
