"""Runs that ask a second model, abstain, or end with a canned answer: in the loop, over crashes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from google.protobuf import duration_pb2
from structlog.testing import capture_logs

from remit.agent.entries import Entry
from remit.api.agent.v1 import confidence_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import message_pb2
from remit.rpc.errors import RemitError
from tests.agent.conftest import Client, Replica, StartReplica, World
from tests.agent.outside import MODEL_COST_NANOS, Generate, Turn, away, says
from tests.monitoring.values import gained, value
from tests.waiting import eventually

FIRST, SECOND = "models/first", "models/second"
AGENT = """\
name: careful
display_name: Careful
description: Asks twice.
instructions: Be right.
model: first
tools: [calculator]
max_steps: 4
"""
FALLBACK = "fallback: {model: second, timeout_s: 0.3}\n"
CANNED = "fallback: {model: second, timeout_s: 0.3, canned_answer: Please call us.}\n"
Start = Callable[..., Awaitable[Replica]]


def sure(text: str, confidence: float | None, *calls: tuple[str, dict[str, object]]) -> Turn:
    turn = says(text, *calls)
    if confidence is not None:
        turn.confidence = confidence
    return turn


def by_model(**turns: Turn | RemitError) -> Callable[[Generate], Turn]:
    """Models that always say the same, or always fail."""

    def think(asked: Generate) -> Turn:
        turn = turns[asked.model.removeprefix("models/")]
        if isinstance(turn, RemitError):
            raise turn
        return turn

    return think


def broken(
    reason: reasons.ErrorReason.ValueType = reasons.ERROR_REASON_PROVIDER_FAILED,
) -> RemitError:
    return RemitError(reason, "it broke")


@pytest.fixture
def careful(replica: StartReplica, agents_dir: Path) -> Start:
    """Starts replicas that have the agent with these rules."""

    async def start(rules: str = FALLBACK, **settings: object) -> Replica:
        (agents_dir / "careful.yaml").write_text(AGENT + rules)
        return await replica(agents_dir=agents_dir, **settings)

    return start


async def followed(
    client: Client, task: str = "Where is it?"
) -> tuple[run_pb2.Run, list[run_pb2.RunEvent]]:
    run = await client.create(task, agent="agents/careful")
    events = await client.watch(run.name)
    return events[-1].ended.run, events


def fallbacks(events: list[run_pb2.RunEvent]) -> list[run_pb2.ModelFallback]:
    return [event.model_fallback for event in events if event.HasField("model_fallback")]


def kept(events: list[run_pb2.RunEvent]) -> list[str]:
    ends = [event.model_call_ended for event in events if event.HasField("model_call_ended")]
    return [end.kept_model for end in ends if end.kept_model]


def asked(world: World) -> Counter[str]:
    return Counter(request.model for request in world.inference.requests)


def reason_of(run: run_pb2.Run) -> reasons.ErrorReason.ValueType:
    return RemitError.from_status(run.error).reason


async def test_a_model_that_fails_is_replaced_for_the_step(careful: Start, world: World) -> None:
    world.inference.think = by_model(first=broken(), second=sure("There.", 0.9))
    made = await careful()
    with capture_logs() as logs:
        run, events = await followed(made.client())
    assert run.result == "There."
    assert run.confidence == confidence_pb2.Confidence(
        value=0.9,
        source=confidence_pb2.CONFIDENCE_SOURCE_MEASURED,
        kind=confidence_pb2.ANSWER_KIND_ANSWER,
    )
    assert fallbacks(events) == [
        run_pb2.ModelFallback(
            step=1, from_model=FIRST, to_model=SECOND, cause=run_pb2.FALLBACK_CAUSE_FAILED
        )
    ]
    assert kept(events) == [SECOND]
    assert world.policy.registered[run.name].models == [FIRST, SECOND]
    (told,) = [line for line in logs if line["event"] == "primary_agent_failed"]
    assert (told["run"], told["error_type"], told["model"], told["fallback_model"]) == (
        run.name,
        "PROVIDER_FAILED",
        FIRST,
        SECOND,
    )


async def test_both_models_are_asked_the_same_under_keys_of_their_own(
    careful: Start, world: World
) -> None:
    world.inference.think = by_model(first=broken(), second=sure("There.", 0.9))
    run, _ = await followed((await careful()).client())
    first, second = world.inference.requests
    assert first.request_id == f"{run.name}/steps/1/model"
    assert second.request_id == f"{run.name}/steps/1/model/2"
    assert first.measure_confidence
    second.model, second.request_id = first.model, first.request_id
    assert first == second


@pytest.mark.parametrize(
    ("first", "second", "result"),
    [(0.5, 0.6, "second"), (0.5, 0.4, "first"), (0.5, 0.5, "first"), (0.5, None, "first")],
)
async def test_the_surer_of_two_answers_is_kept_and_both_are_billed(
    first: float, second: float | None, result: str, careful: Start, world: World
) -> None:
    world.inference.think = by_model(first=sure("first", first), second=sure("second", second))
    made = await careful()
    with capture_logs() as logs:
        run, events = await followed(made.client())
    assert run.result == result
    assert kept(events) == [f"models/{result}"]
    assert fallbacks(events)[0].cause == run_pb2.FALLBACK_CAUSE_LOW_CONFIDENCE
    assert run.cost_nanos == 2 * MODEL_COST_NANOS
    assert run.usage.calls == 2
    (told,) = [line for line in logs if line["event"] == "low_confidence_primary"]
    assert told["confidence"] == first


@pytest.mark.parametrize(
    "second",
    [broken(), broken(reasons.ERROR_REASON_BUDGET_EXHAUSTED), sure("", None)],
)
async def test_a_second_model_that_fails_loses_no_answer(
    second: Turn | RemitError, careful: Start, world: World
) -> None:
    world.inference.think = by_model(first=sure("perhaps here", 0.6), second=second)
    run, events = await followed((await careful(CANNED)).client())
    assert run.result == "perhaps here"
    assert run.confidence.value == 0.6
    assert kept(events) == [FIRST]
    assert not world.tools.effects.performed


@pytest.mark.parametrize(
    ("last", "result"),
    [
        (sure("It is 12.", 0.9), "It is 12."),
        (sure("It is 12.", None), "It is 12."),
        (sure("No idea.", 0.2), "perhaps 13"),
        (broken(), "perhaps 13"),
        (sure("", None, ("calculator", {"expression": "3 * 4"})), "perhaps 13"),
    ],
)
async def test_an_unsure_answer_gives_way_to_tools_and_stays_in_reserve(
    last: Turn | RemitError, result: str, careful: Start, world: World
) -> None:
    def think(request: Generate) -> Turn:
        if request.messages[-1].role == message_pb2.ROLE_TOOL:
            if isinstance(last, RemitError):
                raise last
            return last
        if request.model == FIRST:
            return sure("perhaps 13", 0.6)
        return says("", ("calculator", {"expression": "3 * 4"}))

    world.inference.think = think
    run, events = await followed((await careful(CANNED)).client())
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert run.result == result
    assert kept(events)[0] == SECOND
    assert world.tools.effects.performed


@pytest.mark.parametrize("confidence", [0.7, 1.0, None])
async def test_a_good_answer_asks_nobody_else(
    confidence: float | None, careful: Start, world: World
) -> None:
    world.inference.think = by_model(first=sure("here", confidence))
    run, events = await followed((await careful()).client())
    assert run.result == "here"
    assert not fallbacks(events)
    assert run.confidence.HasField("value") == (confidence is not None)


async def test_the_second_model_may_use_tools_and_the_next_step_begins_with_the_first(
    careful: Start, world: World
) -> None:
    def think(request: Generate) -> Turn:
        if request.messages[-1].role == message_pb2.ROLE_TOOL:
            return sure(f"{request.model} says {request.messages[-1].text}", 0.9)
        if request.model == FIRST:
            raise broken()
        return says("", ("calculator", {"expression": "3 * 4"}))

    world.inference.think = think
    run, _ = await followed((await careful()).client())
    assert run.result == 'models/first says {"value": 12}'


async def test_a_model_that_takes_too_long_is_stopped(careful: Start, world: World) -> None:
    world.inference.silent = {FIRST}
    world.inference.think = by_model(second=sure("There.", 0.9))
    run, events = await followed((await careful()).client())
    assert run.result == "There."
    assert fallbacks(events)[0].cause == run_pb2.FALLBACK_CAUSE_TIMED_OUT
    ended = next(e.model_call_ended for e in events if e.HasField("model_call_ended"))
    assert RemitError.from_status(ended.error).message == (
        "models/first did not end its turn within 0.3 s"
    )
    assert world.inference.left == {FIRST: 1}
    assert asked(world) == {FIRST: 1, SECOND: 1}


async def test_text_of_a_model_that_was_stopped_is_begun_anew(careful: Start, world: World) -> None:
    async def forever() -> AsyncIterator[str]:
        yield "It is "
        yield "over"
        await asyncio.Event().wait()

    def think(request: Generate) -> Turn:
        world.inference.pieces = forever() if request.model == FIRST else None
        return sure("There.", 0.9)

    world.inference.think = think
    made = await careful(delta_interval_ms=1)
    run, events = await followed(made.client())
    assert run.result == "There."
    text, heard = "", set()
    for event in events:
        if event.HasField("model_call_started"):
            text = ""
        text += event.text_delta.text
        heard.add(text)
    assert text == "There."
    assert "It is " in {part[:6] for part in heard}


async def test_the_deadline_of_the_run_holds(careful: Start, world: World) -> None:
    world.inference.silent = {FIRST, SECOND}
    made = await careful("fallback: {model: second, timeout_s: 30}\n")
    client = made.client()
    limits = run_pb2.RunLimits(max_duration=duration_pb2.Duration(nanos=300_000_000))
    run = await client.create("Where?", agent="agents/careful", limits=limits)
    ended = await client.ended(run.name)
    assert reason_of(ended) == reasons.ERROR_REASON_RUN_LIMIT_REACHED
    assert asked(world) == {FIRST: 1}


async def test_where_both_fail_the_canned_answer_comes_last(careful: Start, world: World) -> None:
    world.inference.silent = {FIRST}
    world.inference.think = by_model(second=broken())
    canned = gained("agent_answers_total", agent="agents/careful", kind="CANNED")
    late = gained("agent_fallbacks_total", agent="agents/careful", cause="TIMED_OUT")
    run, _ = await followed((await careful(CANNED)).client())
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert run.result == "Please call us."
    assert run.confidence.kind == confidence_pb2.ANSWER_KIND_CANNED
    assert run.confidence.HasField("value")
    assert run.confidence.value == 0.0
    assert (canned(), late()) == (1, 1)


async def test_a_canned_answer_needs_no_second_model(careful: Start, world: World) -> None:
    world.inference.think = by_model(first=broken())
    run, events = await followed(
        (await careful("fallback: {canned_answer: Please call us.}\n")).client()
    )
    assert run.result == "Please call us."
    assert not fallbacks(events)


async def test_without_a_canned_answer_the_first_models_error_ends_the_run(
    careful: Start, world: World
) -> None:
    world.inference.think = by_model(
        first=broken(), second=broken(reasons.ERROR_REASON_MODEL_NOT_FOUND)
    )
    run, events = await followed((await careful()).client())
    assert run.state == run_pb2.RUN_STATE_FAILED
    assert reason_of(run) == reasons.ERROR_REASON_PROVIDER_FAILED
    assert not run.HasField("confidence")
    assert kept(events) == [FIRST]


async def test_money_that_is_used_up_is_no_fault_of_the_model(careful: Start, world: World) -> None:
    world.inference.think = by_model(first=broken(reasons.ERROR_REASON_BUDGET_EXHAUSTED))
    run, _ = await followed((await careful(CANNED)).client())
    assert reason_of(run) == reasons.ERROR_REASON_BUDGET_EXHAUSTED
    assert asked(world) == {FIRST: 1}


async def test_a_provider_that_is_away_is_tried_three_times(careful: Start, world: World) -> None:
    away_now = RemitError(
        reasons.ERROR_REASON_PROVIDER_UNAVAILABLE, "it is away", retry_after_s=0.01
    )
    world.inference.think = by_model(first=away_now, second=sure("There.", 0.9))
    run, events = await followed((await careful()).client())
    assert run.result == "There."
    assert sum(event.HasField("waiting") for event in events) == 2
    assert asked(world) == {FIRST: 3, SECOND: 1}


async def test_an_outage_of_the_mesh_is_waited_out(careful: Start, world: World) -> None:
    world.inference.effects.failures = [away("inference")] * 5
    world.inference.think = by_model(first=sure("here", 0.9))
    run, events = await followed((await careful()).client())
    assert run.result == "here"
    assert not fallbacks(events)


async def test_an_agent_that_is_not_sure_enough_abstains_in_words(
    careful: Start, world: World
) -> None:
    world.inference.think = by_model(first=sure("Atlantis", 0.4), second=sure("Lemuria", 0.75))
    made = await careful(FALLBACK + "confidence: {min: 0.8}\n")
    run, _ = await followed(made.client())
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert run.result.startswith("I do not answer this: my confidence in the answer that I have")
    assert run.confidence == confidence_pb2.Confidence(
        value=0.75,
        source=confidence_pb2.CONFIDENCE_SOURCE_MEASURED,
        kind=confidence_pb2.ANSWER_KIND_ABSTENTION,
    )
    assert value("agent_answers_total", agent="agents/careful", kind="ABSTENTION") >= 1


async def test_a_models_own_word_counts_only_where_it_is_asked_for(
    careful: Start, world: World
) -> None:
    world.inference.think = by_model(first=sure("Paris.\nConfidence: 0.95", 0.1))
    made = await careful("confidence: {source: self_reported}\n")
    run, _ = await followed(made.client())
    assert run.result == "Paris."
    assert run.confidence.source == confidence_pb2.CONFIDENCE_SOURCE_SELF_REPORTED
    assert run.confidence.value == 0.95
    (request,) = world.inference.requests
    assert not request.measure_confidence
    assert "Confidence: 0.8" in request.messages[0].text


async def test_a_run_without_rules_says_that_nobody_knows(
    replica: StartReplica, world: World
) -> None:
    client = (await replica()).client()
    run = await client.ended((await client.create()).name)
    assert run.confidence == confidence_pb2.Confidence(
        source=confidence_pb2.CONFIDENCE_SOURCE_NONE, kind=confidence_pb2.ANSWER_KIND_ANSWER
    )
    assert not any(request.measure_confidence for request in world.inference.requests)


async def test_a_crash_while_the_second_is_asked_asks_the_first_no_more(
    careful: Start, world: World
) -> None:
    world.inference.think = by_model(first=sure("perhaps", 0.5), second=sure("There.", 0.9))
    world.inference.silent = {SECOND}
    rules = "fallback: {model: second, timeout_s: 60}\n"
    first = await careful(rules)
    run = await first.client().create("Where?", agent="agents/careful")
    await eventually(lambda: asked(world)[SECOND] == 1)
    await first.kill()
    world.inference.silent.clear()
    second = await careful(rules)
    assert (await second.client().ended(run.name)).result == "There."
    assert asked(world) == {FIRST: 1, SECOND: 2}
    assert set(world.inference.effects.performed.values()) == {1}


async def test_a_crash_before_the_first_ones_end_is_journalled_repeats_nothing(
    careful: Start, world: World
) -> None:
    world.inference.think = by_model(first=sure("perhaps", 0.5), second=sure("There.", 0.9))
    world.inference.effects.hold = asyncio.Event()
    rules = "fallback: {model: second, timeout_s: 60}\n"
    first = await careful(rules)
    run = await first.client().create("Where?", agent="agents/careful")
    await eventually(lambda: world.inference.effects.held == 1)
    await first.kill()
    world.inference.effects.hold = None
    second = await careful(rules)
    events = await second.client().watch(run.name)
    assert events[-1].ended.run.result == "There."
    assert len(fallbacks(events)) == 1
    assert list(world.inference.effects.performed.values()) == [1, 1]
    assert events[-1].ended.run.cost_nanos == 2 * MODEL_COST_NANOS


@pytest.mark.parametrize("is_committed", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_crash_at_any_commit_asks_no_model_twice(
    at: int,
    careful: Start,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_committed: bool,
) -> None:
    world.inference.think = by_model(first=sure("perhaps", 0.5), second=sure("There.", 0.9))
    first = await careful(running=False, delta_interval_ms=5000)
    append, reached, commits = first.parts.store.append, asyncio.Event(), 0

    async def append_until(entry: Entry) -> None:
        nonlocal commits
        commits += 1
        if commits < at or is_committed:
            await append(entry)
        if commits >= at:
            reached.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(first.parts.store, "append", append_until)
    first.start()
    run = await first.client().create("Where?", agent="agents/careful")
    await reached.wait()
    await first.kill()
    second = await careful()
    events = await second.client().watch(run.name)
    assert events[-1].ended.run.result == "There."
    assert world.inference.effects.performed == {
        f"{run.name}/steps/1/model": 1,
        f"{run.name}/steps/1/model/2": 1,
    }
    assert len(fallbacks(events)) == 1
    assert events[-1].ended.run.cost_nanos == 2 * MODEL_COST_NANOS
