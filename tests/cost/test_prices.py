"""Price files, public prices, and what happens to what nobody knows a price for."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.cost.price_files import SHIPPED, read_price_file
from remit.cost.prices import PriceList, Unlisted, read_prices
from remit.cost.public_prices import PublicPrices
from remit.cost.reservations import Price, Usage
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


async def price_of(
    prices: PriceList,
    item: str,
    list_item: str = "",
    bound: Usage = BOUND,
    moment: datetime = NOW,
) -> Price:
    """The price of a hold that begins at a moment."""
    return (await prices.prices_of(item, list_item, bound)).at(moment)


def a_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------ the lists


async def test_everything_shipped_has_a_small_price_that_is_not_zero() -> None:
    items = ["models/builtin-rules", *(f"tools/{tool}" for tool in SHIPPED_TOOLS)]

    for item in items:
        price = await price_of(a_list(), item)
        assert 0 < bound_nanos(price, BOUND) < 1_000_000, item
        assert price.source == "shipped"


async def test_a_file_of_ones_own_overrides_single_items(tmp_path: Path) -> None:
    own = a_file(tmp_path, "prices: {tools/clock: {call_nanos: 7}, tools/mine: {call_nanos: 9}}")
    prices = a_list(own)

    clock = await price_of(prices, "tools/clock")
    calculator = await price_of(prices, "tools/calculator")

    assert (clock.call_nanos, clock.source) == (7, "file")
    assert calculator.source == "shipped"
    assert (await price_of(prices, "tools/mine")).call_nanos == 9


async def test_a_version_follows_from_item_and_rates_alone(tmp_path: Path) -> None:
    shipped = a_list()
    other = a_list(a_file(tmp_path, "prices: {tools/clock: {call_nanos: 7}}"))

    one = await price_of(shipped, "tools/clock")
    again = await price_of(a_list(), "tools/clock")
    changed = await price_of(other, "tools/clock")

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

    one = await price_of(prices, "models/a")
    other = await price_of(prices, "models/b")

    assert one.cached_input_nanos_per_million == 5
    assert other.cached_input_nanos_per_million == 0


# ---------------------------------------------------------------------------------------- times

NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC)
A_SECOND = timedelta(seconds=1)
DATED = """
prices:
  tools/clock:
    - call_nanos: 5
    - from: 2027-01-01
      call_nanos: 7
    - {from: "2027-02-01T01:00:00+01:00", until: 2027-03-01T00:00:00Z, call_nanos: 9}
  tools/calculator: {from: 2027-01-01T00:00:00Z, call_nanos: 3}
