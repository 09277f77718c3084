"""Bodies of REST calls: whatever a client sends is the request it means, or is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.api import httpbody_pb2
from google.protobuf import descriptor, json_format, message, message_factory, struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from remit.api.agent.v1 import agent_service_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.tools.v1 import tool_service_pb2
from remit.rpc.contracts import MethodContract, all_contracts
from remit.rpc.errors import RemitError
from remit.rpc.rest import BODY_FIELD_NUMBER, check_query, read_body, retry_after, to_json
from tests.contracts.test_method_contracts import METHODS

CREATE = all_contracts()["/remit.api.agent.v1.AgentService/CreateRun"]
CANCEL = all_contracts()["/remit.api.agent.v1.AgentService/CancelRun"]
STREAM = all_contracts()["/remit.api.agent.v1.AgentService/StreamRun"]
CALL = all_contracts()["/remit.api.tools.v1.ToolService/CallTool"]
GENERATE = all_contracts()["/remit.api.inference.v1.InferenceService/StreamGenerateText"]
WITH_BODY = [c for c in all_contracts().values() if c.http and c.http.body]


def sent(
    contract: MethodContract,
    body: bytes,
    bound: message.Message | None = None,
    content_type: str = "application/json",
) -> Any:
    """The request as Envoy sends it: what the URL says, an empty body, then the body."""
    kind = message_factory.GetMessageClass(METHODS[contract.path].input_type)
    http_body = httpbody_pb2.HttpBody(data=body, content_type=content_type).SerializeToString()
    url = b"" if bound is None else bound.SerializeToString()
    return kind.FromString(url + field(b"") + field(http_body))


def field(content: bytes) -> bytes:
    return varint(BODY_FIELD_NUMBER << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def read(contract: MethodContract, body: Any, bound: message.Message | None = None) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_body(contract, sent(contract, data, bound))


def test_the_path_and_the_body_make_one_request() -> None:
    bound = agent_service_pb2.CancelRunRequest(name="runs/a")
    expected = agent_service_pb2.CancelRunRequest(name="runs/a", request_id="r")
    assert read(CANCEL, {"requestId": "r"}, bound) == expected
    assert read(CANCEL, {"request_id": "r", "name": "runs/a"}, bound) == expected
    assert read(CANCEL, b"", bound) == bound


def test_a_body_may_be_a_field_beside_the_query() -> None:
    bound = agent_service_pb2.StreamRunRequest(after_sequence=3)
    request = read(STREAM, {"task": "t", "agent": None}, bound)
    assert (request.after_sequence, request.request.task, request.request.agent) == (3, "t", "")


def test_a_request_without_a_body_is_what_the_url_says() -> None:
    contract = all_contracts()["/remit.api.agent.v1.AgentService/GetRun"]
    bound = agent_service_pb2.GetRunRequest(name="runs/a")
    assert read_body(contract, bound) is bound


@pytest.mark.parametrize(
    ("contract", "query"),
    [
        (CANCEL, "name=runs/b"),
        (CANCEL, "pageSize=3&Name=runs/b"),
        (CANCEL, "n%61me=runs/b"),
        (CANCEL, "name"),
        (GENERATE, "request.model=models/b"),
        (GENERATE, "request%2Emodel=models/b"),
    ],
)
def test_a_query_must_not_say_what_the_path_says(contract: MethodContract, query: str) -> None:
    with pytest.raises(RemitError, match="must not be in its query"):
        check_query(contract, [("x-envoy-original-path", f"/v1/x?{query}")])


@pytest.mark.parametrize("query", ["", "?", "?&", "?requestId=name", "?nam=b&=name"])
def test_a_query_may_say_anything_else(query: str) -> None:
    check_query(CANCEL, [("x-envoy-original-path", f"/v1/runs/name:cancel{query}")])


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "APPLICATION/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
    ],
)
def test_json_in_utf8_is_taken(kind: str) -> None:
    assert read_body(CREATE, sent(CREATE, b'{"task": "t"}', content_type=kind)).task == "t"


@pytest.mark.parametrize("kind", ["", "text/json", "application/json2", "application/json; q=1"])
def test_another_content_type_is_not(kind: str) -> None:
    with pytest.raises(RemitError, match="content-type"):
        read_body(CREATE, sent(CREATE, b"{}", content_type=kind))


def test_much_json_is_refused_unread() -> None:
    most = CANCEL.max_request_bytes * 8
    with pytest.raises(RemitError, match=f"has {most + 1} bytes; .* at most {most} ") as caught:
        read(CANCEL, b"[" * (most + 1))
    assert caught.value.reason == reasons.ERROR_REASON_TOO_LARGE


@pytest.mark.parametrize(("delay_s", "header"), [(0.1, "1"), (1.0, "1"), (1.01, "2"), (2.5, "3")])
def test_nobody_is_told_to_come_too_early(delay_s: float, header: str) -> None:
    error = RemitError(reasons.ERROR_REASON_OVERLOADED, "full", retry_after_s=delay_s)
    assert retry_after(error) == header


@given(
    arguments=st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none()
            | st.booleans()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
            max_leaves=8,
        ),
        max_size=5,
    )
)
def test_arguments_of_a_tool_arrive_as_they_were_sent(arguments: dict[str, Any]) -> None:
    expected = struct_pb2.Struct()
    json_format.ParseDict(arguments, expected)
    request = read(CALL, {"arguments": arguments}, tool_service_pb2.CallToolRequest(tool="tools/t"))
    assert request.arguments == expected


NAMES = sorted({f.camelcase_name for m in METHODS.values() for f in m.input_type.fields})
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)  # with halves of surrogate pairs
    | st.sampled_from(["1s", "x" * 70, "2026-11-23T00:00:00Z", "runs/a", "-1", "1e400", "NaN"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*NAMES, "\ud800"]) | st.text(max_size=4), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(contract=st.sampled_from(WITH_BODY), body=st.binary(max_size=60) | JSON)
def test_whatever_comes_is_a_request_or_a_refusal(contract: MethodContract, body: Any) -> None:
    try:
        read(contract, body).SerializeToString()
    except RemitError as error:
        refused = error
    else:
        return
    assert refused.reason == reasons.ERROR_REASON_INVALID_REQUEST
    assert refused.violations
    refused.to_status().SerializeToString()
    str(refused).encode()


@given(data=st.data(), contract=st.sampled_from(WITH_BODY))
def test_what_rest_prints_it_reads(data: st.DataObject, contract: MethodContract) -> None:
    assert contract.http is not None
    kind = METHODS[contract.path].input_type
    within = "" if contract.http.body == "*" else contract.http.body
    inner = kind.fields_by_name[within].message_type if within else kind
    assert inner is not None
    content = data.draw(messages(inner))
    request = read(contract, to_json(content).encode(), at_path(contract, content, within))
    assert (getattr(request, within) if within else request) == content


def at_path(contract: MethodContract, content: Any, within: str) -> Any:
    """What the URL says: the path's own fields, the same as in the body."""
    bound = message_factory.GetMessageClass(METHODS[contract.path].input_type)()
    if within:
        getattr(bound, within).SetInParent()
    return bound


def messages(kind: descriptor.Descriptor) -> st.SearchStrategy[Any]:
    """Messages of a type with any of its fields of texts and numbers."""
    simple = {
        descriptor.FieldDescriptor.TYPE_STRING: st.text(max_size=5),
        descriptor.FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
        descriptor.FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
        descriptor.FieldDescriptor.TYPE_BOOL: st.booleans(),
    }
    path = {"name", "model", "tool"}
    fields = {
        f.name: simple[f.type]
        for f in kind.fields
        if f.type in simple and not f.is_repeated and f.name not in path
    }
    return st.fixed_dictionaries({}, optional=fields).map(
        lambda values: message_factory.GetMessageClass(kind)(**values)
    )
