"""The one place where money is rounded: exact, upwards, once, and monotone."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.api.cost.v1 import reservation_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.usage.v1 import usage_pb2
from remit.pricing import (
    INT64_MAX,
    affordable_output_tokens,
    bound_nanos,
    cost_nanos,
    nanos_of_usd,
)
from remit.rpc.errors import RemitError
from scripts.protos import ROOT


@dataclass(frozen=True)
class Rates:
    input_nanos_per_million: int = 0
    cached_input_nanos_per_million: int = 0
    output_nanos_per_million: int = 0
    call_nanos: int = 0


@dataclass(frozen=True)
class Counts:
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    calls: int = 0


COUNTS = ("input_tokens", "cached_input_tokens", "output_tokens", "calls")
MONEY_MODULES = (
    "books",
    "charges",
    "ledger",
    "org_prices",
    "price_files",
    "price_listing",
    "price_service",
    "price_store",
    "prices",
    "public_prices",
    "reservations",
    "rows",
    "sums",
)
RATE = st.integers(0, 10**14)
COUNT = st.integers(0, 10**7)
RATES = st.builds(Rates, RATE, RATE, RATE, st.integers(0, 10**11))


@st.composite
def counts(draw: st.DrawFn) -> Counts:
    input_tokens = draw(COUNT)
    cached = draw(st.integers(0, input_tokens))
    return Counts(input_tokens, cached, draw(COUNT), draw(st.integers(0, 100)))


@given(RATES, counts(), st.integers(0, 10**15))
def test_what_is_affordable_is_the_most_that_the_money_covers(
    rates: Rates, bound: Counts, money: int
) -> None:
    tokens = affordable_output_tokens(rates, bound, money)
    if tokens is None:
        assert rates.output_nanos_per_million == 0
        return
    assert bound_nanos(rates, replace(bound, output_tokens=tokens + 1)) > money
    costs = bound_nanos(rates, replace(bound, output_tokens=tokens))
    assert costs <= money or tokens == 0


@given(RATES, counts())
def test_cost_is_the_exact_sum_rounded_up_once(rates: Rates, used: Counts) -> None:
    exact = (
        Fraction(used.input_tokens - used.cached_input_tokens)
        * Fraction(rates.input_nanos_per_million, 10**6)
        + Fraction(used.cached_input_tokens) * Fraction(rates.cached_input_nanos_per_million, 10**6)
        + Fraction(used.output_tokens) * Fraction(rates.output_nanos_per_million, 10**6)
        + used.calls * rates.call_nanos
    )

    assert cost_nanos(rates, used) == ceil(exact)


@given(RATES, counts(), st.sampled_from(["input_tokens", "output_tokens", "calls"]), COUNT)
def test_more_never_costs_less(rates: Rates, used: Counts, what: str, more: int) -> None:
    larger = replace(used, **{what: getattr(used, what) + more})

    assert cost_nanos(rates, larger) >= cost_nanos(rates, used)


@given(RATES, counts(), st.data())
def test_no_usage_within_a_bound_costs_more_than_the_bound(
    rates: Rates, bound: Counts, data: st.DataObject
) -> None:
    input_tokens = data.draw(st.integers(0, bound.input_tokens))
    used = Counts(
        input_tokens,
        data.draw(st.integers(0, input_tokens)),
        data.draw(st.integers(0, bound.output_tokens)),
        data.draw(st.integers(0, bound.calls)),
    )

    assert cost_nanos(rates, used) <= bound_nanos(rates, bound)


@given(RATES, counts(), st.sampled_from(["input_tokens", "output_tokens", "calls"]), COUNT)
def test_a_larger_bound_is_never_cheaper(rates: Rates, bound: Counts, what: str, more: int) -> None:
    larger = replace(bound, **{what: getattr(bound, what) + more})

    assert bound_nanos(rates, larger) >= bound_nanos(rates, bound)


@given(RATES, counts(), counts())
def test_two_effects_cost_at_most_a_nano_more_than_one_that_did_both(
    rates: Rates, one: Counts, other: Counts
) -> None:
    """Each is rounded up by itself, so that nothing is free."""
    both = Counts(*(getattr(one, name) + getattr(other, name) for name in COUNTS))

    apart = cost_nanos(rates, one) + cost_nanos(rates, other)

    assert 0 <= apart - cost_nanos(rates, both) <= 1


@given(
    st.decimals(0, 9 * 10**9, allow_nan=False, allow_infinity=False),
    st.sampled_from([1, 3, 1000]),
)
def test_a_rate_in_dollars_is_never_less_in_nanos(usd: Decimal, count: int) -> None:
    exact = Fraction(usd) * 10**9 / count

    assert nanos_of_usd(usd, count) == ceil(exact)


@pytest.mark.parametrize("usd", ["-0.000000001", "NaN", "Infinity", "9223372036.854775808"])
def test_a_rate_that_is_none_is_refused(usd: str) -> None:
    with pytest.raises(RemitError) as caught:
        nanos_of_usd(Decimal(usd))

    assert caught.value.reason == error_reason_pb2.ERROR_REASON_INVALID_REQUEST


def test_nothing_that_decides_about_money_rounds_or_divides_by_itself() -> None:
    rounding = {"round", "ceil", "floor", "trunc", "to_integral_value", "quantize", "divmod"}
    modules = [ROOT / "services/remit/cost" / f"{name}.py" for name in MONEY_MODULES]
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            where = f"{path.name}:{getattr(node, 'lineno', '')}"
            if isinstance(node, ast.BinOp) and isinstance(
                node.op, ast.Div | ast.FloorDiv | ast.Mod
            ):
                joins_path = isinstance(node.right, ast.Constant) and isinstance(
                    node.right.value, str
                )
                assert joins_path, where
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", "") or getattr(node.func, "attr", "")
                assert name not in rounding, where


def test_a_single_token_below_a_nano_costs_one_nano() -> None:
    assert cost_nanos(Rates(input_nanos_per_million=1), Counts(input_tokens=1)) == 1
    assert cost_nanos(Rates(input_nanos_per_million=1), Counts(input_tokens=1_000_000)) == 1
    assert cost_nanos(Rates(input_nanos_per_million=1), Counts(input_tokens=1_000_001)) == 2


def test_the_parts_are_not_rounded_each() -> None:
    thirds = Rates(333_333, 333_333, 333_333, 0)

    assert cost_nanos(thirds, Counts(input_tokens=2, cached_input_tokens=1, output_tokens=1)) == 1


def test_the_messages_of_the_contracts_are_prices_and_usages() -> None:
    price = reservation_pb2.Price(output_nanos_per_million=2_000_000, call_nanos=7)

    assert cost_nanos(price, usage_pb2.Usage(output_tokens=10, calls=1)) == 27


@pytest.mark.parametrize(
    ("used", "field"),
    [
        (Counts(input_tokens=-1), "input_tokens"),
        (Counts(output_tokens=-1), "output_tokens"),
        (Counts(calls=-1), "calls"),
        (Counts(input_tokens=1, cached_input_tokens=2), "cached_input_tokens"),
        (Counts(cached_input_tokens=-1), "cached_input_tokens"),
    ],
)
def test_wrong_counts_are_named(used: Counts, field: str) -> None:
    for function in (cost_nanos, bound_nanos):
        with pytest.raises(RemitError) as caught:
            function(Rates(), used)
        assert caught.value.reason == error_reason_pb2.ERROR_REASON_INVALID_REQUEST
        assert field in [violation.field for violation in caught.value.violations]


def test_what_an_int64_cannot_hold_is_a_clear_error() -> None:
    one_nano_a_call = Rates(call_nanos=1)

    assert cost_nanos(one_nano_a_call, Counts(calls=INT64_MAX)) == INT64_MAX
    with pytest.raises(RemitError, match="more than the 9223372036854775807"):
        cost_nanos(one_nano_a_call, Counts(calls=INT64_MAX + 1))
