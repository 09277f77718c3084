"""Cuts a task into clauses that each ask for one kind of thing; quoted text is never cut."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from remit.inference.rules.vocabulary import vocabulary

QUOTED: Final = re.compile(
    r"```(?P<fenced>.*?)```|`(?P<code>[^`]+)`|\"(?P<double>[^\"]*)\"|“(?P<curly>[^”]*)”"
    r"|‘(?P<single_curly>[^’]*)’(?!\w)|(?<!\w)'(?P<single>.*?)'(?!\w)",  # noqa: RUF001
    re.DOTALL,
)
_VERBS: Final = (
    "what|what's|whats|which|when|where|who|how|tell|give|show|read|open|print|display|cat|write"
    "|save|store|put|create|search|find|look|calculate|compute|evaluate|please|can|could|list"
    "|summarize|summarise|translate|explain|send|delete|email|ask|delegate"
)
_BREAK: Final = re.compile(
    r"(?:[.?!]+(?=\s|$)|[\n;]+)\s*"
    rf"|,?\s+(?:and\s+then|and\s+also|and|then|also)\s+(?=(?:{_VERBS})\b)"
    rf"|,\s+(?=(?:{_VERBS})\b)",
    re.IGNORECASE,
)
# What may be said besides the question without being a question itself.
_SOCIAL: Final = vocabulary(
    "please thanks thank you hi hello hey there dear good morning afternoon evening "
    "ok okay now also and then so for in advance the a very much kindly cheers i me "
    "we need have want"
)


@dataclass(frozen=True)
class Clause:
    """A part of the task without the marks and spaces around it."""

    text: str


def clauses_of(text: str) -> list[Clause]:
    """The clauses in order, empty and merely polite ones left out."""
    quoted = [match.span() for match in QUOTED.finditer(text)]
    cuts = [match.span() for match in _BREAK.finditer(text) if not _overlaps(match, quoted)]
    starts = [0, *(end for _, end in cuts)]
    ends = [*(start for start, _ in cuts), len(text)]
    parts = (text[start:end].strip(" \t\n,;") for start, end in zip(starts, ends, strict=True))
    return [Clause(part) for part in parts if part and not _is_social(part)]


def _overlaps(cut: re.Match[str], quoted: Sequence[tuple[int, int]]) -> bool:
    """Whether a cut lies within one of the quotations, which are in order."""
    at = bisect.bisect_left(quoted, cut.end(), key=lambda span: span[0]) - 1
    return at >= 0 and cut.start() < quoted[at][1]


def unquoted(text: str) -> str:
    """What stands between one pair of quotation marks; the text itself where there are none."""
    match = QUOTED.fullmatch(text.strip())
    return quotation(match) if match else text


def quotation(match: re.Match[str]) -> str:
    """The inside of a match of `QUOTED`."""
    return next((group for group in match.groups() if group is not None), "")


def _is_social(text: str) -> bool:
    found = re.findall(r"[^\W_]+", text.lower())
    return bool(found) and all(word in _SOCIAL for word in found)
