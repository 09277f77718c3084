"""Bars of a chart in a terminal, in eighths of a cell, computed in integers."""

from __future__ import annotations

from typing import Final

_FULL: Final = "█"
_PARTS: Final = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
_EIGHTHS: Final = len(_PARTS)


def bar(amount: int, most: int, cells: int) -> str:
    """A bar for the share that `amount` has of `most`, which fills `cells`.

    The least amount above 0 can be seen; 0 is empty.
    """
    if amount <= 0 or most <= 0:
        return ""
    eighths = max(1, min(amount, most) * cells * _EIGHTHS // most)
    return _FULL * (eighths // _EIGHTHS) + _PARTS[eighths % _EIGHTHS]


def plain_bar(amount: int, most: int, cells: int) -> str:
    """The same for a terminal that has no block characters."""
    if amount <= 0 or most <= 0:
        return ""
    return "#" * max(1, min(amount, most) * cells // most)
