"""Values of a body arrive as the number that was meant, or are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.api.agent.v1 import run_pb2
from remit.api.inference.v1 import message_pb2
from remit.rpc.errors import RemitError
from tests.rpc.test_rest import CALL, CREATE, GENERATE, read


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        ("maxSteps", "1_0"),
        ("maxSteps", "\u0663"),
        ("maxSteps", "+3"),
        ("maxSteps", "1e1"),
        ("maxSteps", " 3"),
        ("maxSteps", "3\n"),
        ("maxSteps", ""),
        ("maxSteps", 3.5),
        ("maxSteps", True),
        ("maxSteps", 2**31),
        ("maxCostNanos", 9007199254740993.0),
        ("maxCostNanos", 1e18),
        ("maxCostNanos", "1_000"),
        ("maxDuration", " 5s"),
        ("maxDuration", "1_0s"),
        ("maxDuration", "\u0665s"),
        ("maxDuration", 5),
    ],
)
def test_a_number_that_would_be_changed_is_refused(limit: str, value: Any) -> None:
    with pytest.raises(RemitError) as caught:
        read(CREATE, {"limits": {limit: value}})
    assert [v.field for v in caught.value.violations] == [f"limits.{limit}"]


@pytest.mark.parametrize(
    "role", [2**32 + 2, 2**40, -1, 99, 1.0, "1", "user", "ROLE_X", "\ud800", True, [], {}, None]
)
def test_a_role_is_one_of_them(role: Any) -> None:
    body = {"messages": [{"role": role}]}
    if role is None:
        assert read(GENERATE, body).request.messages[0].role == message_pb2.ROLE_UNSPECIFIED
        return
    with pytest.raises(RemitError) as caught:
        read(GENERATE, body)
    assert [v.field for v in caught.value.violations] == ["messages[0].role"]


@pytest.mark.parametrize("role", ["ROLE_USER", message_pb2.ROLE_USER])
def test_a_role_has_a_name_and_a_number(role: Any) -> None:
    request = read(GENERATE, {"messages": [{"role": role}]}).request
    assert request.messages[0].role == message_pb2.ROLE_USER


@pytest.mark.parametrize("value", ["1_0", "\u0661", "", " 1", "x", "nan", "1e999", True, [1]])
def test_a_temperature_is_a_number(value: Any) -> None:
    with pytest.raises(RemitError) as caught:
        read(GENERATE, {"temperature": value})
    assert [v.field for v in caught.value.violations] == ["temperature"]


@pytest.mark.parametrize("number", ["1e400", "-1e999"])
def test_a_number_over_the_largest_float_is_none(number: str) -> None:
    with pytest.raises(RemitError, match="body"):
        read(CALL, b'{"arguments": {"x": %s}}' % number.encode())


@given(nanos=st.integers(-(2**63), 2**63 - 1), steps=st.integers(-(2**31), 2**31 - 1))
def test_whole_numbers_arrive_exactly(nanos: int, steps: int) -> None:
    expected = run_pb2.RunLimits(max_cost_nanos=nanos, max_steps=steps)
    for cost in (nanos, str(nanos)):
        for count in (steps, str(steps), float(steps)):
            limits = {"maxCostNanos": cost, "maxSteps": count}
            assert read(CREATE, {"limits": limits}).limits == expected


@given(st.floats())
def test_a_float_is_the_whole_number_it_says_or_none(value: float) -> None:
    try:
        got = read(CREATE, {"limits": {"maxCostNanos": value}}).limits.max_cost_nanos
    except RemitError:
        return
    assert got == value
    assert abs(got) <= 2**53
