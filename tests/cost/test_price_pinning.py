"""Which price a hold pins: that of the time at which it begins, in the ledger's time."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.cost.price_timelines import Span, Timeline
from remit.cost.prices import ItemPrices
from remit.cost.reservations import Price, Reserve, Usage
from remit.rpc.errors import RemitError
from tests.cost.worlds import A_NANO_A_CALL, START, DictLedger, extend, reserve, settle

A_MINUTE = timedelta(minutes=1)
OLD = A_NANO_A_CALL
NEW = Price(version="b" * 64, source="file", call_nanos=2)


def dated(number: int, calls: int, *, change: datetime, end: datetime | None = None) -> Reserve:
    """A reserve of something that costs 1 nano-USD a call, and from `change` on 2."""
    timeline = Timeline([Span(OLD), Span(NEW, change, end)])
    prices = ItemPrices("models/mine", "", Usage(calls=calls), [timeline], None, False)  # noqa: FBT003
    return replace(reserve(number, calls), price=prices)


def test_a_scheduled_price_is_pinned_by_the_holds_that_begin_from_its_time_on() -> None:
    ledger = DictLedger()
    change = START + A_MINUTE

    before = ledger.do(dated(1, 10, change=change))
    ledger.now = change - timedelta(microseconds=1)
    last = ledger.do(dated(2, 10, change=change))
    ledger.now = change
    first = ledger.do(dated(3, 10, change=change))

    assert [hold.hold_nanos for hold in (before, last, first)] == [10, 10, 20]
    assert [hold.price for hold in (before, last, first)] == [OLD, OLD, NEW]


def test_what_was_held_before_a_change_is_extended_and_settled_at_its_own_price() -> None:
    ledger = DictLedger()
    ledger.do(dated(1, 10, change=START + A_MINUTE))
    ledger.now += 2 * A_MINUTE

    larger = ledger.do(extend(1, 30))
    settled = ledger.do(settle(1, 25))

    assert (larger.hold_nanos, settled.posted_nanos, settled.price) == (30, 25, OLD)


def test_a_clock_that_steps_back_brings_no_old_price_back() -> None:
    ledger = DictLedger()
    change = START + A_MINUTE
    ledger.now = change
    ledger.do(dated(1, 1, change=change))
    ledger.now = change - timedelta(seconds=3)

    late = ledger.do(dated(2, 1, change=change))

    assert late.price == NEW
    assert late.create_time == change


def test_a_repeated_reserve_answers_with_the_price_that_was_pinned() -> None:
    ledger = DictLedger()
    change, end = START + A_MINUTE, START + 2 * A_MINUTE
    first = ledger.do(dated(1, 10, change=change, end=end))

    ledger.now = change
    again = ledger.do(dated(1, 10, change=change, end=end))
    ledger.now = end
    after_the_end = ledger.do(dated(1, 10, change=change, end=end))

    assert again == after_the_end == first


def test_where_the_last_price_has_ended_a_hold_is_refused_alone_and_leaves_no_trace() -> None:
    ledger = DictLedger()
    end = START + 2 * A_MINUTE
    ledger.now = end

    refused, held = ledger.apply([dated(1, 10, change=START, end=end), reserve(2, 10)])

    assert isinstance(refused, RemitError)
    assert refused.reason == reasons.ERROR_REASON_PRICE_UNKNOWN
    assert not isinstance(held, RemitError)
    assert list(ledger.reservations) == [held.key]


@pytest.mark.parametrize("back", [0, 3])
def test_one_batch_has_one_time(back: int) -> None:
    """Its holds are of one price, whatever the clock of the replica says meanwhile."""
    ledger = DictLedger()
    change = START + A_MINUTE
    ledger.now = change
    ledger.do(dated(1, 1, change=change))
    ledger.now -= timedelta(seconds=back)

    results = ledger.apply([dated(number, 1, change=change) for number in (2, 3, 4)])

    assert {result.price for result in results if not isinstance(result, RemitError)} == {NEW}
