"""The one place where money is rounded: exact, upwards, once, and monotone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.api.cost.v1 import reservation_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.usage.v1 import usage_pb2
from remit.pricing import INT64_MAX, bound_nanos, cost_nanos
from remit.rpc.errors import RemitError


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


RATE = st.integers(0, 10**14)
COUNT = st.integers(0, 10**7)
RATES = st.builds(Rates, RATE, RATE, RATE, st.integers(0, 10**11))


@st.composite
def counts(draw: st.DrawFn) -> Counts:
    input_tokens = draw(COUNT)
    cached = draw(st.integers(0, input_tokens))
    return Counts(input_tokens, cached, draw(COUNT), draw(st.integers(0, 100)))


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
