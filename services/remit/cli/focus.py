"""Charges as rows of FOCUS 1.2, the FinOps Open Cost and Usage Specification.

Each meter of a charge is a row: its quantity times its unit price is its cost, exactly. What was
posted may be another amount, for a bill is rounded up for each effect and lies within a hold; each
such difference is a row of its own, an Adjustment. So the BilledCost of a charge's rows is what the
ledger posted, to the nano-USD. See https://focus.finops.org, version 1.2.

All is computed in integers: money in 10^-15 USD, the price of one token at one nano-USD a million.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from remit import names
from remit.api.cost.v1 import cost_report_service_pb2
from remit.cli.wording import last_part

Charge = cost_report_service_pb2.Charge
Row = Mapping[str, str]
"""A row's values by column; a column that it does not name is null."""

COLUMNS: Final = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    # Always null; the specification's own validator needs it for a look at ConsumedQuantity.
    "CommitmentDiscountStatus",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "InvoiceId",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingCurrency",
    "PricingCurrencyContractedUnitPrice",
    "PricingCurrencyEffectiveCost",
    "PricingCurrencyListUnitPrice",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceDetails",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "x_AgentId",
    "x_IsEstimated",
    "x_Item",
    "x_PriceSource",
    "x_PriceVersion",
    "x_UserId",
)
"""Every column, in order: those of FOCUS, then ours."""

UNLISTED: Final = "unlisted"
_PROVIDER: Final = "Remit"
_NANO_DECIMALS: Final = 9
_COST_DECIMALS: Final = 15
_COSTS_PER_NANO: Final = 10 ** (_COST_DECIMALS - _NANO_DECIMALS)
_COSTS: Final = (
    "BilledCost",
    "ContractedCost",
    "EffectiveCost",
    "ListCost",
    "PricingCurrencyEffectiveCost",
)
_UNIT_PRICES: Final = (
    "ContractedUnitPrice",
    "ListUnitPrice",
    "PricingCurrencyContractedUnitPrice",
    "PricingCurrencyListUnitPrice",
)
_MODELS: Final = {
    "ServiceCategory": "AI and Machine Learning",
    "ServiceName": "Remit Models",
    "ServiceSubcategory": "Generative AI",
}
_TOOLS: Final = {
    "ServiceCategory": "AI and Machine Learning",
    "ServiceName": "Remit Tools",
    "ServiceSubcategory": "AI Platforms",
}


@dataclass(frozen=True, slots=True)
class _Meter:
    """What is counted, and what is charged for `10**decimals` of it."""

    key: str
    label: str
    consumed_unit: str
    pricing_unit: str
    decimals: int
    quantity: Callable[[Charge], int]
    rate_nanos: Callable[[Charge], int]


def _tokens(
    kind: str, label: str, quantity: Callable[[Charge], int], rate_nanos: Callable[[Charge], int]
) -> _Meter:
    return _Meter(f"{kind}-tokens", label, "Tokens", "1000000 Tokens", 6, quantity, rate_nanos)


_METERS: Final = (
    _tokens(
        "input",
        "Input Tokens",
        lambda charge: charge.usage.input_tokens - charge.usage.cached_input_tokens,
        lambda charge: charge.price.input_nanos_per_million,
    ),
    _tokens(
        "cached-input",
        "Cached Input Tokens",
        lambda charge: charge.usage.cached_input_tokens,
        lambda charge: charge.price.cached_input_nanos_per_million,
    ),
    _tokens(
        "output",
        "Output Tokens",
        lambda charge: charge.usage.output_tokens,
        lambda charge: charge.price.output_nanos_per_million,
    ),
    _Meter(
        "calls",
        "Calls",
        "Requests",
        "Requests",
        0,
        lambda charge: charge.usage.calls,
        lambda charge: charge.price.call_nanos,
    ),
)


def rows_of(charge: Charge) -> Iterator[Row]:
    """The rows of a charge: its meters that counted anything, then its adjustments."""
    common = _common(charge)
    metered = 0
    for meter in _METERS:
        quantity = meter.quantity(charge)
        if quantity:
            metered += _cost(meter, charge)
            yield common | _usage_row(meter, charge)
    for text, cost in _adjustments(charge, metered):
        if cost:
            yield common | _adjustment_row(f"{text}: {charge.item}", cost)


