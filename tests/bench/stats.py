"""Medians, quartiles and ratios: what may be said about figures of a noisy machine.

The speed of a virtual machine changes within seconds, for all programs alike. So the kinds that
are compared take turns, each turn of one is set against the turn of the other next to it, and the
median of these ratios is reported with its quartiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

UNLIKELY: Final = 0.1
"""A ratio is marked if chance alone gives such a majority of rounds less often than this."""


@dataclass(frozen=True)
class Spread:
    """The median of some rounds and what half of them lay between."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    rounds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Raises ValueError if there is no value."""
        ordered = sorted(values)
        return cls(
            quantile(ordered, 0.5), quantile(ordered, 0.25), quantile(ordered, 0.75), len(ordered)
        )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the sorted values lie, linear between two neighbours."""
    if not ordered:
        raise ValueError("there is no value")
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """second/first, round by round; rounds in which the first is zero say nothing."""
    return [after / before for before, after in zip(first, second, strict=True) if before]


def chance_of_signs(values: Sequence[float]) -> float:
    """How likely a majority on one side of 1 is at least this large if both sides are alike.

    The two-sided sign test; 1.0 when no value differs from 1.
    """
    above = sum(1 for value in values if value > 1)
    below = sum(1 for value in values if value < 1)
    trials, fewer = above + below, min(above, below)
    tail = sum(math.comb(trials, count) for count in range(fewer + 1))
    return min(1.0, 2.0 * tail / (1 << trials))


def by_metric(rounds: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """The values of each metric over the rounds; one that a round lacks was zero in it."""
    listed = list(rounds)
    names = dict.fromkeys(name for each in listed for name in each)
    return {name: [each.get(name, 0.0) for each in listed] for name in names}
