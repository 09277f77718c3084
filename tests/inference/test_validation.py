"""Every way in which a request can be wrong, and that all ways are told at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from google.protobuf import struct_pb2, text_format
from hypothesis import given
from hypothesis import strategies as st

from remit.api.inference.v1.inference_service_pb2 import GenerateTextRequest
from remit.api.inference.v1.message_pb2 import (
    ROLE_ASSISTANT,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_UNSPECIFIED,
    ROLE_USER,
    Message,
    ToolCall,
    ToolDefinition,
)
from remit.inference.engine import upper_bound
from remit.inference.validation import MAX_VIOLATIONS, violations_of

USER = Message(role=ROLE_USER, text="Hi")
SYSTEM = Message(role=ROLE_SYSTEM, text="Be brief.")


def calling(*ids: str, tool: str = "tools/x") -> Message:
    calls = [ToolCall(id=call_id, tool=tool) for call_id in ids]
    return Message(role=ROLE_ASSISTANT, tool_calls=calls)


def answer(call_id: str) -> Message:
    return Message(role=ROLE_TOOL, tool_call_id=call_id, text="")


def a_request(*messages: Message, tools: list[ToolDefinition] | None = None) -> GenerateTextRequest:
    return GenerateTextRequest(
        model="models/m", messages=messages or [USER], tools=tools or [], request_id="r"
    )


def fields(request: GenerateTextRequest, limit: int | None = 100) -> list[str]:
    return [v.field for v in violations_of(request, max_output_tokens=limit)]


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [SYSTEM, SYSTEM, USER, USER],
        [USER, Message(role=ROLE_ASSISTANT, text="Yes?"), USER],
        [SYSTEM, USER, calling("a", "b"), answer("b"), answer("a")],
        [USER, calling("a"), answer("a"), calling("a"), answer("a"), USER],
    ],
)
def test_a_conversation_in_order_is_right(messages: list[Message]) -> None:
    assert fields(a_request(*messages)) == []


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([SYSTEM], ["messages"]),
        ([Message(role=ROLE_USER, text=" ")], ["messages[0].text"]),
        ([Message(role=ROLE_UNSPECIFIED, text="x"), USER], ["messages[0].role"] * 2),
        ([USER, SYSTEM], ["messages[1].role"]),
        ([calling("a"), answer("a")], ["messages[0].role"]),
        ([USER, Message(role=ROLE_ASSISTANT, text="Yes")], ["messages[1].role"]),
        ([USER, Message(role=ROLE_ASSISTANT), USER], ["messages[1].text"]),
        ([USER, answer("a")], ["messages[1].tool_call_id"]),
        ([USER, calling("a"), USER], ["messages[2]"]),
        ([USER, calling("a", "b"), answer("a")], ["messages[3]"]),
        ([USER, calling("a"), answer("a"), answer("a")], ["messages[3].tool_call_id"]),
        ([USER, calling("a"), answer("b")], ["messages[2].tool_call_id", "messages[3]"]),
        ([USER, calling("a", tool="x"), answer("a")], ["messages[1].tool_calls[0].tool"]),
        ([USER, calling("a", "a"), answer("a"), answer("a")], ["messages[1].tool_calls[1].id"]),
        ([Message(role=ROLE_USER, text="x", tool_call_id="a")], ["messages[0].tool_call_id"]),
        (
            [Message(role=ROLE_USER, text="x", tool_calls=[ToolCall(id="a", tool="tools/x")])],
            ["messages[0].tool_calls", "messages[1]"],
        ),
    ],
)
def test_a_conversation_out_of_order_is_told_where(
    messages: list[Message], expected: list[str]
) -> None:
    assert fields(a_request(*messages)) == expected


@pytest.mark.parametrize(
    ("value", "faults"),
    [
        (struct_pb2.Value(number_value=1e300), 0),
        (struct_pb2.Value(), 0),  # is printed as null
        (struct_pb2.Value(number_value=math.nan), 1),
        (struct_pb2.Value(number_value=-math.inf), 1),
    ],
    ids=["large", "nothing", "NaN", "infinite"],
)
def test_arguments_of_a_call_are_json(value: struct_pb2.Value, faults: int) -> None:
    inside = struct_pb2.ListValue(values=[struct_pb2.Value(string_value="x"), value])
    outside = struct_pb2.Struct(fields={"list": struct_pb2.Value(list_value=inside)})
    arguments = struct_pb2.Struct(fields={"a": struct_pb2.Value(struct_value=outside)})
    request = a_request(USER, calling("a"), answer("a"))
    request.messages[1].tool_calls[0].arguments.CopyFrom(arguments)
    assert fields(request) == ["messages[1].tool_calls[0].arguments"] * faults
    if not faults:
        assert upper_bound(request).input_tokens


def no_model(request: GenerateTextRequest) -> None:
    request.model = "m"


def no_key(request: GenerateTextRequest) -> None:
    request.request_id = ""


def long_key(request: GenerateTextRequest) -> None:
    request.request_id = "x" * 129


def key_with_a_nul(request: GenerateTextRequest) -> None:
    request.request_id = "x\0"


def too_many_tokens(request: GenerateTextRequest) -> None:
    request.max_output_tokens = 101


def negative_tokens(request: GenerateTextRequest) -> None:
    request.max_output_tokens = -1


def too_hot(request: GenerateTextRequest) -> None:
    request.temperature = 2.01


def not_a_number(request: GenerateTextRequest) -> None:
    request.temperature = float("nan")


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (no_model, "model"),
        (no_key, "request_id"),
        (long_key, "request_id"),
        (key_with_a_nul, "request_id"),
        (too_many_tokens, "max_output_tokens"),
        (negative_tokens, "max_output_tokens"),
        (too_hot, "temperature"),
        (not_a_number, "temperature"),
    ],
)
def test_a_wrong_scalar_is_named(spoil: Callable[[GenerateTextRequest], None], field: str) -> None:
    request = a_request()
    spoil(request)
    assert fields(request) == [field]


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ([ToolDefinition(name="tools/a"), ToolDefinition(name="tools/b")], []),
        ([ToolDefinition(name="a")], ["tools[0].name"]),
        ([ToolDefinition(name="tools/a")] * 2, ["tools[1].name"]),
        (
            [ToolDefinition(name="tools/a", input_schema_json="{")],
            ["tools[0].input_schema_json"],
        ),
        (
            [ToolDefinition(name="tools/a", input_schema_json="[]")],
            ["tools[0].input_schema_json"],
        ),
        (
            [ToolDefinition(name="tools/a", description="x" * 16_385)],
            ["tools[0].description"],
        ),
        ([ToolDefinition(name=f"tools/t{i}") for i in range(257)], ["tools"]),
    ],
)
def test_a_wrong_offer_is_named(tools: list[ToolDefinition], expected: list[str]) -> None:
    assert fields(a_request(tools=tools)) == expected


def test_everything_is_told_at_once_with_its_prefix_and_no_more_than_fits() -> None:
    request = GenerateTextRequest(
        model="m",
        messages=[Message(role=ROLE_USER) for _ in range(MAX_VIOLATIONS + 9)],
        tools=[ToolDefinition(name="x")],
        temperature=-1,
    )
    found = violations_of(request, max_output_tokens=None, prefix="request.")
    assert len(found) == MAX_VIOLATIONS
    assert [v.field for v in found][:5] == [
        "request.model",
        "request.request_id",
        "request.temperature",
        "request.tools[0].name",
        "request.messages[0].text",
    ]


@given(st.binary(max_size=200))
def test_no_message_breaks_it(data: bytes) -> None:
    request = GenerateTextRequest()
    try:
        request.ParseFromString(data)
    except Exception:  # noqa: BLE001 - not a message at all
        return
    assert violations_of(request, max_output_tokens=10), text_format.MessageToString(request)
