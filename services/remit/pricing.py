"""What a usage costs: the one place where money is rounded.

A price states nano-USD for each 1,000,000 tokens, and nano-USD for each call. The parts of a usage
are added exactly, as integers, and the sum is rounded up once, to the next nano-USD. Rounding each
part would charge up to three nanos too many; rounding down would let calls of less than a nano be
free without end. The ledger, the gate and every report use these functions and no others. Rates
that a list states in dollars become nano-USD here, too, and upwards.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final, Protocol

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError, Violation, invalid_request

INT64_MAX: Final = 2**63 - 1
"""Largest amount of nano-USD that a contract or a row can hold."""

_TOKENS_PER_RATE: Final = 1_000_000
_NANOS_PER_USD: Final = 1_000_000_000


class Price(Protocol):
    """Rates of an item; `remit.api.cost.v1.Price` is one. All are in nano-USD and at least 0."""

    @property
    def input_nanos_per_million(self) -> int:
        """For 1,000,000 input tokens that are not cached."""
        ...

    @property
    def cached_input_nanos_per_million(self) -> int:
        """For 1,000,000 cached input tokens."""
        ...

    @property
    def output_nanos_per_million(self) -> int:
        """For 1,000,000 output tokens."""
        ...

    @property
    def call_nanos(self) -> int:
        """For each call."""
        ...


class Usage(Protocol):
    """Counts of an effect; `remit.api.usage.v1.Usage` is one. All are at least 0."""

    @property
    def input_tokens(self) -> int:
        """Prompt tokens, cached ones included."""
        ...

    @property
    def cached_input_tokens(self) -> int:
        """Of `input_tokens`, those read from the provider's cache."""
        ...

    @property
    def output_tokens(self) -> int:
        """Generated tokens."""
        ...

    @property
    def calls(self) -> int:
        """Calls made."""
        ...


def cost_nanos(price: Price, used: Usage) -> int:
    """The cost of a usage in nano-USD, rounded up once.

    Raises INVALID_REQUEST if a count is negative, more input is cached than there is, or the cost
    is larger than an int64.
    """
    require_valid(used)
    fresh_input_tokens = used.input_tokens - used.cached_input_tokens
    millionths = (
        fresh_input_tokens * price.input_nanos_per_million
        + used.cached_input_tokens * price.cached_input_nanos_per_million
        + used.output_tokens * price.output_nanos_per_million
        + used.calls * price.call_nanos * _TOKENS_PER_RATE
    )
    return _rounded_up(millionths, _TOKENS_PER_RATE)


def bound_nanos(price: Price, bound: Usage) -> int:
    """The most that any usage within `bound` can cost, in nano-USD.

    How much of the input a provider reads from its cache is not known beforehand, so each input
    token counts at the dearer of the two input rates. Raises as `cost_nanos` does.
    """
    require_valid(bound)
    dearer_input_rate = max(price.input_nanos_per_million, price.cached_input_nanos_per_million)
    millionths = (
        bound.input_tokens * dearer_input_rate
        + bound.output_tokens * price.output_nanos_per_million
        + bound.calls * price.call_nanos * _TOKENS_PER_RATE
    )
    return _rounded_up(millionths, _TOKENS_PER_RATE)


def nanos_of_usd(usd: Decimal, count: int = 1) -> int:
    """What one of `count` things costs that cost `usd` together, in nano-USD, rounded up.

    A rate that is finer than a nano must not become free. Raises INVALID_REQUEST if it is negative,
    no number, or larger than an int64.
    """
    if not usd.is_finite() or usd < 0:
        raise invalid_request([Violation("rate", f"is {usd}; a rate is at least 0")])
    numerator, denominator = usd.as_integer_ratio()
    return _rounded_up(numerator * _NANOS_PER_USD, denominator * count)


def affordable_output_tokens(price: Price, bound: Usage, money_nanos: int) -> int | None:
    """The most output tokens with which `bound` still costs at most `money_nanos`.

    At least 0, also where the rest of the bound costs more already. None: output costs nothing.
    """
    if price.output_nanos_per_million == 0:
        return None
    dearer_input_rate = max(price.input_nanos_per_million, price.cached_input_nanos_per_million)
    left_millionths = (
        money_nanos - bound.calls * price.call_nanos
    ) * _TOKENS_PER_RATE - bound.input_tokens * dearer_input_rate
    return max(left_millionths // price.output_nanos_per_million, 0)


def require_valid(usage: Usage) -> None:
    """Checks the counts of a usage. Raises INVALID_REQUEST with every violation."""
    violations = [
        Violation(name, f"is {count}; a count is at least 0")
        for name, count in (
            ("input_tokens", usage.input_tokens),
            ("cached_input_tokens", usage.cached_input_tokens),
            ("output_tokens", usage.output_tokens),
            ("calls", usage.calls),
        )
        if count < 0
    ]
    if usage.cached_input_tokens > usage.input_tokens:
        description = f"is {usage.cached_input_tokens}, more than input_tokens, which include it"
        violations.append(Violation("cached_input_tokens", description))
    if violations:
        raise invalid_request(violations)


def _rounded_up(numerator: int, denominator: int) -> int:
    nanos = -(-numerator // denominator)
    if nanos > INT64_MAX:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_INVALID_REQUEST,
            f"the cost would be {nanos} nano-USD, more than the {INT64_MAX} that a ledger can hold",
            violations=[Violation("usage", "costs more than an int64 of nano-USD")],
        )
    return nanos
