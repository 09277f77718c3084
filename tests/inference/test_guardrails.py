"""Guardrails of model calls: prompts before anything starts, answers while they come."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1.inference_service_pb2 import StreamGenerateTextResponse
from remit.api.inference.v1.message_pb2 import (
    FINISH_REASON_DEADLINE,
    FINISH_REASON_STOP,
    ROLE_ASSISTANT,
    Message,
)
from remit.api.usage.v1.usage_pb2 import Usage
from remit.guardrails import Rules
from remit.guardrails.metrics import FINDINGS
from remit.inference.engine import Turn
from remit.inference.screening import Answer
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from tests.effects.world import World
from tests.inference.openai_server import (
    OpenAIServer,
    call_delta,
    chunks,
    delta,
    refuses,
    says,
    stalls_after,
)
from tests.inference.service_world import InferenceWorld, a_prompt, token_of
from tests.waiting import in_time

KEY = "AKIAIOSFODNN7EXAMPLE"
LATER = " and so on, until nothing of it is held back any more" * 4


def configured(line: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("guardrails", [line])


async def refused(inference: InferenceWorld, prompt: str, key: str = "key-1") -> RemitError:
    with pytest.raises(RemitError) as caught:
        await inference.generate(a_prompt(prompt, model="gpt", key=key))
    return caught.value


async def until_refused(inference: InferenceWorld, token: str = "") -> tuple[str, RemitError]:
    """What a stream told before it was refused, and why."""
    texts: list[str] = []
    try:
        async for piece in inference.stream(a_prompt(model="gpt"), token=token):
            texts.append(piece.text_delta)  # noqa: PERF401 - what came before the error counts
    except RemitError as error:
        return "".join(texts), error
    raise AssertionError(texts)


def events(world: World, kind: event_pb2.EventKind.ValueType) -> list[event_pb2.Event]:
    return [event for event in world.events.values() if event.kind == kind]


@configured("secrets.output=redact")
async def test_a_secret_in_pieces_leaves_a_stream_replaced(
    inference: InferenceWorld, provider: OpenAIServer
) -> None:
    provider.script = says("the key is AKIA", "IOSFODNN", "7EXAM", "PLE", LATER)
    pieces = await inference.streamed(a_prompt(model="gpt"))
    clean = "the key is [aws_key_id]" + LATER
    assert pieces[-1].response.message.text == clean
    assert "".join(piece.text_delta for piece in pieces) == clean
    again = await inference.generate(a_prompt(model="gpt"))
    assert (again.message.text, again.replayed) == (clean, True)


@configured("secrets.output=redact")
async def test_text_goes_on_before_the_end(
    inference: InferenceWorld, provider: OpenAIServer
) -> None:
    provider.script = says(*(f"{number} sheep, " for number in range(200)))

    def told(piece: StreamGenerateTextResponse) -> bool:
        return bool(piece.text_delta)

    pieces = await inference.streamed(a_prompt(model="gpt"))
    assert len([piece for piece in pieces if told(piece)]) > 1


@configured("secrets.output=refuse")
async def test_a_refused_answer_is_paid_for_and_told_nowhere(
    inference: InferenceWorld, provider: OpenAIServer, world: World
) -> None:
    provider.script = says("the key is AKIA", "IOSFODNN7EXAMPLE", LATER)
    told, error = await in_time(until_refused(inference), 10)
    assert "AKIA" not in told
    assert error.reason == reasons.ERROR_REASON_OUTPUT_REFUSED
    assert (error.metadata["detectors"], error.metadata["kinds"]) == ("secrets", "aws_key_id")
    assert KEY not in str(error.to_status())
    await inference.settled_down()
    assert world.open_holds() == []
    (outcome,) = events(world, event_pb2.EVENT_KIND_OUTCOME)
    assert outcome.outcome == event_pb2.OUTCOME_FAILED
    assert int(error.metadata["cost_nanos"]) > 0
    # The same key is not asked again, and says the same.
    again = await refused(inference, "What is 17 * 23?")
    assert again.reason == error.reason
    assert len(provider.requests) == 1


@configured("secrets.output=refuse")
async def test_a_call_of_a_tool_that_holds_a_secret_is_refused(
    inference: InferenceWorld, provider: OpenAIServer
) -> None:
    arguments = json.dumps({"expression": KEY})
    provider.script = chunks(
        call_delta(0, id="c1", name="calculator", arguments=arguments),
        delta(finish_reason="tool_calls"),
    )
    error = await refused(inference, "What is 17 * 23?")
    assert error.reason == reasons.ERROR_REASON_OUTPUT_REFUSED
    assert error.violations[0].field == "message.tool_calls[0].arguments.expression"


@configured("secrets.output=redact, personal_data.output=flag")
async def test_an_answer_that_is_cut_is_screened_to_its_end(
    inference: InferenceWorld, provider: OpenAIServer
) -> None:
    text = f"alice@example.com has {KEY}"
    provider.script = stalls_after(provider, delta(content=text))
    flagged = FINDINGS.labels("personal_data", "output", "flag")
    before = flagged._value.get()
    with remit_token(token_of()):
        response = await inference.stub().GenerateText(a_prompt(model="gpt"), timeout=10.0)
    assert response.finish_reason == FINISH_REASON_DEADLINE
    assert response.message.text == "alice@example.com has [aws_key_id]"
    assert flagged._value.get() == before + 1


@configured("secrets.input=refuse")
async def test_a_refused_prompt_starts_nothing(
    inference: InferenceWorld, provider: OpenAIServer, world: World
) -> None:
    error = await refused(inference, f"what opens {KEY}?")
    assert error.reason == reasons.ERROR_REASON_SUSPICIOUS_INPUT
    assert [v.field for v in error.violations] == ["messages[0].text"]
    assert (provider.requests, world.events, world.holds) == ([], {}, {})


@configured("secrets.input=redact, personal_data.input=flag")
async def test_a_replaced_prompt_is_what_the_model_sees_and_the_log_tells_the_number(
    inference: InferenceWorld, provider: OpenAIServer, world: World
) -> None:
    prompt = a_prompt(f"what opens {KEY} of alice@example.com?", model="gpt")
    first = await inference.generate(prompt)
    assert provider.requests[0]["messages"][0]["content"] == (
        "what opens [aws_key_id] of alice@example.com?"
    )
    assert (await inference.generate(prompt)).claim == first.claim
    (intent,) = events(world, event_pb2.EVENT_KIND_INTENT)
    assert json.loads(intent.detail_json)["guardrails"] == {
        "flag personal_data.email": 1,
        "redact secrets.aws_key_id": 1,
    }


@configured("secrets.output=redact")
async def test_what_a_provider_says_of_a_failure_is_cleaned(
    inference: InferenceWorld, provider: OpenAIServer
) -> None:
    provider.script = refuses(400, f"no such key: {KEY}")
    error = await refused(inference, "hello")
    assert error.reason == reasons.ERROR_REASON_PROVIDER_FAILED
    assert KEY not in str(error.to_status())


async def test_by_default_an_answer_is_left_as_it_is(
    inference: InferenceWorld, provider: OpenAIServer
) -> None:
    provider.script = says(f"the key is {KEY}")
    response = await inference.generate(a_prompt(model="gpt"))
    assert response.message.text == f"the key is {KEY}"


@given(st.lists(st.text("AKI OSFODN7EXMPLE", max_size=12), max_size=8), st.booleans())
def test_a_turn_is_what_was_streamed(pieces: list[str], is_streamed: bool) -> None:  # noqa: FBT001
    sent: list[str] = []
    answer = Answer(Rules.of("secrets.output=redact", ""), sent.append)
    text = KEY + "".join(pieces)
    for piece in (KEY, *pieces) if is_streamed else ():
        answer.add(piece)
    turn = answer.turn(Turn(Message(role=ROLE_ASSISTANT, text=text), FINISH_REASON_STOP, Usage()))
    assert turn.message.role == ROLE_ASSISTANT
    if is_streamed:
        assert "".join(sent) == turn.message.text
    reference = Answer(Rules.of("secrets.output=redact", ""), sent.append)
    reference.add(text)
    assert turn.message.text == reference.rest()


async def test_policy_chooses_for_one_caller_and_not_for_another(
    inference: InferenceWorld, provider: OpenAIServer
) -> None:
    provider.script = says("the key is AKIA", "IOSFODNN", "7EXAM", "PLE", LATER)
    token = token_of(guardrails="inference.secrets.output=redact")
    pieces = await inference.streamed(a_prompt(model="gpt"), token=token)
    clean = "the key is [aws_key_id]" + LATER
    assert pieces[-1].response.message.text == clean
    assert "".join(piece.text_delta for piece in pieces) == clean
    plain = await inference.streamed(a_prompt(model="gpt", key="key-2"), token=token_of())
    assert "".join(piece.text_delta for piece in plain) == f"the key is {KEY}{LATER}"


async def test_policy_refuses_a_stream_before_anything_of_it_goes_on(
    inference: InferenceWorld, provider: OpenAIServer
) -> None:
    provider.script = says("the key is AKIA", "IOSFODNN7EXAMPLE", LATER)
    token = token_of(guardrails="secrets.output=refuse")
    told, error = await in_time(until_refused(inference, token), 10)
    assert "AKIA" not in told
    assert error.reason == reasons.ERROR_REASON_OUTPUT_REFUSED


async def test_policy_replaces_what_a_model_is_asked(
    inference: InferenceWorld, provider: OpenAIServer
) -> None:
    token = token_of(guardrails="secrets.input=redact, tools.personal_data.input=refuse")
    prompt = a_prompt(f"what opens {KEY} of alice@example.com?", model="gpt")
    await inference.generate(prompt, token=token)
    assert provider.requests[0]["messages"][0]["content"] == (
        "what opens [aws_key_id] of alice@example.com?"
    )


async def test_what_was_answered_before_a_policy_came_is_told_and_not_refused(
    inference: InferenceWorld, provider: OpenAIServer
) -> None:
    prompt = a_prompt(f"what opens {KEY}?", model="gpt")
    first = await inference.generate(prompt)
    token = token_of(guardrails="secrets.input=refuse")
    again = await inference.generate(prompt, token=token)
    assert (again.claim, again.message, again.replayed) == (first.claim, first.message, True)
    (last,) = await inference.streamed(prompt, token=token)
    assert last.response.claim == first.claim
    assert len(provider.requests) == 1
