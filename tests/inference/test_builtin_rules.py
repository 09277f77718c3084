"""The rule engine as an engine: pieces, limits and counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remit.api.inference.v1.inference_service_pb2 import GenerateTextRequest
from remit.api.inference.v1.message_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
)
from remit.inference.builtin_rules import BuiltinRulesEngine
from remit.inference.engine import Growth, Progress, TextDelta, Turn
from tests.inference.offered import asked, shipped


async def generated(request: GenerateTextRequest) -> tuple[str, Turn, Progress]:
    text, progress, announced = "", Progress(), 0
    async for piece in BuiltinRulesEngine().generate(request, progress):
        if isinstance(piece, Turn):
            assert announced == piece.usage.output_tokens
            return text, piece, progress
        if isinstance(piece, Growth):
            assert piece.tokens >= announced
            announced = piece.tokens
        else:
            assert piece.text
            text += piece.text
            used = BuiltinRulesEngine().used(request, progress)
            assert used.output_tokens == announced, "no more is given than was announced"
    raise AssertionError(text)


def a_request(text: str, max_output_tokens: int = 1_000) -> GenerateTextRequest:
    return GenerateTextRequest(
        messages=asked(text), tools=shipped(), max_output_tokens=max_output_tokens
    )


@given(st.text(max_size=200), st.integers(1, 100))
async def test_pieces_make_the_text_and_counts_keep_within_the_bound(text: str, most: int) -> None:
    request = a_request(text, most)
    streamed, turn, progress = await generated(request)
    bound = BuiltinRulesEngine().bound(request)
    assert streamed == turn.message.text
    assert turn.usage.output_tokens <= bound.output_tokens == most
    assert turn.usage.input_tokens <= bound.input_tokens
    assert not turn.usage.estimated
    if not turn.message.tool_calls:
        assert BuiltinRulesEngine().used(request, progress) == turn.usage


async def test_an_answer_that_does_not_fit_is_cut_and_says_so() -> None:
    _, turn, _ = await generated(a_request("Write a poem", 5))
    assert (turn.finish_reason, len(turn.message.text.encode())) == (FINISH_REASON_LENGTH, 20)
    assert turn.usage.output_tokens == 5


async def test_a_call_that_does_not_fit_is_left_out_whole() -> None:
    _, turn, _ = await generated(a_request("What is 2 + 2?", 2))
    assert (turn.finish_reason, list(turn.message.tool_calls)) == (FINISH_REASON_LENGTH, [])
    _, turn, _ = await generated(a_request("What is 2 + 2?", 50))
    assert turn.finish_reason == FINISH_REASON_TOOL_CALLS
    _, turn, _ = await generated(a_request("Write a poem"))
    assert turn.finish_reason == FINISH_REASON_STOP


async def test_stopping_half_way_costs_half_way() -> None:
    request, progress = a_request("Write a poem"), Progress()
    pieces = BuiltinRulesEngine().generate(request, progress)
    ahead, first, _ = [await anext(pieces) for _ in range(3)]
    await pieces.aclose()
    assert isinstance(first, TextDelta)
    assert ahead == Growth(-(-len(first.text) // 4))
    used = BuiltinRulesEngine().used(request, progress)
    assert used.output_tokens == -(-len(first.text) // 4)
    assert used.input_tokens > 0


async def test_the_same_request_has_the_same_answer() -> None:
    answers = [await generated(a_request("What is 2 + 2 and what time is it?")) for _ in range(3)]
    assert answers[0][1] == answers[1][1] == answers[2][1]


def test_it_is_always_ready_and_stopping_stops_its_bill() -> None:
    engine = BuiltinRulesEngine()
    assert (engine.not_ready_reason(), engine.stop_stops_bill) == ("", True)
