"""What a tool may return, and what is said about the rest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from pydantic import BaseModel

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError
from remit.tools import File, ToolResult
from remit.tools.arguments import MAX_SAFE_INTEGER, plain_struct
from remit.tools.results import MAX_DEPTH, ResultLimits, to_outcome
from tests.tools.calls import LIMITS
from tests.tools.test_arguments import json_objects


class Model(BaseModel):
    day: date


@dataclass
class Record:
    n: int


def plain(returned: object) -> dict[str, Any]:
    return plain_struct(to_outcome("tools/x", returned, LIMITS).result)


def error_of(returned: object, limits: ResultLimits = LIMITS) -> RemitError:
    with pytest.raises(RemitError) as caught:
        to_outcome("tools/x", returned, limits)
    return caught.value


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ({"a": 1}, {"a": 1}),
        ({}, {}),
        ("text", {"value": "text"}),
        (None, {"value": None}),
        (True, {"value": True}),
        (2.5, {"value": 2.5}),
        ([1, "b"], {"value": [1, "b"]}),
        ((1, 2), {"value": [1, 2]}),
        (Model(day=date(2026, 1, 2)), {"day": "2026-01-02"}),
        (Record(7), {"n": 7}),
        ({"deep": [{"x": None}]}, {"deep": [{"x": None}]}),
        (ToolResult({"a": 1}), {"a": 1}),
        (MAX_SAFE_INTEGER, {"value": MAX_SAFE_INTEGER}),
    ],
)
def test_what_is_json_is_a_result(returned: object, expected: dict[str, Any]) -> None:
    assert plain(returned) == expected


@given(json_objects)
def test_an_object_arrives_as_it_was(returned: dict[str, Any]) -> None:
    assert plain(returned) == returned


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("returned", "fault"),
    [
        (object(), "is not JSON"),
        (MAX_SAFE_INTEGER + 1, "beyond 2^53"),
        (float("nan"), "not finite"),
        ({"a": float("inf")}, "not finite"),
        (nested(MAX_DEPTH), "nested deeper"),
        (b"\xff", "is not JSON"),
        ("\ud800", "is not JSON"),
    ],
)
def test_what_a_struct_cannot_hold_is_refused(returned: object, fault: str) -> None:
    error = error_of(returned)
    assert error.reason == error_reason_pb2.ERROR_REASON_TOOL_FAILED
    assert fault in error.message


def test_the_deepest_result_fits() -> None:
    assert plain(nested(MAX_DEPTH - 1))["value"]


def test_a_file_becomes_an_artifact() -> None:
    outcome = to_outcome("tools/x", ToolResult(None, [File("a.md", "text/markdown", b"x")]), LIMITS)
    (found,) = outcome.artifacts
    assert found.content == b"x"
    assert found.artifact.name == "a.md"
    assert found.artifact.media_type == "text/markdown"
    assert found.artifact.size_bytes == 1
    assert found.artifact.digest == hashlib.sha256(b"x").digest()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("x" * 2_000, "tools/x: the result has 2016 bytes; the limit is 1024"),
        (
            ToolResult(None, [File("a", "", b"12345")]),
            "tools/x: file 1 of 1 has 5 bytes; the limit is 4",
        ),
        (
            ToolResult(None, [File("a", "", b"")] * 2),
            "tools/x: the result has 2 files; the limit is 1",
        ),
    ],
)
def test_what_is_over_its_bound_says_so(returned: object, message: str) -> None:
    error = error_of(returned, ResultLimits(1_024, 1, 4))
    assert error.reason == error_reason_pb2.ERROR_REASON_TOO_LARGE
    assert error.message == message


@pytest.mark.parametrize("name", ["", "n" * 201])
def test_a_file_needs_a_name(name: str) -> None:
    error = error_of(ToolResult(None, [File(name, "", b"")]))
    assert error.reason == error_reason_pb2.ERROR_REASON_TOOL_FAILED
