"""How detectors read a text: without what hides things from them and is not seen by people.

Each character is normalised by NFKC (full-width letters become plain ones), HTML's entities become
what they stand for, and characters that nobody sees are left out. Each character that is read knows
the place in the text that it came from. A text may come in pieces; they read as the whole does.
"""

from __future__ import annotations

import functools
import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MAX_HIDDEN: Final = 16
"""Unseen characters in a row that are left out. More hide nothing, they part what they stand in:
so each character that is read stands for a bounded piece of text."""
_MAX_ENTITY_CHARS: Final = 11
_MAX_SEEN_CHARS: Final = 4
"""What one character may be read as; ligatures that stand for a sentence are read as they are."""
_NAMES: Final = "lt|gt|quot|apos|amp|colon|sol|commat|period|lowbar|equals|Tab|NewLine|plus|nbsp"
_ENTITY: Final = re.compile(rf"&(?:#[0-9]{{1,7}};?|#[xX][0-9a-fA-F]{{1,6}};?|(?:{_NAMES});)")
# The code points that Unicode calls default ignorable.
_UNSEEN: Final = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_SPECIAL: Final = re.compile(r"[&\x80-\U0010ffff]")
_HIDDEN: Final = re.compile(f"[{_UNSEEN}]")
_PARTING: Final = "\ufffd"


@dataclass(frozen=True)
class Read:
    """A piece as it is read; `starts` and `ends` are places in the whole text."""

    view: str
    starts: Sequence[int]
    ends: Sequence[int]


class Reader:
    """Reads one text."""

    def __init__(self) -> None:
        self._kept = ""
        """The begin of what may become an entity."""
        self._place = 0
        self._hidden = 0

    def read(self, piece: str, *, final: bool) -> Read:
        """The next piece, as far as it is decided how it reads; all of it if it is the last."""
        text, self._kept = self._kept + piece, ""
        if is_plain(text):
            place, self._place = self._place, self._place + len(text)
            self._hidden = self._hidden if not text else 0
            return Read(text, range(place, self._place), range(place + 1, self._place + 1))
        return self._read(text, final=final)

    def _read(self, text: str, *, final: bool) -> Read:
        view: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        at = 0
        while at < len(text):
            special = _SPECIAL.search(text, at)
            plain = (special.start() if special is not None else len(text)) - at
            if plain:
                view.append(text[at : at + plain])
                starts += range(self._place, self._place + plain)
                ends += range(self._place + 1, self._place + plain + 1)
                self._hidden, self._place, at = 0, self._place + plain, at + plain
                continue
            if text[at] == "&" and not final and at + _MAX_ENTITY_CHARS > len(text):
                break
            entity = _ENTITY.match(text, at) if text[at] == "&" else None
            end = entity.end() if entity is not None else at + 1
            seen = self._seen(html.unescape(entity[0]) if entity is not None else text[at])
            view.append(seen)
            starts += [self._place] * len(seen)
            ends += [self._place + end - at] * len(seen)
            self._place += end - at
            at = end
        self._kept = text[at:]
        return Read("".join(view), starts, ends)

    def _seen(self, text: str) -> str:
        seen = _normalised(text)
        if seen:
            self._hidden = 0
            return seen
        self._hidden += 1
        return "" if self._hidden <= MAX_HIDDEN else _PARTING


@functools.lru_cache(maxsize=4_096)
def _normalised(text: str) -> str:
    """What one character is read as; empty if nobody sees it."""
    seen = _HIDDEN.sub("", unicodedata.normalize("NFKC", _HIDDEN.sub("", text)))
    return seen if len(seen) <= _MAX_SEEN_CHARS else text


def is_plain(text: str) -> bool:
    """Whether each character reads as it is written."""
    if "&" in text:
        return False
    if text.isascii():
        return True
    return unicodedata.is_normalized("NFKC", text) and _HIDDEN.search(text) is None
