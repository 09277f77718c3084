"""`calculator` and `clock` as a model calls them."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError
from remit.tools.builtin.calculator import calculator
from remit.tools.builtin.clock import clock
from tests.tools.calls import NOON, Caller


@pytest.fixture
def calculate(tmp_path: Path) -> Caller:
    return Caller(calculator, tmp_path)


@pytest.fixture
def tell(tmp_path: Path) -> Caller:
    return Caller(clock, tmp_path)


async def test_a_product_is_exact(calculate: Caller) -> None:
    assert await calculate(expression="17 * 23") == {"result": "391", "exact": True}


async def test_a_large_integer_keeps_its_digits(calculate: Caller) -> None:
    assert (await calculate(expression="2 ** 300"))["result"] == str(2**300)


async def test_a_fraction_is_told_beside_its_decimals(calculate: Caller) -> None:
    assert await calculate(expression="1 / 3") == {
        "result": "0.333333333333333",
        "exact": False,
        "fraction": "1/3",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"expression": ""},
        {"expression": 5},
        {"expression": "1 +"},
        {"expression": "import os"},
        {"expression": "1" * 1_001},
        {"expression": "1", "precision": 3},
    ],
)
async def test_what_is_no_expression_is_refused_before_it_costs(
    calculate: Caller, arguments: dict[str, Any]
) -> None:
    error = await calculate.error(**arguments)
    assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS


async def test_what_has_no_value_fails(calculate: Caller) -> None:
    error = await calculate.error(expression="1 / 0")
    assert error.reason == error_reason_pb2.ERROR_REASON_TOOL_FAILED
    assert error.message == "tools/calculator: the expression divides by zero"


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(expression=st.text(alphabet="0123456789.+-*/%^!(), eofsqrtlnpi", max_size=80) | st.text())
async def test_any_text_ends_soon_in_a_result_or_a_remit_error(
    calculate: Caller, expression: str
) -> None:
    started = time.monotonic()
    try:
        found = await calculate(expression=expression)
    except RemitError as error:
        assert "service's log" not in error.message  # noqa: PT017 - it is the tool's own
    else:
        assert found["result"]
    assert time.monotonic() - started < 10


async def test_the_time_is_that_of_the_zone(tell: Caller) -> None:
    assert await tell() == {
        "time": "2026-11-23T12:00:00+00:00",
        "timezone": "UTC",
        "weekday": "Monday",
        "unix_s": int(NOON.timestamp()),
    }
    assert (await tell(timezone="Asia/Kolkata"))["time"] == "2026-11-23T17:30:00+05:30"
    assert (await tell(timezone="America/New_York"))["time"] == "2026-11-23T07:00:00-05:00"


@pytest.mark.parametrize("zone", ["Tokyo", "tokyo", "asia/tokyo", " Asia/Tokyo "])
async def test_a_city_names_its_zone(tell: Caller, zone: str) -> None:
    found = await tell(timezone=zone)
    assert found["timezone"] == "Asia/Tokyo"
    assert datetime.fromisoformat(found["time"]) == NOON


@pytest.mark.parametrize(
    ("zone", "hint"),
    [
        ("Tokio", "did you mean Asia/Tokyo?"),
        ("Europe/Berln", "Europe/Berlin"),
        ("Atlantis", "IANA time zone"),
        ("../../etc/passwd", "IANA time zone"),
        ("/etc/localtime", "IANA time zone"),
        ("UTC\0", "IANA time zone"),
        ("Europe", "IANA time zone"),
        ("", "at least 1 character"),
        ("x" * 65, "at most 64 characters"),
    ],
)
async def test_an_unknown_zone_is_refused_with_a_hint(tell: Caller, zone: str, hint: str) -> None:
    error = await tell.error(timezone=zone)
    assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS
    assert hint in error.violations[0].description
