"""Price files, public prices, and what happens to what nobody knows a price for."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.cost.price_files import SHIPPED, read_price_file
from remit.cost.prices import PriceList, Unlisted, read_prices
from remit.cost.public_prices import PublicPrices
from remit.cost.reservations import Usage
from remit.pricing import bound_nanos, cost_nanos
from remit.rpc.errors import RemitError

NOW = datetime(2026, 11, 23, tzinfo=UTC)
BOUND = Usage(input_tokens=100, output_tokens=100, calls=1)
SHIPPED_TOOLS = ["calculator", "clock", "read_file", "search", "send_email", "write_file"]
RESERVED_TOOLS = ["post_webhook"]
"""Which no model is offered."""


def a_list(
    own_file: Path | None = None,
    *,
    models: Unlisted = Unlisted.REFUSE,
    tools: Unlisted = Unlisted.FREE,
    cache_size: int = 8,
) -> PriceList:
    return PriceList(
        read_prices(own_file),
        PublicPrices(cache_size=cache_size),
        unlisted_models=models,
        unlisted_tools=tools,
    )


def a_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------ the lists


async def test_everything_shipped_has_a_small_price_that_is_not_zero() -> None:
    items = ["models/builtin-rules", *(f"tools/{tool}" for tool in SHIPPED_TOOLS)]

    for item in items:
        price = await a_list().price(item, "", BOUND, NOW)
        assert 0 < bound_nanos(price, BOUND) < 1_000_000, item
        assert price.source == "shipped"


async def test_a_file_of_ones_own_overrides_single_items(tmp_path: Path) -> None:
    own = a_file(tmp_path, "prices: {tools/clock: {call_nanos: 7}, tools/mine: {call_nanos: 9}}")
    prices = a_list(own)

    clock = await prices.price("tools/clock", "", BOUND, NOW)
    calculator = await prices.price("tools/calculator", "", BOUND, NOW)

    assert (clock.call_nanos, clock.source) == (7, "file")
    assert calculator.source == "shipped"
    assert (await prices.price("tools/mine", "", BOUND, NOW)).call_nanos == 9


async def test_a_version_follows_from_item_and_rates_alone(tmp_path: Path) -> None:
    shipped = a_list()
    other = a_list(a_file(tmp_path, "prices: {tools/clock: {call_nanos: 7}}"))

    one = await shipped.price("tools/clock", "", BOUND, NOW)
    again = await a_list().price("tools/clock", "", BOUND, NOW)
    changed = await other.price("tools/clock", "", BOUND, NOW)

    assert one.version == again.version
    assert len({one.version, changed.version}) == 2
    assert len(one.version) == 64


async def test_cached_input_costs_as_much_as_input_unless_stated(tmp_path: Path) -> None:
    own = a_file(
        tmp_path,
        "prices: {models/a: {input_nanos_per_million: 5},"
        " models/b: {input_nanos_per_million: 5, cached_input_nanos_per_million: 0}}",
    )
    prices = a_list(own)

    one = await prices.price("models/a", "", BOUND, NOW)
    other = await prices.price("models/b", "", BOUND, NOW)

    assert one.cached_input_nanos_per_million == 5
    assert other.cached_input_nanos_per_million == 0


# ------------------------------------------------------------------------------- public prices


async def test_a_public_model_has_its_list_price() -> None:
    price = await a_list().price("models/mini", "openai/gpt-5-mini", BOUND, NOW)

    assert price.source == "genai-prices"
    assert (
        price.input_nanos_per_million,
        price.cached_input_nanos_per_million,
        price.output_nanos_per_million,
    ) == (250_000_000, 25_000_000, 2_000_000_000)
    assert cost_nanos(price, Usage(1_000_000, 0, 1_000_000, 1)) == 2_250_000_000


async def test_a_tier_counts_once_the_bound_can_reach_it() -> None:
    prices = a_list()
    large = replace(BOUND, input_tokens=200_001)

    base = await prices.price("models/g", "google/gemini-2.5-pro", BOUND, NOW)
    dear = await prices.price("models/g", "google/gemini-2.5-pro", large, NOW)

    assert (base.input_nanos_per_million, base.output_nanos_per_million) == (
        1_250_000_000,
        10_000_000_000,
    )
    assert (dear.input_nanos_per_million, dear.output_nanos_per_million) == (
        2_500_000_000,
        15_000_000_000,
    )


async def test_a_model_without_a_rate_for_what_is_asked_is_unknown() -> None:
    embedding = "openai/text-embedding-3-small"
    prices = a_list()

    known = await prices.price("models/e", embedding, Usage(input_tokens=5, calls=1), NOW)

    assert known.input_nanos_per_million > 0
    with pytest.raises(RemitError, match="no price is known"):
        await prices.price("models/e", embedding, BOUND, NOW)


@pytest.mark.parametrize("list_item", ["openai/zzz-9", "nobody/x", "no-slash", "/x", "x/"])
async def test_what_the_public_list_does_not_know_is_unknown_each_time(list_item: str) -> None:
    prices = a_list(cache_size=1)

    for _ in range(2):
        with pytest.raises(RemitError) as caught:
            await prices.price("models/x", list_item, BOUND, NOW)
        assert caught.value.reason == reasons.ERROR_REASON_PRICE_UNKNOWN
        assert list_item in caught.value.message


async def test_remembered_prices_are_bounded() -> None:
    public = PublicPrices(cache_size=2)

    for n in range(5):
        await public.rates(f"openai/zzz-{n}", BOUND, NOW)

    assert list(public._models) == ["openai/zzz-3", "openai/zzz-4"]


def test_public_prices_cost_nothing_until_they_are_needed() -> None:
    code = "import sys, remit.cost.main; sys.exit('genai_prices' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------- unlisted


async def test_an_unknown_model_is_refused_by_name_unless_allowed() -> None:
    with pytest.raises(RemitError) as caught:
        await a_list().price("models/mine", "", BOUND, NOW)
    allowed = await a_list(models=Unlisted.FREE).price("models/mine", "", BOUND, NOW)

    assert caught.value.reason == reasons.ERROR_REASON_PRICE_UNKNOWN
    assert caught.value.message == "no price is known for models/mine"
    assert bound_nanos(allowed, BOUND) == 0
    assert allowed.source == "unlisted"


async def test_a_tool_of_ones_own_is_free_unless_refused() -> None:
    free = await a_list().price("tools/mine", "", BOUND, NOW)

    assert (bound_nanos(free, BOUND), free.source) == (0, "unlisted")
    with pytest.raises(RemitError, match="no price is known for tools/mine"):
        await a_list(tools=Unlisted.REFUSE).price("tools/mine", "", BOUND, NOW)


# -------------------------------------------------------------------------------- wrong files


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("prices: {tools/a: {call_nanos: -1}}", "prices.tools/a.call_nanos"),
        ("prices: {tools/a: {call_nanos: 1.5}}", "prices.tools/a.call_nanos"),
        ("prices: {tools/a: {call_nanos: '5'}}", "prices.tools/a.call_nanos"),
        ("prices: {tools/a: {call_nanos: yes}}", "prices.tools/a.call_nanos"),
        ("prices: {tools/a: {call_nanos: 9223372036854775808}}", "prices.tools/a.call_nanos"),
        ("prices: {tools/a: {calls: 1}}", "prices.tools/a.calls"),
        ("prices: {tools/a: 5}", "prices.tools/a"),
        ("prices: {calculator: {call_nanos: 1}}", "prices.calculator"),
        ("prices: []", "prices"),
        ("price: {}", "prices"),
        ("", "prices.yaml"),
        ("prices:\n  tools/a: {}\n  tools/a: {}\n", "line 3"),
        ("prices:\n  tools/a: {\n", "line 3"),
        ("prices: !!python/object:os.system {}", "line 1"),
        ("prices: \x00", "prices.yaml"),
    ],
)
def test_a_wrong_file_is_named_with_its_field(tmp_path: Path, text: str, where: str) -> None:
    path = a_file(tmp_path, text)

    with pytest.raises(RemitError) as caught:
        read_prices(path)

    assert caught.value.reason == reasons.ERROR_REASON_CONFIGURATION_INVALID
    assert str(path) in caught.value.message
    assert where in caught.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RemitError, match=r"missing\.yaml: cannot be read: No such file"):
        read_prices(tmp_path / "missing.yaml")


def test_a_file_without_end_is_refused(tmp_path: Path) -> None:
    path = a_file(tmp_path, "# " + "x" * 2_000_000)

    with pytest.raises(RemitError, match="more than 1048576 bytes"):
        read_prices(path)


def test_the_shipped_file_states_only_what_is_shipped() -> None:
    tools = {f"tools/{tool}" for tool in [*SHIPPED_TOOLS, *RESERVED_TOOLS]}
    items = tools | {"models/builtin-rules"}

    assert set(read_price_file(SHIPPED)) == items
