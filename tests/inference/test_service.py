"""The service through its contracts: gate, streams, replays, refusals and cancellations."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from remit.api.audit.v1 import event_pb2
from remit.api.effects.v1.attempt_pb2 import Attempt, AttemptKey
from remit.api.errors.v1 import error_reason_pb2
from remit.api.inference.v1 import message_pb2
from remit.api.inference.v1.inference_service_pb2 import (
    AcknowledgeResultsRequest,
    BatchGetAttemptsRequest,
    GenerateTextRequest,
    GenerateTextResponse,
    ListAttemptsRequest,
)
from remit.api.options.v1 import options_pb2
from remit.inference.engine import arguments_json, upper_bound
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from tests.effects.world import World
from tests.inference.openai_server import (
    OpenAIServer,
    chunks,
    cut_after,
    delta,
    in_turn,
    refuses,
    says,
    stalls_after,
    usage,
)
from tests.inference.service_world import InferenceWorld, a_prompt, a_run, token_of
from tests.waiting import eventually, in_time


async def reason_of(inference: InferenceWorld, request: GenerateTextRequest) -> RemitError:
    with pytest.raises(RemitError) as caught:
        await inference.generate(request)
    return caught.value


def outcomes(world: World) -> list[event_pb2.Event]:
    return [e for e in world.events.values() if e.kind == event_pb2.EVENT_KIND_OUTCOME]


async def test_a_turn_is_generated_through_the_gate(
    inference: InferenceWorld, world: World
) -> None:
    response = await inference.generate(a_prompt())
    (call,) = response.message.tool_calls
    assert (call.tool, arguments_json(call.arguments)) == (
        "tools/calculator",
        '{"expression":"17 * 23"}',
    )
    assert response.finish_reason == message_pb2.FINISH_REASON_TOOL_CALLS
    assert (response.cost_nanos, response.replayed, response.usage.estimated) == (100, False, False)
    await inference.settled_down()
    intent, outcome = world.events.values()
    assert (intent.action, intent.resource) == ("models.generate", "models/builtin-rules")
    assert outcome.outcome == event_pb2.OUTCOME_SUCCEEDED
    assert response.claim == intent.claim
    assert world.open_holds() == []


async def test_usage_never_exceeds_the_bound(inference: InferenceWorld) -> None:
    request = a_prompt("Write a poem", max_output_tokens=500)
    response = await inference.generate(request)
    bound = upper_bound(request)
    assert 0 < response.usage.input_tokens <= bound.input_tokens
    assert 0 < response.usage.output_tokens <= bound.output_tokens


async def test_the_text_is_streamed_without_gaps_and_ends_with_the_turn(
    inference: InferenceWorld,
) -> None:
    pieces = await inference.streamed(a_prompt("Write a poem"))
    assert [piece.sequence for piece in pieces] == list(range(1, len(pieces) + 1))
    response = pieces[-1].response
    assert "".join(piece.text_delta for piece in pieces) == response.message.text
    assert "builtin-rules" in response.message.text
    assert response.claim
    assert not response.replayed


async def test_text_arrives_while_the_provider_still_speaks(
    inference: InferenceWorld, provider: OpenAIServer
) -> None:
    provider.script = stalls_after(provider, delta(content="The first words"))
    async with contextlib.aclosing(inference.stream(a_prompt(model="gpt"))) as pieces:
        texts = []
        async for piece in pieces:
            texts.append(piece.text_delta)
            if piece.text_delta:
                break
    assert "".join(texts) == "The first words"


async def test_a_silent_provider_is_covered_by_heartbeats(
    inference: InferenceWorld, provider: OpenAIServer
) -> None:
    provider.script = stalls_after(provider)
    pieces = []
    async with contextlib.aclosing(inference.stream(a_prompt(model="gpt"))) as stream:
        async for piece in stream:
            pieces.append(piece)
            if len(pieces) == 3:
                break
    assert [piece.sequence for piece in pieces] == [1, 2, 3]
    assert [piece.WhichOneof("piece") for piece in pieces] == [None, None, None]


async def test_the_same_key_returns_the_recorded_turn_by_either_rpc(
    inference: InferenceWorld, provider: OpenAIServer
) -> None:
    provider.script = says("one", " two")
    first = (await inference.streamed(a_prompt(model="gpt")))[-1].response
    again = await inference.generate(a_prompt(model="gpt"))
    *heartbeats, last = await inference.streamed(a_prompt(model="gpt"))
    assert not any(piece.text_delta for piece in heartbeats)
    assert (again.replayed, last.response.replayed) == (True, True)
    assert first.message == again.message == last.response.message
    assert first.claim == again.claim == last.response.claim
    assert len(provider.requests) == 1


async def test_a_turn_that_a_journal_holds_is_kept_no_more(inference: InferenceWorld) -> None:
    agent = inference.stub(options_pb2.CALLER_AGENT)
    request = a_prompt(model="builtin-rules")
    with remit_token(token_of(run=a_run(), models=("models/builtin-rules",))):
        turn = await agent.GenerateText(request)
        results = (await agent.AcknowledgeResults(_recorded(turn))).results
        assert [result.code for result in results] == [0]
        with pytest.raises(RemitError) as gone:
            await agent.GenerateText(request)
    assert gone.value.reason == error_reason_pb2.ERROR_REASON_RESULT_NOT_KEPT
    with pytest.raises(RemitError) as refused:
        await inference.stub().AcknowledgeResults(_recorded(turn))
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_CALLER_NOT_ALLOWED


async def test_who_checks_the_books_asks_where_claims_stand_and_nobody_else_may(
    inference: InferenceWorld,
) -> None:
    turn = await inference.generate(a_prompt())
    await inference.settled_down()
    cost, key = inference.stub(options_pb2.CALLER_COST), AttemptKey(claim=turn.claim, attempt=1)
    batch = BatchGetAttemptsRequest(keys=[key])
    got, listed = (
        await cost.BatchGetAttempts(batch),
        await cost.ListAttempts(ListAttemptsRequest()),
    )
    for told in (got, listed):
        (attempt,) = told.attempts
        assert (attempt.key, attempt.state) == (key, Attempt.STATE_CLOSED)
        assert attempt.cost_nanos == turn.cost_nanos
        assert told.closing_bound.ToTimedelta().total_seconds() > 0
    assert not listed.has_more
    for caller in (options_pb2.CALLER_PUBLIC, options_pb2.CALLER_POLICY):
        with pytest.raises(RemitError) as refused:
            await inference.stub(caller).BatchGetAttempts(batch)
        assert refused.value.reason == error_reason_pb2.ERROR_REASON_CALLER_NOT_ALLOWED


def _recorded(turn: GenerateTextResponse) -> AcknowledgeResultsRequest:
    return AcknowledgeResultsRequest(claims=[turn.claim])


async def test_the_same_key_with_another_body_is_refused(inference: InferenceWorld) -> None:
    await inference.generate(a_prompt())
    error = await reason_of(inference, a_prompt("What is 1 + 1?"))
    assert error.reason == error_reason_pb2.ERROR_REASON_KEY_REUSED


async def test_equal_calls_at_once_ask_the_provider_once(
    inference: InferenceWorld, provider: OpenAIServer
) -> None:
    answers = await asyncio.gather(
        *(inference.generate(a_prompt(model="gpt")) for _ in range(8)),
        *(inference.streamed(a_prompt(model="gpt")) for _ in range(8)),
    )
    assert len(provider.requests) == 1
    assert len(answers) == 16


async def test_a_client_that_leaves_stops_the_provider_and_pays_for_what_came(
    inference: InferenceWorld, provider: OpenAIServer, world: World
) -> None:
    provider.script = stalls_after(provider, delta(content="x" * 40))
    async with contextlib.aclosing(inference.stream(a_prompt(model="gpt"))) as pieces:
        async for piece in pieces:
            if piece.text_delta:
                break
    await in_time(provider.broken_off.wait(), 5)
    (outcome,) = await eventually(lambda: outcomes(world))
    assert outcome.outcome == event_pb2.OUTCOME_CANCELLED
    assert '"output_tokens":10' in outcome.detail_json.replace(" ", "")
    await eventually(lambda: not world.open_holds())
    # What was cancelled is no answer: the same key begins another attempt.
    provider.script = says("whole")
    response = await inference.generate(a_prompt(model="gpt"))
    assert (response.message.text, response.replayed) == ("whole", False)


async def test_an_outage_is_told_and_the_same_key_may_try_again(
    inference: InferenceWorld, provider: OpenAIServer, world: World
) -> None:
    refusal = refuses(429, "slow down", headers={"retry-after": "3"})
    provider.script = in_turn([refusal, refusal, says("hello")])
    for _ in range(2):
        error = await reason_of(inference, a_prompt(model="gpt"))
        assert error.reason == error_reason_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE
        assert error.retry_after_s == 3.0
    await inference.settled_down()
    assert [e.outcome for e in outcomes(world)] == [event_pb2.OUTCOME_FAILED] * 2
    assert (await inference.generate(a_prompt(model="gpt"))).message.text == "hello"


async def test_a_refused_request_is_recorded_and_its_refusal_replayed(
    inference: InferenceWorld, provider: OpenAIServer
) -> None:
    provider.script = in_turn([refuses(400, "context too long")])
    for _ in range(2):
        error = await reason_of(inference, a_prompt(model="gpt"))
        assert error.reason == error_reason_pb2.ERROR_REASON_PROVIDER_FAILED
        assert "context too long" in error.message
        assert "rk-provider-secret" not in error.message
        assert error.metadata["cost_nanos"] == "0"


async def test_a_stream_that_breaks_is_an_error_after_its_text_never_an_end(
    inference: InferenceWorld, provider: OpenAIServer
) -> None:
    provider.script = cut_after(delta(content="half an ans"))
    texts: list[str] = []

    async def read() -> None:
        async for piece in inference.stream(a_prompt(model="gpt")):
            texts.append(piece.text_delta)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(RemitError) as caught:
        await read()
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE
    assert "".join(texts) == "half an ans"


async def test_max_tokens_is_always_sent_and_a_larger_answer_is_told_in_full(
    inference: InferenceWorld, provider: OpenAIServer
) -> None:
    provider.script = chunks(
        *(delta(content="word ") for _ in range(400)), delta(finish_reason="stop"), usage(9, 400)
    )
    response = await inference.generate(a_prompt(model="gpt"))
    assert provider.requests[0]["max_tokens"] == 100
    assert response.usage.output_tokens == 400
    assert len(response.message.text) == 2_000


@pytest.mark.parametrize(
    ("setback", "reason"),
    [
        ("denied", error_reason_pb2.ERROR_REASON_PERMISSION_DENIED),
        ("out_of_money", error_reason_pb2.ERROR_REASON_BUDGET_EXHAUSTED),
        ("audit", error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE),
    ],
)
async def test_without_permission_money_or_record_no_provider_is_asked(
    inference: InferenceWorld, provider: OpenAIServer, world: World, setback: str, reason: int
) -> None:
    if setback == "audit":
        world.away.add("audit")
    else:
        setattr(world, setback, True)
    error = await reason_of(inference, a_prompt(model="gpt"))
    assert error.reason == reason
    assert provider.requests == []
    world.away.clear()


async def test_an_unknown_model_is_named_with_the_nearest(inference: InferenceWorld) -> None:
    error = await reason_of(inference, a_prompt(model="builtin-rule"))
    assert error.reason == error_reason_pb2.ERROR_REASON_MODEL_NOT_FOUND
    assert error.message.endswith("did you mean models/builtin-rules?")


async def test_a_model_without_its_key_says_what_to_do(
    inference: InferenceWorld, world: World
) -> None:
    error = await reason_of(inference, a_prompt(model="keyless"))
    assert error.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
    assert "MISSING_KEY is not set" in error.message
    assert not world.events


async def test_every_violation_is_told_at_once(inference: InferenceWorld, world: World) -> None:
    request = GenerateTextRequest(
        model="models/builtin-rules", temperature=3.0, max_output_tokens=10_000
    )
    error = await reason_of(inference, request)
    assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_REQUEST
    fields = {violation.field for violation in error.violations}
    assert fields == {"request_id", "max_output_tokens", "temperature", "messages"}
    with pytest.raises(RemitError) as caught:
        await inference.streamed(request)
    assert {v.field for v in caught.value.violations} == {f"request.{field}" for field in fields}
    assert not world.events


async def test_confidence_is_told_and_recorded_where_it_is_asked_for(
    inference: InferenceWorld,
) -> None:
    plain = await inference.generate(a_prompt("Write a poem"))
    assert not plain.HasField("confidence")
    asked = a_prompt("Write a poem", key="sure", measure_confidence=True)
    first, again = [await inference.generate(asked) for _ in range(2)]
    assert (first.HasField("confidence"), first.confidence) == (True, 0.0)
    assert (again.replayed, again.HasField("confidence")) == (True, True)
    wish = await inference.generate(a_prompt(key="tools", measure_confidence=True))
    assert wish.message.tool_calls
    assert not wish.HasField("confidence")
