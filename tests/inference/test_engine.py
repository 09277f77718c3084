"""The bound is a bound: no tokenizer makes more tokens than there are bytes."""

from __future__ import annotations

import json

from google.protobuf import json_format, struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from remit.api.inference.v1.inference_service_pb2 import GenerateTextRequest
from remit.api.inference.v1.message_pb2 import (
    ROLE_ASSISTANT,
    ROLE_TOOL,
    ROLE_USER,
    Message,
    ToolCall,
)
from remit.api.usage.v1.usage_pb2 import Usage
from remit.inference.chat_completions import FunctionNames, request_body
from remit.inference.engine import arguments_json, counted_tokens, prompt_texts, upper_bound
from tests.inference.offered import a_tool

texts = st.text(max_size=60)
arguments: st.SearchStrategy[dict[str, object]] = st.dictionaries(
    texts, texts | st.integers(-(2**53), 2**53) | st.booleans(), max_size=4
)


def a_struct(values: dict[str, object]) -> struct_pb2.Struct:
    return json_format.ParseDict(values, struct_pb2.Struct())


@st.composite
def requests(draw: st.DrawFn) -> GenerateTextRequest:
    call = ToolCall(id="c1", tool="tools/x.y", arguments=a_struct(draw(arguments)))
    return GenerateTextRequest(
        messages=[
            Message(role=ROLE_USER, text=draw(texts)),
            Message(role=ROLE_ASSISTANT, text=draw(texts), tool_calls=[call]),
            Message(role=ROLE_TOOL, tool_call_id="c1", text=draw(texts), tool_error=True),
        ],
        tools=[a_tool("x.y", draw(texts), [], prop=draw(texts))],
        max_output_tokens=draw(st.integers(1, 10_000)),
    )


def content_bytes(value: object) -> int:
    """UTF-8 bytes of every text that a provider is sent and tokenizes, keys of messages aside."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, list):
        return sum(content_bytes(item) for item in value)
    return 0


@given(requests())
def test_what_a_provider_is_sent_stays_within_the_bound(request: GenerateTextRequest) -> None:
    functions = FunctionNames(request)
    body = request_body(request, model="m", max_tokens_parameter="max_tokens", functions=functions)
    sent = 0
    for message in body["messages"]:
        sent += content_bytes([message["role"], message["content"], message.get("tool_call_id")])
        for call in message.get("tool_calls", []):
            sent += content_bytes([call["id"], *call["function"].values()])
    for tool in body["tools"]:
        function = tool["function"]
        sent += content_bytes([function["name"], function["description"]])
        sent += len(json.dumps(function["parameters"], indent=4))
    bound = upper_bound(request)
    assert sent <= bound.input_tokens
    assert counted_tokens(prompt_texts(request)) <= bound.input_tokens
    assert (bound.output_tokens, bound.calls) == (request.max_output_tokens, 1)


def test_the_bound_counts_bytes_and_framing_of_each_part() -> None:
    empty = upper_bound(GenerateTextRequest(max_output_tokens=3))
    one = upper_bound(
        GenerateTextRequest(messages=[Message(role=ROLE_USER, text="äö")], max_output_tokens=3)
    )
    assert empty == Usage(input_tokens=64, output_tokens=3, calls=1)
    assert one == Usage(input_tokens=64 + 16 + 4, output_tokens=3, calls=1)


@given(arguments)
def test_arguments_have_one_form_and_lose_nothing(values: dict[str, object]) -> None:
    struct = a_struct(values)
    assert json.loads(arguments_json(struct)) == values
    backwards = a_struct(dict(reversed(list(values.items()))))
    assert arguments_json(struct) == arguments_json(backwards)
