"""What is listed is what would be pinned: over all sources, one answer at any time from now on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from remit.api.cost.v1 import price_service_pb2
from remit.cost.org_prices import OrgTimeline
from remit.cost.price_files import Rates
from remit.cost.price_listing import A_SMALL_REQUEST, listed_prices
from remit.cost.price_timelines import Span, Timeline
from remit.cost.prices import UNLISTED, ItemPrices, make_price
from remit.cost.reservations import Price
from remit.rpc.errors import RemitError
from tests.cost.worlds import START

ITEM = "models/mine"
NEVER = datetime.max.replace(tzinfo=UTC)
ItemPrice = price_service_pb2.ItemPrice


def hour(number: int) -> datetime:
    return START + timedelta(hours=number)


def a_price(nanos: int, source: str) -> Price:
    return make_price(ITEM, Rates(call_nanos=nanos), source)


@st.composite
def timelines(draw: st.DrawFn, source: str) -> Timeline[Price]:
    begins = draw(st.lists(st.integers(-9, 9), min_size=1, max_size=4, unique=True).map(sorted))
    spans = [Span(a_price(draw(st.integers(0, 3)), source), hour(begin)) for begin in begins]
    if draw(st.booleans()):
        spans[0] = Span(spans[0].value, None)
    if draw(st.booleans()):
        spans[-1] = Span(spans[-1].value, spans[-1].start, hour(begins[-1] + 2))
    return Timeline(spans)


@st.composite
def own_timelines(draw: st.DrawFn) -> OrgTimeline | None:
    begins = draw(st.lists(st.integers(-3, 9), max_size=4, unique=True).map(sorted))
    values = st.none() | st.integers(0, 3).map(lambda nanos: a_price(nanos, "org"))
    spans: list[Span[Price | None]] = [Span(draw(values), hour(begin)) for begin in begins]
    return Timeline(spans) if spans else None


def pinned(prices: ItemPrices, own: OrgTimeline | None, moment: datetime) -> Price | None:
    """As the ledger does it; None where the hold would be refused or let pass for nothing."""
    try:
        price = (own.at(moment) if own else None) or prices.at(moment)
    except RemitError:
        return None
    return None if price.source == UNLISTED else price


@given(
    stated=st.lists(st.one_of(timelines("file"), timelines("shipped")), max_size=2),
    own=own_timelines(),
    allows=st.booleans(),
    quarter=st.integers(0, 60),
)
def test_at_any_time_from_now_on_one_price_is_listed_and_it_is_the_one_a_hold_would_pin(
    *, stated: list[Timeline[Price]], own: OrgTimeline | None, allows: bool, quarter: int
) -> None:
    prices = ItemPrices(ITEM, "", A_SMALL_REQUEST, stated, None, allows)
    moment = START + timedelta(minutes=15 * quarter)

    listed = list(listed_prices(prices, own, START))
    ends = [each.end_time.ToDatetime(UTC) for each in listed[:-1]]
    begins = [START, *ends]

    assert [each.state for each in listed] == [
        ItemPrice.STATE_CURRENT,
        *[ItemPrice.STATE_SCHEDULED] * len(ends),
    ]
    assert not listed[-1].HasField("end_time")
    assert begins == sorted(set(begins))
    (found,) = [
        each
        for each, begin, end in zip(listed, begins, [*ends, NEVER], strict=True)
        if begin <= moment < end
    ]
    expected = pinned(prices, own, moment)
    assert found.HasField("price") == (expected is not None)
    assert found.source == (expected.source if expected else UNLISTED)
    assert found.refused == (expected is None and not allows)
    if expected:
        assert found.price.call_nanos == expected.call_nanos
