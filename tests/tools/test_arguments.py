"""Arguments: what a Struct holds, what a tool gets, and every violation at once."""

from __future__ import annotations

import math
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any

import pytest
from google.protobuf import struct_pb2
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError
from remit.tools import tool
from remit.tools.arguments import (
    MAX_SAFE_INTEGER,
    MAX_VIOLATIONS,
    NotJsonError,
    arguments_digest,
    plain_struct,
    validate,
)
from remit.tools.definition import ToolDefinition, define
from tests.tools.calls import struct


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Point(BaseModel):
    x: int
    y: int = 0


@tool(permission_class="none")
async def everything(  # noqa: PLR0917 - one parameter a type
    text: str,
    count: Annotated[int, Field(ge=0)] = 0,
    ratio: float = 0.5,
    flag: bool = False,  # noqa: FBT001, FBT002 - an argument of a tool
    colour: Colour = Colour.RED,
    day: date | None = None,
    amount: Decimal = Decimal(0),
    points: tuple[Point, ...] = (),
    either: int | str = 0,
    json: dict[str, Any] | None = None,
) -> None:
    """Take one argument of each kind."""


EVERYTHING: ToolDefinition = define(everything)


def taken(**arguments: Any) -> dict[str, Any]:
    return EVERYTHING.keywords(validate(EVERYTHING, struct(arguments)))


def refused(arguments: struct_pb2.Struct) -> RemitError:
    with pytest.raises(RemitError) as caught:
        validate(EVERYTHING, arguments)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS
    return caught.value


def error_of(arguments: struct_pb2.Struct) -> RemitError | None:
    try:
        validate(EVERYTHING, arguments)
    except RemitError as error:
        return error
    return None


def violations(**arguments: Any) -> dict[str, str]:
    return {v.field: v.description for v in refused(struct(arguments)).violations}


def test_each_kind_arrives_typed() -> None:
    found = taken(
        text="a",
        count=3,
        ratio=2,
        flag=True,
        colour="blue",
        day="2026-11-23",
        amount="1.50",
        points=[{"x": 1}, {"x": 2, "y": 3}],
        either="b",
        json={"a": [1, 2.5, None]},
    )
    assert found == {
        "text": "a",
        "count": 3,
        "ratio": 2.0,
        "flag": True,
        "colour": Colour.BLUE,
        "day": date(2026, 11, 23),
        "amount": Decimal("1.50"),
        "points": (Point(x=1), Point(x=2, y=3)),
        "either": "b",
        "json": {"a": [1, 2.5, None]},
    }
    assert isinstance(found["count"], int)
    assert isinstance(found["json"]["a"][0], int)


def test_defaults_are_the_functions_own() -> None:
    assert taken(text="a")["amount"] == Decimal(0)


def test_every_violation_is_reported_at_once_with_its_path() -> None:
    found = violations(count=-1, flag=1, colour="green", points=[{"x": 1}, {"x": "2"}], nope=1)
    assert set(found) == {
        "arguments.text",
        "arguments.count",
        "arguments.flag",
        "arguments.colour",
        "arguments.points[1].x",
        "arguments.nope",
    }
    assert found["arguments.text"] == "Field required"
    assert found["arguments.nope"] == "is not an argument of this tool"


def test_the_message_names_the_tool_and_the_first_violations() -> None:
    message = refused(struct({"count": -1, "flag": 1, "nope": 2})).message
    assert message.startswith("tools/everything: text: Field required; count: ")
    assert message.endswith("(and 1 more)")


def test_a_flood_of_violations_is_bounded() -> None:
    error = refused(struct({"text": "a"} | {f"x{n}": n for n in range(500)}))
    assert len(error.violations) == MAX_VIOLATIONS
    assert "(and 497 more)" in error.message


def test_no_value_is_repeated() -> None:
    error = refused(
        struct({"text": 1, "colour": "hunter2", "day": "hunter2", "either": ["hunter2"]})
    )
    assert "hunter2" not in str(error.to_status())


@pytest.mark.parametrize("wrong", ["1", True, None, [], {}, 1.5])
def test_an_integer_is_nothing_else(wrong: Any) -> None:
    assert set(violations(text="a", count=wrong)) == {"arguments.count"}


@given(st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER))
def test_safe_integers_arrive_exactly(number: int) -> None:
    arrived = taken(text="a", either=number)["either"]
    assert (arrived, type(arrived)) == (number, int)


@given(st.integers(2**53, 2**1000) | st.integers(-(2**1000), -(2**53)))
def test_integers_that_a_struct_cannot_hold_are_refused_clearly(number: int) -> None:
    found = violations(text="a", count=number)
    assert "cannot hold exactly" in found["arguments.count"]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_arrive_exactly(number: float) -> None:
    arrived = taken(text="a", ratio=number)["ratio"]
    assert (arrived, type(arrived)) == (number, float)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_does_not_have_is_refused(number: float) -> None:
    arguments = struct({"text": "a", "json": {"deep": [0, 0]}})
    arguments.fields["json"].struct_value.fields["deep"].list_value.values[1].number_value = number
    (violation,) = refused(arguments).violations
    assert violation.field == "arguments.json.deep[1]"
    with pytest.raises(NotJsonError):
        arguments_digest(arguments)


def test_a_value_of_no_kind_is_refused() -> None:
    arguments = struct_pb2.Struct()
    arguments.fields["text"].CopyFrom(struct_pb2.Value())
    (violation,) = refused(arguments).violations
    assert violation.description == "has no value; send null for nothing"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=5)


@given(json_objects)
def test_any_object_is_taken_or_refused_with_paths(arguments: dict[str, Any]) -> None:
    error = error_of(struct(arguments))
    if error is not None:
        assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS
        assert error.violations
        assert all(v.field.startswith("arguments") for v in error.violations)


@given(json_objects)
def test_a_struct_gives_back_what_went_in(arguments: dict[str, Any]) -> None:
    assert plain_struct(struct(arguments)) == arguments


@given(json_objects, st.randoms())
def test_the_digest_ignores_the_order_of_fields(arguments: dict[str, Any], random: Any) -> None:
    keys = list(arguments)
    random.shuffle(keys)
    shuffled = {key: arguments[key] for key in keys}
    assert arguments_digest(struct(arguments)) == arguments_digest(struct(shuffled))


@given(json_objects, json_objects)
def test_the_digest_tells_different_arguments_apart(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    same = struct(one) == struct(other)
    assert (arguments_digest(struct(one)) == arguments_digest(struct(other))) == same
