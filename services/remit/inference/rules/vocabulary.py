"""Sets of words, written as the words they are."""

from __future__ import annotations


def vocabulary(text: str) -> frozenset[str]:
    """The words of a text that are separated by spaces."""
    return frozenset(text.split())