"""


async def test_a_price_takes_effect_at_its_time(tmp_path: Path) -> None:
    prices = a_list(a_file(tmp_path, DATED))

    async def nanos(moment: datetime) -> int:
        return (await price_of(prices, "tools/clock", moment=moment)).call_nanos

    assert await nanos(NEW_YEAR - A_SECOND) == 5
    assert await nanos(NEW_YEAR) == 7
    assert await nanos(datetime(2027, 2, 1, tzinfo=UTC) - A_SECOND) == 7
    assert await nanos(datetime(2027, 2, 1, tzinfo=UTC)) == 9


async def test_before_its_first_and_after_its_last_price_a_file_leaves_it_to_the_next_list(
    tmp_path: Path,
) -> None:
    prices = a_list(a_file(tmp_path, DATED))

    async def source(item: str, moment: datetime, list_item: str = "") -> str:
        return (await price_of(prices, item, list_item, moment=moment)).source

    assert await source("tools/calculator", NEW_YEAR - A_SECOND) == "shipped"
    assert await source("tools/calculator", NEW_YEAR) == "file"
    assert await source("tools/clock", datetime(2027, 3, 1, tzinfo=UTC)) == "shipped"


async def test_what_ends_in_every_list_is_unknown_and_not_free(tmp_path: Path) -> None:
    own = a_file(tmp_path, "prices: {models/mine: {until: 2027-01-01, input_nanos_per_million: 5}}")
    prices = a_list(own)
    public = await price_of(prices, "models/mine", "openai/gpt-5-mini", moment=NEW_YEAR)

    assert (await price_of(prices, "models/mine", moment=NEW_YEAR - A_SECOND)).source == "file"
    assert public.source == "genai-prices"
    with pytest.raises(RemitError) as caught:
        await price_of(prices, "models/mine", moment=NEW_YEAR)
    assert caught.value.reason == reasons.ERROR_REASON_PRICE_UNKNOWN


async def test_a_public_model_that_is_dearer_by_day_costs_what_its_hour_says() -> None:
    prices = a_list()
    night = NOW.replace(hour=20)
    name = ("models/d", "deepseek/deepseek-chat")

    by_day = await price_of(prices, *name, moment=NOW.replace(hour=12))
    by_night = await price_of(prices, *name, moment=night)

    assert by_day.version != by_night.version
    assert bound_nanos(by_day, BOUND) > bound_nanos(by_night, BOUND) > 0


# ------------------------------------------------------------------------------- public prices


async def test_a_public_model_has_its_list_price() -> None:
    price = await price_of(a_list(), "models/mini", "openai/gpt-5-mini")

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

    base = await price_of(prices, "models/g", "google/gemini-2.5-pro")
    dear = await price_of(prices, "models/g", "google/gemini-2.5-pro", large)

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

    known = await price_of(prices, "models/e", embedding, Usage(input_tokens=5, calls=1))

    assert known.input_nanos_per_million > 0
    with pytest.raises(RemitError, match="no price is known"):
        await price_of(prices, "models/e", embedding)


@pytest.mark.parametrize("list_item", ["openai/zzz-9", "nobody/x", "no-slash", "/x", "x/"])
async def test_what_the_public_list_does_not_know_is_unknown_each_time(list_item: str) -> None:
    prices = a_list(cache_size=1)

    for _ in range(2):
        with pytest.raises(RemitError) as caught:
            await price_of(prices, "models/x", list_item)
        assert caught.value.reason == reasons.ERROR_REASON_PRICE_UNKNOWN
        assert list_item in caught.value.message


async def test_remembered_prices_are_bounded() -> None:
    public = PublicPrices(cache_size=2)

    for n in range(5):
        await public.model(f"openai/zzz-{n}")

    assert list(public._models) == ["openai/zzz-3", "openai/zzz-4"]


def test_public_prices_cost_nothing_until_they_are_needed() -> None:
    code = "import sys, remit.cost.main; sys.exit('genai_prices' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------- unlisted


async def test_an_unknown_model_is_refused_by_name_unless_allowed() -> None:
    with pytest.raises(RemitError) as caught:
        await price_of(a_list(), "models/mine")
    allowed = await price_of(a_list(models=Unlisted.FREE), "models/mine")

    assert caught.value.reason == reasons.ERROR_REASON_PRICE_UNKNOWN
    assert caught.value.message == "no price is known for models/mine"
    assert bound_nanos(allowed, BOUND) == 0
    assert allowed.source == "unlisted"


async def test_a_tool_of_ones_own_is_free_unless_refused() -> None:
    free = await price_of(a_list(), "tools/mine")

    assert (bound_nanos(free, BOUND), free.source) == (0, "unlisted")
    with pytest.raises(RemitError, match="no price is known for tools/mine"):
        await price_of(a_list(tools=Unlisted.REFUSE), "tools/mine")


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
        ("prices: {tools/a: []}", "prices.tools/a: states no price"),
        ("prices: {tools/a: [5]}", "prices.tools/a.0"),
        ("prices: {tools/a: [{call_nanos: 1}, {call_nanos: -1}]}", "prices.tools/a.1.call_nanos"),
        ("prices: {tools/a: {from: soon}}", "prices.tools/a.from"),
        ("prices: {tools/a: {from: 1798761600}}", "prices.tools/a.from"),
        ("prices: {tools/a: {from: 2027-01-01 00:00:00}}", "a.from: Value error, has no time zone"),
        ("prices: {tools/a: {from: '0001-01-01T00:00:00+05:00'}}", "outside the calendar"),
        ("prices: {tools/a: {start: 2027-01-01}}", "prices.tools/a.start"),
        (
            "prices: {tools/a: [{call_nanos: 1}, {call_nanos: 2}]}",
            "prices.tools/a: has two prices from the beginning",
        ),
        (
            "prices: {tools/a: [{until: 2027-01-02}, {from: 2027-01-01}]}",
            "two prices from 2027-01-01T00:00:00Z until 2027-01-02T00:00:00Z",
        ),
        (
            "prices: {tools/a: [{until: 2027-01-01}, {from: 2027-01-02}]}",
            "no price from 2027-01-01T00:00:00Z until 2027-01-02T00:00:00Z",
        ),
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
