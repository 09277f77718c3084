"""Which price is in force when: spans that follow each other, one price at any time.

Two spans that overlap would leave the price to chance, and a gap between two would make a model
unknown, or free, for a time that nobody meant. Both are refused with the times at fault. What lies
before the first span or after the last one is said by nobody here: there the next source decides.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final, Generic, TypeVar

Value = TypeVar("Value")
Other = TypeVar("Other")

_ALWAYS: Final = datetime.min.replace(tzinfo=UTC)


class TimelineError(ValueError):
    """Spans that do not follow each other; says where."""


@dataclass(frozen=True, slots=True)
class Span(Generic[Value]):
    """A value that is in force from `start` until, exclusively, `until`; None is without end."""

    value: Value
    start: datetime | None = None
    until: datetime | None = None

    @property
    def begin(self) -> datetime:
        """The start, as a time."""
        return self.start or _ALWAYS

    def covers(self, moment: datetime) -> bool:
        """Whether the value is in force at a moment."""
        return self.begin <= moment and (self.until is None or moment < self.until)


class Timeline(Generic[Value]):
    """Spans in order of time; each that states no end ends where the next one begins.

    Raises TimelineError if there is none, if two overlap, or if there is time between two.
    """

    def __init__(self, spans: Sequence[Span[Value]]) -> None:
        if not spans:
            message = "states no price"
            raise TimelineError(message)
        self._spans = tuple(_closed(sorted(spans, key=lambda span: span.begin)))
        self._begins = [span.begin for span in self._spans]

    def __iter__(self) -> Iterator[Span[Value]]:
        """The spans in order of time."""
        return iter(self._spans)

    @property
    def is_for_ever(self) -> bool:
        """Whether there is a value at any time at all."""
        return self._spans[0].start is None and self._spans[-1].until is None

    def map(self, change: Callable[[Value], Other]) -> Timeline[Other]:
        """The same spans with other values."""
        return Timeline([Span(change(span.value), span.start, span.until) for span in self])

    def at(self, moment: datetime) -> Value | None:
        """The value in force at a moment; None before the first span and after the last."""
        place = bisect_right(self._begins, moment) - 1
        if place < 0 or not self._spans[place].covers(moment):
            return None
        return self._spans[place].value


def _closed(spans: Sequence[Span[Value]]) -> Iterator[Span[Value]]:
    for span in spans:
        if span.until is not None and span.until <= span.begin:
            message = f"ends at {_text(span.until)}, which is not after it begins"
            raise TimelineError(message)
    for span, following in pairwise(spans):
        _require_follows(span, following)
        yield Span(span.value, span.start, following.begin)
    yield spans[-1]


def _require_follows(span: Span[Value], following: Span[Value]) -> None:
    if span.begin == following.begin:
        message = f"has two prices from {_text(span.start)}"
        raise TimelineError(message)
    if span.until is None or span.until == following.begin:
        return
    if span.until > following.begin:
        message = (
            f"has two prices from {_text(following.start)} until {_text(span.until)};"
            " let the first end where the second begins"
        )
        raise TimelineError(message)
    message = (
        f"has no price from {_text(span.until)} until {_text(following.start)};"
        " let the first go on until the second begins"
    )
    raise TimelineError(message)


def _text(moment: datetime | None) -> str:
    return moment.isoformat().replace("+00:00", "Z") if moment else "the beginning"
