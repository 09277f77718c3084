"""What a detector is: a name, and patterns that decide within a window of fixed length."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tail:
    """How far a finding goes on after its head, whatever its length."""

    stop: re.Pattern[str]
    """What ends it; if it never comes, the finding ends with the text."""
    window: int
    """Characters that `stop` matches or looks at, at most."""
    is_included: bool
    """Whether what ends it belongs to it."""


def whole(match: str) -> int:
    """Takes all that was matched."""
    return len(match)


@dataclass(frozen=True)
class Pattern:
    """One kind of thing that is found.

    The head may look at one character before its start, and at `window` characters from its start
    on: more it must neither match nor look at. It matches one character at least.
    """

    kind: str
    what: str
    """Of a text, for people: "contains a script tag"."""
    head: re.Pattern[str]
    window: int
    length: Callable[[str], int] = whole
    """Of what was matched, how many characters are a finding; 0: it is none."""
    tail: Tail | None = None


@dataclass(frozen=True)
class Detector:
    """Finds one sort of things in a text as it is read (`remit.guardrails.reading`)."""

    name: str
    patterns: tuple[Pattern, ...]

    @property
    def window(self) -> int:
        """Characters that a stream holds back at most, as they are read."""
        tails = (pattern.tail.window for pattern in self.patterns if pattern.tail is not None)
        return max(*(pattern.window for pattern in self.patterns), *tails, 0)


@dataclass(frozen=True)
class Finding:
    """Where something was found; never what."""

    detector: str
    kind: str
    start: int
    """In characters of the text as it was given."""
    end: int