def decimal_text(units: int, decimals: int) -> str:
    """`units * 10**-decimals`, exactly, with no more than one zero at its end.

    It has a decimal point always: loaders that look at the values take the column for what it is.
    """
    whole, rest = divmod(abs(units), 10**decimals)
    digits = f"{rest:0{decimals}}".rstrip("0") if rest else ""
    return f"{'-' if units < 0 else ''}{whole}.{digits or '0'}"


def _cost(meter: _Meter, charge: Charge) -> int:
    # A rate is for 10**decimals of what is counted, so that many decimals are in it already.
    decimals = _NANO_DECIMALS + meter.decimals
    cost = meter.quantity(charge) * meter.rate_nanos(charge)
    return cost if decimals == _COST_DECIMALS else cost * _COSTS_PER_NANO


def _adjustments(charge: Charge, metered: int) -> Iterator[tuple[str, int]]:
    """Why a charge is not what its meters cost; together the difference, whatever it is made of."""
    unmetered = charge.unmetered_nanos * _COSTS_PER_NANO
    overrun = charge.overrun_nanos * _COSTS_PER_NANO
    billed = charge.posted_nanos * _COSTS_PER_NANO - unmetered + overrun
    yield "Rounding up to the next nano-USD of each effect", billed - metered
    yield "Upper bounds of effects in doubt, whose usage is not known", unmetered
    yield "Above what was held, paid by the operator", -overrun


def _common(charge: Charge) -> dict[str, str]:
    org = names.org_of(charge.user)
    day = date.fromisoformat(charge.day)
    month = day.replace(day=1)
    return {
        "BillingAccountId": org,
        "BillingCurrency": "USD",
        "PricingCurrency": "USD",
        "BillingPeriodStart": _midnight(month),
        "BillingPeriodEnd": _midnight((month + timedelta(days=31)).replace(day=1)),
        "ChargePeriodStart": _midnight(day),
        "ChargePeriodEnd": _midnight(day + timedelta(days=1)),
        "ChargeFrequency": "Usage-Based",
        "InvoiceIssuerName": _PROVIDER,
        "ProviderName": _PROVIDER,
        "PublisherName": _PROVIDER,
        **(_MODELS if names.is_name("model", charge.item) else _TOOLS),
        "SubAccountId": charge.team,
        "SubAccountName": last_part(charge.team),
        "x_AgentId": charge.agent,
        "x_IsEstimated": "true" if charge.usage.estimated else "false",
        "x_Item": charge.item,
        "x_PriceSource": charge.price_source,
        "x_PriceVersion": charge.price.version,
        "x_UserId": charge.user,
    }


def _usage_row(meter: _Meter, charge: Charge) -> dict[str, str]:
    quantity = meter.quantity(charge)
    unit_price = decimal_text(meter.rate_nanos(charge), _NANO_DECIMALS)
    price = f"{unit_price} USD for {'one' if meter.decimals == 0 else meter.pricing_unit}"
    if charge.price_source == UNLISTED:
        price = "a price that is not known and passes for nothing"
    return {
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{meter.label} of {charge.item} at {price}",
        **_costs(_cost(meter, charge)),
        "ConsumedQuantity": decimal_text(quantity, 0),
        "ConsumedUnit": meter.consumed_unit,
        **dict.fromkeys(_UNIT_PRICES, unit_price),
        "PricingCategory": "Standard",
        "PricingQuantity": decimal_text(quantity, meter.decimals),
        "PricingUnit": meter.pricing_unit,
        "SkuId": f"{charge.item}/{meter.key}",
        "SkuMeter": meter.label,
        "SkuPriceId": f"{charge.price.version}/{meter.key}",
    }


def _adjustment_row(description: str, cost: int) -> dict[str, str]:
    return {"ChargeCategory": "Adjustment", "ChargeDescription": description, **_costs(cost)}


def _costs(cost: int) -> dict[str, str]:
    """There are no discounts and nothing is paid ahead, so that all costs are one."""
    text = decimal_text(cost, _COST_DECIMALS)
    return dict.fromkeys(_COSTS, text)


def _midnight(day: date) -> str:
    return f"{day.isoformat()}T00:00:00Z"
