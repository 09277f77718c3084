"""The engine `openai` against a server that speaks the protocol over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.api.inference.v1.inference_service_pb2 import GenerateTextRequest
from remit.api.inference.v1.message_pb2 import (
    FINISH_REASON_CONTENT_FILTER,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    ROLE_ASSISTANT,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    Message,
    ToolCall,
)
from remit.api.usage.v1.usage_pb2 import Usage
from remit.inference.declarations import KeyReference, OpenAIModel
from remit.inference.engine import Growth, Progress, TextDelta, Turn, arguments_json
from remit.inference.openai_engine import OpenAIEngine
from remit.rpc.errors import RemitError
from tests.inference.offered import a_tool
from tests.inference.openai_server import (
    OpenAIServer,
    call_delta,
    chunks,
    cut_after,
    delta,
    refuses,
    running,
    says,
    stalls_after,
    usage,
)
from tests.ports import free_ports
from tests.waiting import in_time

FAILED = error_reason_pb2.ERROR_REASON_PROVIDER_FAILED
UNAVAILABLE = error_reason_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE
SECRET = "rk-very-secret-0123456789"


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    """A provider that says hello."""
    async with running() as started:
        yield started


@pytest.fixture
async def engine(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[OpenAIEngine]:
    """The engine of a model at that provider."""
    monkeypatch.setenv("PROVIDER_KEY", SECRET)
    monkeypatch.setenv("OPENAI_ORG_ID", "ambient")
    opened = an_engine(server.base_url)
    yield opened
    await opened.close()


@pytest.fixture
async def measuring(server: OpenAIServer) -> AsyncIterator[OpenAIEngine]:
    """The engine of a model whose endpoint gives log-probabilities."""
    opened = an_engine(server.base_url, logprobs=True)
    yield opened
    await opened.close()


def with_logprobs(text: str, *logprobs: object) -> dict[str, Any]:
    chunk = delta(content=text)
    tokens = [{"token": "x", "logprob": logprob, "bytes": [120]} for logprob in logprobs]
    chunk["choices"][0]["logprobs"] = {"content": tokens, "refusal": None}
    return chunk


def an_engine(base_url: str, **fields: Any) -> OpenAIEngine:
    declaration = OpenAIModel(
        name="gpt",
        engine="openai",
        base_url=base_url,
        provider_model="gpt-5-mini",
        api_key=KeyReference(env="PROVIDER_KEY"),
        context_tokens=100_000,
        max_output_tokens=1_000,
        **fields,
    )
    return OpenAIEngine(declaration, max_answer_bytes=10_000, max_connections=4)


def a_request(**fields: Any) -> GenerateTextRequest:
    request = GenerateTextRequest(
        model="models/gpt",
        messages=[Message(role=ROLE_USER, text="Hi")],
        max_output_tokens=100,
        request_id="r1",
    )
    request.MergeFrom(GenerateTextRequest(**fields))
    return request


async def generated(
    engine: OpenAIEngine, request: GenerateTextRequest | None = None
) -> tuple[list[str], Turn]:
    deltas: list[str] = []
    async for piece in engine.generate(request or a_request(), Progress()):
        if isinstance(piece, Turn):
            return deltas, piece
        if isinstance(piece, TextDelta):
            deltas.append(piece.text)
    raise AssertionError(deltas)


async def failure(
    engine: OpenAIEngine, request: GenerateTextRequest | None = None
) -> tuple[RemitError, Usage]:
    request = request or a_request()
    progress = Progress()
    with pytest.raises(RemitError) as caught:
        async for _ in engine.generate(request, progress):
            pass
    assert SECRET not in str(caught.value)
    return caught.value, engine.used(request, progress)


async def test_the_first_chunk_is_noticed_though_it_holds_no_text(
    server: OpenAIServer, engine: OpenAIEngine
) -> None:
    server.script = chunks(delta(role="assistant", content=""), delta(finish_reason="stop"))
    progress = Progress()
    began = progress.clock.monotonic()
    async for piece in engine.generate(a_request(), progress):
        assert isinstance(piece, Growth | Turn)
    assert progress.first_chunk_time is not None
    assert began < progress.first_chunk_time < progress.clock.monotonic()


async def test_an_answer_that_never_begins_has_no_first_chunk(
    server: OpenAIServer, engine: OpenAIEngine
) -> None:
    server.script = refuses(500)
    progress = Progress()
    with pytest.raises(RemitError):
        await anext(engine.generate(a_request(), progress))
    assert progress.first_chunk_time is None


async def test_text_is_streamed_with_its_usage(server: OpenAIServer, engine: OpenAIEngine) -> None:
    server.script = chunks(
        delta(role="assistant", content=""),
        delta(content="Hel"),
        delta(content="lo"),
        delta(finish_reason="stop"),
        usage(12, 3, cached=8),
    )
    deltas, turn = await generated(engine)
    assert deltas == ["Hel", "lo"]
    assert turn.message == Message(role=ROLE_ASSISTANT, text="Hello")
    assert turn.finish_reason == FINISH_REASON_STOP
    assert turn.usage == Usage(input_tokens=12, output_tokens=3, cached_input_tokens=8, calls=1)


async def test_the_request_is_the_conversation_and_nothing_ambient(
    server: OpenAIServer, engine: OpenAIEngine
) -> None:
    call = ToolCall(id="c1", tool="tools/Search.All")
    call.arguments.update({"n": 5, "query": "x"})
    tool = a_tool("Search.All", "Searches.", ["query"], query="Words.")
    request = GenerateTextRequest(
        model="models/gpt",
        messages=[
            Message(role=ROLE_SYSTEM, text="Be brief."),
            Message(role=ROLE_USER, text="Find x"),
            Message(role=ROLE_ASSISTANT, tool_calls=[call]),
            Message(role=ROLE_TOOL, tool_call_id="c1", text="gone", tool_error=True),
        ],
        tools=[tool],
        max_output_tokens=77,
        temperature=0.0,
    )
    await generated(engine, request)
    (body,) = server.requests
    function = body["tools"][0]["function"]["name"]
    assert function.startswith("Search_All_")
    assert body["model"] == "gpt-5-mini"
    assert (body["max_tokens"], body["temperature"], body["stream"]) == (77, 0.0, True)
    assert body["stream_options"] == {"include_usage": True}
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Find x"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": function, "arguments": '{"n":5,"query":"x"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "Error: gone"},
    ]
    assert server.headers[0]["authorization"] == f"Bearer {SECRET}"
    assert "openai-organization" not in server.headers[0]


async def test_a_model_without_a_key_sends_none(server: OpenAIServer) -> None:
    declaration = OpenAIModel(
        name="local",
        engine="openai",
        base_url=server.base_url,
        provider_model="llama",
        context_tokens=10,
        max_output_tokens=10,
        max_tokens_parameter="max_completion_tokens",
    )
    engine = OpenAIEngine(declaration, max_answer_bytes=10_000, max_connections=1)
    assert engine.not_ready_reason() == ""
    await generated(engine)
    await engine.close()
    assert "authorization" not in server.headers[0]
    assert server.requests[0]["max_completion_tokens"] == 100
    assert "max_tokens" not in server.requests[0]


async def test_tool_calls_are_put_together_and_named_back(
    server: OpenAIServer, engine: OpenAIEngine
) -> None:
    request = a_request(tools=[a_tool("a.b", "", []), a_tool("plain", "", [])])
    await generated(engine, request)
    mapped = server.requests[0]["tools"][0]["function"]["name"]
    server.script = chunks(
        call_delta(0, id="c1", name=mapped, arguments=""),
        call_delta(0, arguments='{"x": 2, "big": '),
        call_delta(1, id="c2", name="plain", arguments=""),
        call_delta(0, arguments="9007199254740992}"),
        delta(finish_reason="tool_calls"),
        usage(5, 5),
    )
    deltas, turn = await generated(engine, request)
    assert deltas == []
    assert turn.finish_reason == FINISH_REASON_TOOL_CALLS
    assert [(c.id, c.tool, arguments_json(c.arguments)) for c in turn.message.tool_calls] == [
        ("c1", "tools/a.b", '{"big":9007199254740992,"x":2}'),
        ("c2", "tools/plain", "{}"),
    ]


async def test_a_tool_that_was_not_offered_keeps_its_name(
    server: OpenAIServer, engine: OpenAIEngine
) -> None:
    call = call_delta(0, id="c", name="invented", arguments="{}")
    server.script = chunks(call, delta(finish_reason="stop"))
    _, turn = await generated(engine)
    assert turn.message.tool_calls[0].tool == "tools/invented"
    assert turn.finish_reason == FINISH_REASON_TOOL_CALLS


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("length", FINISH_REASON_LENGTH), ("content_filter", FINISH_REASON_CONTENT_FILTER)],
)
async def test_an_answer_that_is_cut_says_so_and_drops_the_call_that_was_cut(
    server: OpenAIServer, engine: OpenAIEngine, reason: str, expected: int
) -> None:
    server.script = chunks(
        delta(content="So"),
        call_delta(0, id="c", name="x", arguments='{"half": "of'),
        delta(finish_reason=reason),
    )
    _, turn = await generated(engine)
    assert (turn.finish_reason, turn.message.text, len(turn.message.tool_calls)) == (
        expected,
        "So",
        0,
    )


async def test_without_reported_usage_it_is_estimated_from_the_text(
    server: OpenAIServer, engine: OpenAIEngine
) -> None:
    server.script = chunks(delta(content="x" * 41), delta(finish_reason="stop"))
    _, turn = await generated(engine)
    assert turn.usage.estimated
    assert (turn.usage.output_tokens, turn.usage.calls) == (11, 1)
    assert turn.usage.input_tokens == 1


@pytest.mark.parametrize(
    "reported",
    [
        {"prompt_tokens": -1, "completion_tokens": 3},
        {"prompt_tokens": "9", "completion_tokens": 3},
        {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 6}},
        {"prompt_tokens": True, "completion_tokens": 3},
        [],
    ],
)
async def test_usage_that_makes_no_sense_is_no_usage(
    server: OpenAIServer, engine: OpenAIEngine, reported: object
) -> None:
    last = {"choices": [], "usage": reported}
    server.script = chunks(delta(content="x"), delta(finish_reason="stop"), last)
    _, turn = await generated(engine)
    assert turn.usage.estimated


async def test_more_than_max_tokens_is_told_as_it_was(
    server: OpenAIServer, engine: OpenAIEngine
) -> None:
    server.script = chunks(
        *(delta(content="word ") for _ in range(400)), delta(finish_reason="stop"), usage(1, 400)
    )
    _, turn = await generated(engine)
    assert turn.usage.output_tokens == 400
    assert turn.usage.output_tokens > engine.bound(a_request()).output_tokens
    assert len(turn.message.text) == 2_000


async def test_an_answer_beyond_every_bound_is_cut_off(
    server: OpenAIServer, engine: OpenAIEngine
) -> None:
    server.script = chunks(*(delta(content="x" * 999) for _ in range(11)))
    error, used = await failure(engine)
    assert (error.reason, "more than 10000 bytes" in error.message) == (FAILED, True)
    assert used == Usage(input_tokens=1, output_tokens=2_748, calls=1, estimated=True)


async def test_a_flood_around_the_answer_is_cut_off(
    server: OpenAIServer, engine: OpenAIEngine
) -> None:
    flood = {"choices": [], "padding": "x" * 100_000}
    server.script = chunks(*[flood] * 10)
    error, _ = await failure(engine)
    assert (error.reason, "its stream has more than" in error.message) == (FAILED, True)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, FAILED),
        (401, FAILED),
        (403, FAILED),
        (404, FAILED),
        (422, FAILED),
        (301, FAILED),
        (408, UNAVAILABLE),
        (429, UNAVAILABLE),
        (500, UNAVAILABLE),
        (503, UNAVAILABLE),
    ],
)
async def test_a_refusal_is_told_with_the_provider_s_words_and_costs_nothing(
    server: OpenAIServer, engine: OpenAIEngine, status: int, reason: int
) -> None:
    server.script = refuses(status, f"wrong: {SECRET} and sk-abc***def")
    error, used = await failure(engine)
    assert error.reason == reason
    assert error.message.startswith(f"the provider of models/gpt answered {status}: wrong: [key]")
    assert "sk-abc" not in error.message
    assert used == Usage()
    assert len(server.requests) == 1  # no retries of its own


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "1000000"}, 3600.0),
        ({"retry-after": "soon"}, 1.0),
        ({}, 1.0),
    ],
)
async def test_the_provider_s_wish_to_wait_is_passed_on(
    server: OpenAIServer, engine: OpenAIEngine, headers: dict[str, str], expected: float
) -> None:
    server.script = refuses(429, headers=headers)
    error, _ = await failure(engine)
    assert error.retry_after_s == expected


async def test_a_date_to_wait_for_is_a_time_to_wait(
    server: OpenAIServer, engine: OpenAIEngine
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    server.script = refuses(503, headers={"retry-after": date})
    error, _ = await failure(engine)
    assert 50 < (error.retry_after_s or 0) <= 60


async def test_an_empty_account_is_no_outage(server: OpenAIServer, engine: OpenAIEngine) -> None:
    server.script = refuses(429, "pay first", code="insufficient_quota")
    error, _ = await failure(engine)
    assert error.reason == FAILED


async def test_a_provider_that_is_not_there_costs_nothing() -> None:
    engine = an_engine(f"http://127.0.0.1:{free_ports(1)[0]}/v1")
    error, used = await failure(engine)
    await engine.close()
    assert (error.reason, used) == (UNAVAILABLE, Usage())


@pytest.mark.parametrize("stops", [True, False])
async def test_a_stream_that_is_cut_is_an_error_and_is_paid_for(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch, *, stops: bool
) -> None:
    engine = an_engine(server.base_url, stop_stops_bill=stops)
    server.script = cut_after(delta(content="half an ans"))
    error, used = await failure(engine)
    await engine.close()
    assert error.reason == UNAVAILABLE
    assert used == Usage(input_tokens=1, output_tokens=3, calls=1, estimated=True)


@pytest.mark.parametrize("continuous", [True, False])
async def test_what_came_is_counted_by_the_provider_where_it_counts_and_else_by_bytes(
    server: OpenAIServer, *, continuous: bool
) -> None:
    engine = an_engine(server.base_url, continuous_usage=continuous)
    parts = [delta(content="four") | {"usage": usage(7, n)["usage"]} for n in (1, 2)]
    server.script = chunks(*parts, call_delta(0, id="c", name="f", arguments="{}"), done=False)
    progress, came = Progress(), list[int]()
    pieces = engine.generate(a_request(), progress)
    with contextlib.suppress(RemitError):  # it ends without a reason
        while True:
            piece = await anext(pieces)
            came += [piece.tokens] if isinstance(piece, Growth) else []
    await engine.close()
    assert came == ([1, 2, 5] if continuous else [4, 8, 11])
    used = engine.used(a_request(), progress)
    assert used == Usage(input_tokens=7, output_tokens=3, calls=1, estimated=True)
    options = server.requests[0]["stream_options"]
    assert options.get("continuous_usage_stats", False) is continuous


async def test_a_provider_that_falls_silent_is_given_up(server: OpenAIServer) -> None:
    engine = an_engine(server.base_url, idle_timeout_s=0.2)
    server.script = stalls_after(server, delta(content="so"))
    error, _ = await failure(engine)
    assert (error.reason, "in time" in error.message) == (UNAVAILABLE, True)
    await in_time(server.broken_off.wait(), 5)
    await engine.close()


async def test_stopping_closes_the_connection_and_counts_what_came(
    server: OpenAIServer,
) -> None:
    engine = an_engine(server.base_url, stop_stops_bill=True)
    server.script = stalls_after(server, delta(content="x" * 40))
    progress, began = Progress(), asyncio.Event()

    async def read() -> None:
        async for piece in engine.generate(a_request(), progress):
            if isinstance(piece, Growth):
                began.set()

    task = asyncio.create_task(read())
    await in_time(began.wait(), 5)
    task.cancel()
    await asyncio.wait({task})
    await in_time(server.broken_off.wait(), 5)
    assert engine.used(a_request(), progress).output_tokens == 10
    await engine.close()


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ((delta(content="x"),), "without a finish_reason"),
        ((), "without a finish_reason"),
        ((delta(content="x"), "{not json"), "not JSON"),
        ((["a", "list"],), "no JSON object"),
        (({"choices": 3},), "no list"),
        ((delta(finish_reason="abort"),), "not known"),
        ((delta(finish_reason="tool_calls"),), "asks for none"),
        (
            (call_delta(0, name="x", arguments='{"a":'), delta(finish_reason="tool_calls")),
            "not JSON",
        ),
        ((call_delta(0, name="x", arguments="[1]"), delta(finish_reason="stop")), "no JSON object"),
        (
            (call_delta(0, name="x", arguments='{"a":9007199254740993}'), delta("stop")),
            "2^53",
        ),
        ((call_delta(0, name="x", arguments='{"a":NaN}'), delta("stop")), "finite"),
        ((call_delta(0, name="../x", arguments="{}"), delta("stop")), "malformed"),
        ((call_delta(500, name="x"),), "index"),
        (
            (
                call_delta(0, name="x", arguments='{"a":' + "[" * 200 + "]" * 200 + "}"),
                delta("stop"),
            ),
            "cannot be represented",
        ),
    ],
)
async def test_what_is_no_answer_is_an_error(
    server: OpenAIServer, engine: OpenAIEngine, parts: tuple[object, ...], why: str
) -> None:
    server.script = chunks(*parts)
    error, _ = await failure(engine)
    assert error.reason == FAILED
    assert why in error.message


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("server_error", UNAVAILABLE), ("rate_limit_exceeded", UNAVAILABLE), ("invalid", FAILED)],
)
async def test_an_error_inside_the_stream_is_an_error(
    server: OpenAIServer, engine: OpenAIEngine, kind: str, reason: int
) -> None:
    inside = {"error": {"message": f"broke {SECRET}", "type": kind, "code": None}}
    server.script = chunks(delta(content="so"), inside)
    error, _ = await failure(engine)
    assert error.reason == reason
    assert "broke [key]" in error.message


async def test_a_missing_key_is_said_with_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = an_engine("http://127.0.0.1:9/v1")
    monkeypatch.delenv("PROVIDER_KEY", raising=False)
    assert "PROVIDER_KEY is not set" in engine.not_ready_reason()
    monkeypatch.setenv("PROVIDER_KEY", "x")
    assert engine.not_ready_reason() == ""
    await engine.close()


async def test_a_changed_key_counts_from_the_next_call(
    server: OpenAIServer, engine: OpenAIEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await generated(engine)
    monkeypatch.setenv("PROVIDER_KEY", "another")
    await generated(engine)
    assert server.headers[1]["authorization"] == "Bearer another"


async def test_many_answers_at_once_keep_apart(server: OpenAIServer, engine: OpenAIEngine) -> None:
    server.script = says("a", "b", "c")
    answers = await asyncio.gather(*(generated(engine) for _ in range(12)))
    assert {turn.message.text for _, turn in answers} == {"abc"}


async def test_confidence_is_the_geometric_mean_of_the_tokens_probabilities(
    server: OpenAIServer, measuring: OpenAIEngine
) -> None:
    server.script = chunks(
        with_logprobs("It is ", math.log(0.9), math.log(0.4)),
        with_logprobs("here", math.log(0.6)),
        delta(finish_reason="stop"),
        usage(10, 3),
    )
    _, turn = await generated(measuring, a_request(measure_confidence=True))
    assert turn.confidence == pytest.approx((0.9 * 0.4 * 0.6) ** (1 / 3))
    assert server.requests[-1]["logprobs"] is True
    assert measuring.measures_confidence


async def test_nobody_is_asked_for_what_it_does_not_give(
    server: OpenAIServer, engine: OpenAIEngine, measuring: OpenAIEngine
) -> None:
    for asked, wanted in ((engine, True), (measuring, False)):
        _, turn = await generated(asked, a_request(measure_confidence=wanted))
        assert turn.confidence is None
        assert "logprobs" not in server.requests[-1]
    assert not engine.measures_confidence


async def test_an_answer_without_log_probabilities_has_no_confidence(
    server: OpenAIServer, measuring: OpenAIEngine
) -> None:
    _, turn = await generated(measuring, a_request(measure_confidence=True))
    assert (turn.message.text, turn.confidence) == ("hello", None)
