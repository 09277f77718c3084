"""Recognises requests to search for a text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from remit.inference.rules.clauses import QUOTED, quotation
from remit.inference.rules.jobs import Searching

_MAX_QUERY_CHARS: Final = 1_000
_THINGS: Final = (
    r"(?:documents?|docs?|files?|notes?|pages?|articles?|texts?|records?|entries|passages?|mentions?"
    r"|references?|sources?|information|info|everything|anything|something|details|results?|facts)"
)
_ABOUT: Final = (
    r"(?:about|on|regarding|concerning|mentioning|containing|discussing|describing|covering"
    r"|related to|relating to|relevant to|with|of|to"
    r"|(?:that|which) (?:mentions?|contains?|discuss(?:es)?|describes?|covers?|talks? about"
    r"|(?:is|are) about|says?))"
)
_PLACE: Final = (
    r"(?:the |my |our |your |all |these |those )*(?:web|internet|workspace|folder|library|archive"
    r"|index|knowledge base|wiki|documentation|documents|docs|files|notes|pages|texts)"
)
_FORMS: Final = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        (
            rf"\b(?:search|query|scan|grep)(?:\s+(?:through|in|inside))?(?:\s+{_PLACE})?"
            rf"\s+(?:for|about|on)\s+(?P<query>.+)$"
        ),
        r"\b(?:do|run|make|start)\s+an?\s+search\s+(?:for|about|on)\s+(?P<query>.+)$",
        r"\b(?:look|looking|hunt|searching|check)\s+for\s+(?P<query>.+)$",
        r"\blook\s+up\s+(?P<query>.+)$",
        (
            rf"\b(?:find|locate|list|show|get|give)\s+(?:me\s+)?(?:all\s+|any\s+|some\s+|the\s+|every\s+)*"
            rf"(?P<things>{_THINGS})\s+{_ABOUT}\s+(?P<query>.+)$"
        ),
        (
            rf"\b(?:which|what)\s+(?:of\s+)?(?:the\s+|my\s+|our\s+)?{_THINGS}\s+"
            r"(?:mentions?|contains?|discuss(?:es)?|describes?|covers?|talks? about"
            r"|(?:is|are|do we have|have we)\s+(?:about|on))\s+(?P<query>.+)$"
        ),
        rf"\b(?:is|are)\s+there\s+(?:any\s+|some\s+)?{_THINGS}\s+{_ABOUT}\s+(?P<query>.+)$",
        (
            rf"\b(?:do|have)\s+(?:we|you|i)\s+(?:have\s+|got\s+)?(?:any\s+)?{_THINGS}\s+{_ABOUT}"
            r"\s+(?P<query>.+)$"
        ),
        r"\bwhere\s+(?:is|are|do|does)\s+(?P<query>.+?)\s+(?:mentioned|described|discussed|defined)$",
    )
)
# So general that other rules are asked before it: "find the square root of 16".
_GENERAL: Final = re.compile(
    r"^(?:please\s+)?(?:can you\s+|could you\s+)?(?:find|locate|search)\s+(?P<query>.+)$",
    re.IGNORECASE,
)
_TRAILING: Final = re.compile(
    rf"(?:,?\s+(?:please|for me|now|in {_PLACE}|across {_PLACE}|from {_PLACE}))+$", re.IGNORECASE
)
_LEADING: Final = re.compile(
    rf"^(?:(?:all|any|some|the)\s+)*{_THINGS}\s+{_ABOUT}\s+", re.IGNORECASE
)
_NEGATED: Final = re.compile(r"\b(?:don.?t|do not|never)\b", re.IGNORECASE)
_EMPTY: Final = frozenset({"it", "that", "this", "them", "me", "something", "anything"})


def searching(clause: str) -> Searching | None:
    """The search that a clause asks for in so many words; None if it asks for anything else."""
    return _first_match(clause, _FORMS)


def finding(clause: str) -> Searching | None:
    """The search behind a bare "find ..."; ask the other rules first."""
    return _first_match(clause, (_GENERAL,))


def _first_match(clause: str, forms: Sequence[re.Pattern[str]]) -> Searching | None:
    text = " ".join(clause.split()).strip(" ?!.")
    if len(text) > _MAX_QUERY_CHARS or _NEGATED.search(text):
        return None
    for form in forms:
        match = form.search(text)
        if match is not None:
            query = _query(match["query"])
            return Searching(query) if query else None
    return None


def _query(text: str) -> str:
    """What to search for, without the words around it."""
    stripped = _LEADING.sub("", _TRAILING.sub("", text)).strip(" ,:")
    quoted = [quotation(match) for match in QUOTED.finditer(stripped)]
    if len(quoted) == 1 and quoted[0].strip():
        return quoted[0].strip()
    return "" if stripped.lower() in _EMPTY else stripped
