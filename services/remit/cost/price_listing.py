"""What an item costs from now on, over all sources: the spans in which its price stays the same.

At each moment at which any source states another price, the item is asked for its price anew, as a
hold that begins then would be. So what is listed is what would be pinned, and an item of which
nobody knows the price says so instead of showing a zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import zip_longest
from typing import Any, Final, TypeVar

from remit.api.cost.v1 import price_service_pb2
from remit.cost.messages import price_message, timestamp
from remit.cost.org_prices import OrgTimeline
from remit.cost.price_timelines import Span, Timeline
from remit.cost.prices import UNLISTED, ItemPrices
from remit.cost.reservations import Price, Usage
from remit.rpc.errors import RemitError

ItemPrice = price_service_pb2.ItemPrice
Value = TypeVar("Value")

A_SMALL_REQUEST: Final = Usage(input_tokens=1, output_tokens=1, calls=1)
"""What public prices are asked for: the lowest tier."""
_NO_OUTPUT: Final = replace(A_SMALL_REQUEST, output_tokens=0)


@dataclass(frozen=True, slots=True)
class _Listed:
    """A price, or None where nobody knows it, from a moment on."""

    start: datetime
    price: Price | None


def listed_prices(
    prices: ItemPrices, own: OrgTimeline | None, now: datetime
) -> Iterator[ItemPrice]:
    """The price in force and those to come, as the contract states them.

    `prices` are of A_SMALL_REQUEST, `own` are those of the org itself.
    """
    moments = {now, *(_edges(own, now) if own else ())}
    moments.update(edge for timeline in prices.stated for edge in _edges(timeline, now))
    found = _distinct(_Listed(moment, _at(prices, own, moment)) for moment in sorted(moments))
    for listed, following in zip_longest(found, found[1:]):
        is_current = listed.start == now
        start = _stated_since(prices, own, now) if is_current else listed.start
        yield ItemPrice(
            item=prices.item,
            state=ItemPrice.STATE_CURRENT if is_current else ItemPrice.STATE_SCHEDULED,
            price=price_message(listed.price) if listed.price else None,
            source=listed.price.source if listed.price else UNLISTED,
            refused=listed.price is None and not prices.allows_unlisted,
            start_time=timestamp(start) if start else None,
            end_time=timestamp(following.start) if following else None,
        )


def _edges(timeline: Timeline[Value], now: datetime) -> Iterator[datetime]:
    """The times to come at which the timeline changes."""
    for span in timeline:
        yield from (edge for edge in (span.start, span.until) if edge is not None and edge > now)


def _distinct(listed: Iterable[_Listed]) -> list[_Listed]:
    """Without those that go on with the price before them."""
    found: list[_Listed] = []
    for each in listed:
        if not found or found[-1].price != each.price:
            found.append(each)
    return found


def _at(prices: ItemPrices, own: OrgTimeline | None, moment: datetime) -> Price | None:
    price = own.at(moment) if own else None
    return price or _known(prices, moment) or _known(replace(prices, bound=_NO_OUTPUT), moment)


def _known(prices: ItemPrices, moment: datetime) -> Price | None:
    """The price that a hold would pin; None if nobody knows one, whatever becomes of the hold."""
    try:
        price = prices.at(moment)
    except RemitError:
        return None
    return None if price.source == UNLISTED else price


def _stated_since(prices: ItemPrices, own: OrgTimeline | None, moment: datetime) -> datetime | None:
    """Since when the source whose price is in force states it."""
    spans = [_covering(own, moment) if own else None]
    spans += [_covering(timeline, moment) for timeline in prices.stated]
    return next((span.start for span in spans if span is not None), None)


def _covering(timeline: Timeline[Value], moment: datetime) -> Span[Any] | None:
    return next((each for each in timeline if each.covers(moment) and each.value is not None), None)
