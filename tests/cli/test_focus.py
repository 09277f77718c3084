"""FOCUS rows keep the rules of FOCUS 1.2 and add up to what was posted, over random charges.

The rules are written down here from the specification's columns, not read from the mapping.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.api.cost.v1 import cost_report_service_pb2, reservation_pb2
from remit.api.usage.v1 import usage_pb2
from remit.cli.focus import COLUMNS, Row, decimal_text, rows_of
from remit.pricing import bound_nanos, cost_nanos

Charge = cost_report_service_pb2.Charge

MANDATORY = {
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceIssuerName",
    "ListCost",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ServiceCategory",
    "ServiceName",
}
OF_UNIT_PRICES = {"ListUnitPrice", "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId"}
"""Conditional: present where unit prices are published."""
OF_MEASURED_USAGE = {"ConsumedQuantity", "ConsumedUnit"}
OF_SUB_ACCOUNTS = {"SubAccountId", "SubAccountName"}
OF_PRICES_AND_BILLS = {
    "PricingCurrency",
    "PricingCurrencyContractedUnitPrice",
    "PricingCurrencyEffectiveCost",
    "PricingCurrencyListUnitPrice",
}
"""May be present where prices and bills have one currency."""
RECOMMENDED = {"ChargeFrequency", "InvoiceId", "ServiceSubcategory"}
MAY_BE_NULL = {
    "BillingAccountName",
    "ChargeClass",
    "CommitmentDiscountStatus",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedUnitPrice",
    "InvoiceId",
    "ListUnitPrice",
    "PricingCategory",
    "PricingCurrencyContractedUnitPrice",
    "PricingCurrencyListUnitPrice",
    "PricingQuantity",
    "PricingUnit",
    "SkuId",
    "SkuMeter",
    "SkuPriceDetails",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
}
NOT_NULL_IN_USAGE = {
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedUnitPrice",
    "ListUnitPrice",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "SkuId",
    "SkuMeter",
    "SkuPriceId",
}
ALLOWED = {
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeClass": {"", "Correction"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"", "Standard", "Dynamic", "Committed", "Other"},
    "ServiceCategory": {"AI and Machine Learning"},
    "ServiceSubcategory": {
        "AI Platforms",
        "Bots",
        "Generative AI",
        "Machine Learning",
        "Natural Language Processing",
        "Other (AI and Machine Learning)",
    },
    "BillingCurrency": {"USD"},
    "CommitmentDiscountStatus": {""},
    "PricingCurrency": {"USD"},
    "PricingUnit": {"", "1000000 Tokens", "Requests"},
    "ConsumedUnit": {"", "Tokens", "Requests"},
}
COSTS = (
    "BilledCost",
    "ContractedCost",
    "EffectiveCost",
    "ListCost",
    "PricingCurrencyEffectiveCost",
)
NUMBERS = (
    *COSTS,
    "ConsumedQuantity",
    "ContractedUnitPrice",
    "ListUnitPrice",
    "PricingCurrencyContractedUnitPrice",
    "PricingCurrencyListUnitPrice",
    "PricingQuantity",
)
TIMES = ("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd")
NUMBER = re.compile(r"-?[0-9]+\.([0-9]*[1-9]|0)")
VERSION = "a" * 64

RATES = st.integers(0, 10**12)
TOKENS = st.integers(0, 10**7)


@dataclass(frozen=True)
class Effect:
    """One settled effect; `used` is None where its hold was posted whole."""

    hold_nanos: int
    used: usage_pb2.Usage | None


PRICES = st.builds(
    lambda rates: reservation_pb2.Price(
        version=VERSION,
        input_nanos_per_million=rates[0],
        cached_input_nanos_per_million=rates[1],
        output_nanos_per_million=rates[2],
        call_nanos=rates[3] % 10**9,
    ),
    st.tuples(RATES, RATES, RATES, RATES),
)


@st.composite
def usages(draw: st.DrawFn) -> usage_pb2.Usage:
    tokens = draw(TOKENS)
    return usage_pb2.Usage(
        input_tokens=tokens,
        cached_input_tokens=draw(st.integers(0, tokens)),
        output_tokens=draw(TOKENS),
        calls=draw(st.integers(0, 3)),
    )


@st.composite
def charges(draw: st.DrawFn) -> tuple[Charge, int]:
    """A charge as the ledger makes it, effect by effect; and how many of them were metered."""
    price = draw(PRICES)
    charge = Charge(
        day=draw(st.dates(date(2020, 1, 1))).isoformat(),
        user="orgs/acme/users/alice",
        team=draw(st.sampled_from(["", "orgs/acme/teams/core"])),
        agent=draw(st.sampled_from(["", "agents/assistant"])),
        item=draw(st.sampled_from(["models/m", "tools/calculator"])),
        price=price,
        price_source=draw(st.sampled_from(["shipped", "file", "unlisted"])),
    )
    metered = 0
    for _ in range(draw(st.integers(0, 6))):
        bound, used = draw(usages()), draw(st.none() | usages())
        hold = bound_nanos(price, bound)
        charge.effects += 1
        if used is None:
            charge.posted_nanos += hold
            charge.unmetered_nanos += hold
            charge.usage.estimated = True
            continue
        bill = cost_nanos(price, used)
        metered += 1
        charge.posted_nanos += min(bill, hold)
        charge.overrun_nanos += bill - min(bill, hold)
        charge.usage.input_tokens += used.input_tokens
        charge.usage.cached_input_tokens += used.cached_input_tokens
        charge.usage.output_tokens += used.output_tokens
        charge.usage.calls += used.calls
    return charge, metered


def of_category(rows: Sequence[Row], category: str) -> list[Row]:
    return [row for row in rows if row["ChargeCategory"] == category]


@given(charges())
def test_the_rows_of_a_charge_are_what_was_posted_to_the_nano(made: tuple[Charge, int]) -> None:
    charge, _ = made
    rows = list(rows_of(charge))

    for cost in COSTS:
        assert sum(Fraction(row[cost]) for row in rows) == Fraction(charge.posted_nanos, 10**9)


@given(charges())
def test_quantity_times_unit_price_is_the_cost_exactly(made: tuple[Charge, int]) -> None:
    for row in of_category(list(rows_of(made[0])), "Usage"):
        quantity = Fraction(row["PricingQuantity"])
        assert quantity * Fraction(row["ListUnitPrice"]) == Fraction(row["ListCost"])
        assert quantity * Fraction(row["ContractedUnitPrice"]) == Fraction(row["ContractedCost"])
        unit = 1_000_000 if row["PricingUnit"] == "1000000 Tokens" else 1
        assert quantity * unit == Fraction(row["ConsumedQuantity"])


@given(charges())
def test_what_is_rounded_is_less_than_a_nano_for_each_effect(made: tuple[Charge, int]) -> None:
    charge, metered = made
    found = {
        row["ChargeDescription"].split(" ")[0]: Fraction(row["BilledCost"]) * 10**9
        for row in of_category(list(rows_of(charge)), "Adjustment")
    }

    assert 0 <= found.get("Rounding", 0) <= metered
    assert found.get("Rounding", 0) < max(metered, 1)
    assert found.get("Upper", 0) == charge.unmetered_nanos
    assert found.get("Above", 0) == -charge.overrun_nanos


@given(charges())
def test_every_row_keeps_the_rules_of_the_columns(made: tuple[Charge, int]) -> None:
    for row in rows_of(made[0]):
        assert set(row) <= set(COLUMNS)
        whole = {column: row.get(column, "") for column in COLUMNS}
        nulls = {column for column, value in whole.items() if not value}
        assert {name for name in nulls if not name.startswith("x_")} <= MAY_BE_NULL
        for column, values in ALLOWED.items():
            assert whole[column] in values, column
        for column in NUMBERS:
            assert not whole[column] or NUMBER.fullmatch(whole[column]), column
        for column in TIMES:
            assert datetime.strptime(whole[column], "%Y-%m-%dT%H:%M:%SZ")  # noqa: DTZ007 - Z
        if whole["ChargeCategory"] == "Usage":
            assert not NOT_NULL_IN_USAGE & nulls
            assert Fraction(whole["ListUnitPrice"]) >= 0
        else:
            assert nulls >= NOT_NULL_IN_USAGE


@given(charges())
def test_each_price_has_one_sku(made: tuple[Charge, int]) -> None:
    rows = of_category(list(rows_of(made[0])), "Usage")
    pairs = {(row["SkuPriceId"], row["SkuId"], row["SkuMeter"]) for row in rows}

    assert len({price for price, _, _ in pairs}) == len(pairs) == len(rows)


@given(charges())
def test_a_day_lies_in_its_month(made: tuple[Charge, int]) -> None:
    for row in rows_of(made[0]):
        begin, start, end, stop = (
            datetime.fromisoformat(row[name])
            for name in ("BillingPeriodStart", *TIMES[2:], "BillingPeriodEnd")
        )
        assert begin <= start < end <= stop
        assert (begin.day, stop.day, (end - start).days) == (1, 1, 1)
        assert (stop - begin).days <= 31


def test_every_column_that_is_asked_for_is_there_once_and_ours_come_last() -> None:
    required = MANDATORY | OF_UNIT_PRICES | OF_MEASURED_USAGE | OF_SUB_ACCOUNTS | RECOMMENDED
    assert required <= set(COLUMNS)
    assert len(set(COLUMNS)) == len(COLUMNS)
    may_be = {"CommitmentDiscountStatus", "ContractedUnitPrice", "PricingCategory"}
    known = required | may_be | OF_PRICES_AND_BILLS
    own = [column for column in COLUMNS if column not in known]
    assert all(re.fullmatch(r"x_[A-Z][A-Za-z]+", column) for column in own)
    assert list(COLUMNS) == sorted(known) + sorted(own)


def test_a_charge_in_full() -> None:
    charge = Charge(
        day="2028-02-29",
        user="orgs/acme/users/alice",
        team="orgs/acme/teams/core",
        agent="agents/clerk",
        item="models/m",
        price=reservation_pb2.Price(version=VERSION, input_nanos_per_million=50_000_001),
        price_source="file",
        posted_nanos=351,
        effects=1,
        usage=usage_pb2.Usage(input_tokens=7),
    )

    metered, rounding = rows_of(charge)

    assert dict(metered) == {
        "BilledCost": "0.000000350000007",
        "BillingAccountId": "orgs/acme",
        "BillingCurrency": "USD",
        "BillingPeriodEnd": "2028-03-01T00:00:00Z",
        "BillingPeriodStart": "2028-02-01T00:00:00Z",
        "ChargeCategory": "Usage",
        "ChargeDescription": "Input Tokens of models/m at 0.050000001 USD for 1000000 Tokens",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": "2028-03-01T00:00:00Z",
        "ChargePeriodStart": "2028-02-29T00:00:00Z",
        "ConsumedQuantity": "7.0",
        "ConsumedUnit": "Tokens",
        "ContractedCost": "0.000000350000007",
        "ContractedUnitPrice": "0.050000001",
        "EffectiveCost": "0.000000350000007",
        "InvoiceIssuerName": "Remit",
        "ListCost": "0.000000350000007",
        "ListUnitPrice": "0.050000001",
        "PricingCategory": "Standard",
        "PricingCurrency": "USD",
        "PricingCurrencyContractedUnitPrice": "0.050000001",
        "PricingCurrencyEffectiveCost": "0.000000350000007",
        "PricingCurrencyListUnitPrice": "0.050000001",
        "PricingQuantity": "0.000007",
        "PricingUnit": "1000000 Tokens",
        "ProviderName": "Remit",
        "PublisherName": "Remit",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Remit Models",
        "ServiceSubcategory": "Generative AI",
        "SkuId": "models/m/input-tokens",
        "SkuMeter": "Input Tokens",
        "SkuPriceId": f"{VERSION}/input-tokens",
        "SubAccountId": "orgs/acme/teams/core",
        "SubAccountName": "core",
        "x_AgentId": "agents/clerk",
        "x_IsEstimated": "false",
        "x_Item": "models/m",
        "x_PriceSource": "file",
        "x_PriceVersion": VERSION,
        "x_UserId": "orgs/acme/users/alice",
    }
    assert rounding["BilledCost"] == "0.000000000999993"
    assert rounding["ChargeDescription"] == (
        "Rounding up to the next nano-USD of each effect: models/m"
    )


def test_an_unknown_price_is_told_as_unknown() -> None:
    charge = Charge(
        day="2026-11-23",
        user="orgs/acme/users/alice",
        item="tools/abacus",
        price_source="unlisted",
        effects=1,
        usage=usage_pb2.Usage(calls=1),
    )

    (row,) = rows_of(charge)

    assert row["ChargeDescription"] == (
        "Calls of tools/abacus at a price that is not known and passes for nothing"
    )
    assert (row["BilledCost"], row["x_PriceSource"]) == ("0.0", "unlisted")


@given(st.integers(-(2**127), 2**127), st.integers(0, 20))
def test_decimals_are_exact(units: int, decimals: int) -> None:
    text = decimal_text(units, decimals)

    assert NUMBER.fullmatch(text)
    assert Fraction(text) == Fraction(units, 10**decimals)


@pytest.mark.parametrize(
    ("units", "decimals", "text"),
    [(0, 9, "0.0"), (-1, 9, "-0.000000001"), (10, 1, "1.0"), (-15, 1, "-1.5"), (7, 0, "7.0")],
)
def test_decimals_have_a_point_and_no_needless_zeros(units: int, decimals: int, text: str) -> None:
    assert decimal_text(units, decimals) == text
