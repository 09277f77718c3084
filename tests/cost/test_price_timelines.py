"""Timelines: one price at any time that they speak of, and no span that leaves that to chance."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.cost.price_timelines import Span, Timeline, TimelineError

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
HOURS = st.integers(0, 60)


def hour(number: int | None) -> datetime | None:
    return None if number is None else EPOCH + timedelta(hours=number)


def a_span(value: int, start: int | None = None, until: int | None = None) -> Span[int]:
    return Span(value, hour(start), hour(until))


def spans() -> st.SearchStrategy[list[Span[int]]]:
    """Any spans, sound or not; each has a value of its own."""
    ends = st.tuples(st.none() | HOURS, st.none() | HOURS)
    return st.lists(ends, min_size=1, max_size=5).map(
        lambda found: [a_span(value, *each) for value, each in enumerate(found)]
    )


@st.composite
def sound_spans(draw: st.DrawFn) -> list[Span[int]]:
    """Spans that follow each other, in any order; those that are followed may state their end."""
    edges = draw(st.lists(HOURS, min_size=2, max_size=6, unique=True).map(sorted))
    begins: list[int | None] = [*edges[:-1]]
    if draw(st.booleans()):
        begins[0] = None
    found = []
    for value, begin in enumerate(begins):
        until = edges[value + 1] if draw(st.booleans()) else None
        found.append(a_span(value, begin, until))
    return draw(st.permutations(found))


def in_force(found: list[Span[int]], moment: datetime) -> set[int]:
    """What is in force by the words of the docs: from its start, until its end or the next."""
    begun = [span for span in found if span.start is None or span.start <= moment]
    latest = max((span.start or EPOCH - timedelta(1) for span in begun), default=None)
    return {
        span.value
        for span in begun
        if (span.start or EPOCH - timedelta(1)) == latest
        and (span.until is None or moment < span.until)
    }


@given(
    sound_spans(), st.integers(-5, 400).map(lambda quarters: EPOCH + quarters * timedelta(0, 900))
)
def test_at_any_time_exactly_one_price_is_in_force_or_none_outside(
    found: list[Span[int]], moment: datetime
) -> None:
    timeline = Timeline(found)
    covering = [span for span in timeline if span.covers(moment)]
    first, *_, last = [*timeline, *timeline]
    is_inside = first.begin <= moment and (last.until is None or moment < last.until)

    assert len(covering) == is_inside
    assert timeline.at(moment) == (covering[0].value if covering else None)
    assert {span.value for span in covering} == in_force(found, moment)


@given(spans())
def test_spans_are_taken_only_if_no_time_has_two_prices_and_none_between_has_none(
    found: list[Span[int]],
) -> None:
    """By a look at every hour: what a timeline takes is sound, what it refuses is not."""
    moments = [EPOCH + timedelta(hours=number) for number in range(-1, 62)]
    # A span without an end goes on until the next begins, so only one that states it can overlap.
    begins = sorted(span.begin for span in found)
    ends = [
        span.until or next((begin for begin in begins if begin > span.begin), None)
        for span in found
    ]
    counts = [
        sum(
            s.begin <= moment and (end is None or moment < end)
            for s, end in zip(found, ends, strict=True)
        )
        for moment in moments
    ]
    covered = [count > 0 for count in counts]
    has_gap = (
        False in covered[covered.index(True) : len(covered) - covered[::-1].index(True)]
        if any(covered)
        else False
    )
    is_sound = (
        max(counts) == 1
        and not has_gap
        and len(set(begins)) == len(begins)
        and all(span.until is None or span.until > span.begin for span in found)
    )

    try:
        Timeline(found)
    except TimelineError:
        assert not is_sound
    else:
        assert is_sound


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ([], "states no price"),
        ([a_span(1, 5), a_span(2, 5)], "has two prices from 2026-01-01T05:00:00Z"),
        ([a_span(1), a_span(2)], "has two prices from the beginning"),
        (
            [a_span(1, None, 7), a_span(2, 5)],
            "has two prices from 2026-01-01T05:00:00Z until 2026-01-01T07:00:00Z",
        ),
        (
            [a_span(2, 9), a_span(1, 1, 7)],
            "has no price from 2026-01-01T07:00:00Z until 2026-01-01T09:00:00Z",
        ),
        ([a_span(1, 5, 5)], "ends at 2026-01-01T05:00:00Z, which is not after it begins"),
        ([a_span(1, 5, 4), a_span(2, 6)], "which is not after it begins"),
    ],
)
def test_a_refusal_names_the_times_at_fault(found: list[Span[int]], fault: str) -> None:
    with pytest.raises(TimelineError, match=fault):
        Timeline(found)


def test_other_values_keep_their_times() -> None:
    timeline = Timeline([a_span(1, 0, 5), a_span(2, 5, 9)]).map(str)

    assert [timeline.at(EPOCH + timedelta(hours=n)) for n in (-1, 0, 4, 5, 8, 9)] == [
        None,
        "1",
        "1",
        "2",
        "2",
        None,
    ]
    assert not timeline.is_for_ever
    assert Timeline([a_span(1, None, 3), a_span(2, 3)]).is_for_ever
