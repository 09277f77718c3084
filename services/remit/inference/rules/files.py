"""Recognises requests to show a file or to write one.

Only what is said outright is done: contents that somebody would first have to compose ("a poem"),
negations, and anything but showing and writing are left alone.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from typing import Final

from remit.inference.rules.clauses import QUOTED, quotation, unquoted
from remit.inference.rules.jobs import Reading, Writing

PREVIOUS: Final = re.compile(
    r"(?:it|this|that|them|these|those|the (?:results?|answers?|output|values?|findings|hits|sum"
    r"|total|contents?|time|date|text))",
    re.IGNORECASE,
)
PLURAL: Final = re.compile(
    r"(?:them|these|those|the (?:results|answers|findings|hits))", re.IGNORECASE
)
_RESULT_OF: Final = re.compile(
    r"the (?:results?|answers?|values?|outcome) (?:of|to|from) (?P<source>.+)", re.IGNORECASE
)
_BARE_PATH: Final = (
    r"(?:~?/|\.{1,2}/)?(?:[\w+-][\w.+-]*/)*[\w+-][\w.+-]*\.[A-Za-z0-9]{1,8}(?![\w@/])"
)
_FOLDED_PATH: Final = r"(?:~?/|\.{1,2}/)?(?:[\w+-][\w.+-]*/)+[\w.+-]+"
_KNOWN_FILE: Final = r"(?:README|LICENSE|CHANGELOG|Makefile|Dockerfile|NOTICE|AUTHORS)\b"
_PATH: Final = re.compile(
    rf"(?<![\w@:/.])(?P<path>{_BARE_PATH}|{_FOLDED_PATH}|{_KNOWN_FILE})(?!\w*://)"
)
_QUOTED_PATH: Final = re.compile(
    rf"(?:{_BARE_PATH}|[\w .+/-]*[\w+-]\.[A-Za-z0-9]{{1,8}}|{_FOLDED_PATH})"
)
_URL: Final = re.compile(r"\w+://|\bwww\.", re.IGNORECASE)
_NEGATED: Final = re.compile(r"\b(?:don.?t|do not|never|without|instead of|not)\b", re.IGNORECASE)
_READ: Final = re.compile(
    r"\b(?:read|show|open|print|display|cat|view|load|fetch|get|output|see|dump|contents? of"
    r"|look (?:at|into)|(?:is|are|’s|'s|s) (?:written |stored |there )?(?:in|inside|within)"  # noqa: RUF001
    r"|what does)\b",
    re.IGNORECASE,
)
_SAYS: Final = re.compile(r"\b(?:says?|contains?|holds?|reads?)\b", re.IGNORECASE)
_OTHER_WORK: Final = re.compile(
    r"\b(?:summari[sz]e|summary|translate|count|delete|remove|rename|move|copy|append|run|execute"
    r"|edit|replace|compare|upload|download|send|email|mail|fix|rewrite|explain|how many|convert"
    r"|parse|sort)\b",
    re.IGNORECASE,
)
_WRITE: Final = r"(?:write|save|put|store|record|dump|note)"
_INTO: Final = r"(?:to|into|in|as|inside|under)"
_FILE: Final = (
    r"(?:(?:a|an|the|my|our)\s+)?(?:new\s+)?(?:(?:text\s+)?file\s+)?(?:called\s+|named\s+)?"
)
_MAKE: Final = r"(?:create|make|write|add|produce)"
_HOLDING: Final = (
    r"(?:with|containing|that (?:says|contains|reads|holds)|saying|holding|which says|:)"
)
_WHAT: Final = (
    r"(?:the |this |these |a |some )?(?:following |exact )?(?:text|words?|contents?|line|string"
    r"|sentence|phrase|message|note)(?: saying| that says| of)?:?\s+"
)
_NEEDS_COMPOSING: Final = re.compile(
    r"^(?:an?|some|my|your|our|their|his|her|all|any|one|two|three|few|several|the)\b"
    r"|\b(?:about|of|regarding|describing|summari[sz]ing)\b|^\W*$",
    re.IGNORECASE,
)
_REFUSED: Final = (_NEGATED, _OTHER_WORK, _URL)
_P: Final = "\x00"
_QUOTATION: Final = "\x01"
_MAX_TARGETS: Final = 4
MAX_PATHS: Final = 32
MAX_CLAUSE_CHARS: Final = 1_000
"""Of a clause without its quotations and the path; a longer one is prose."""


def reading(clause: str) -> list[Reading]:
    """The files that a clause asks to be shown; empty if it asks for anything else."""
    found = _paths(clause, list(QUOTED.finditer(clause)))
    if not 1 <= len(found) <= MAX_PATHS:
        return []
    words = _marked(clause, [(start, end, _P) for _, start, end in found])
    if len(words) > MAX_CLAUSE_CHARS or any(form.search(words) for form in _REFUSED):
        return []
    before, after = words[: words.index(_P)], words[words.rindex(_P) :]
    says = _SAYS.search(after) is not None and re.search(r"\bwhat\b", before, re.IGNORECASE)
    if not (_READ.search(before) or says):
        return []
    return [Reading(path) for path, _, _ in found]


def writing(clause: str) -> Writing | None:
    """The file that a clause asks to be written; None if it asks for anything else."""
    for path, content in _assignments(clause):
        inside = unquoted(content)
        if inside != content:
            return Writing(path, inside)
        if PREVIOUS.fullmatch(content):
            return Writing(path, None, gathers=PLURAL.fullmatch(content) is not None)
        return None if _NEEDS_COMPOSING.search(content) else Writing(path, content)
    return None


def written_from(clause: str) -> tuple[str, str] | None:
    """What must be worked out first, and the path that the result goes to.

    Such as ("17 * 23", "out.txt") for "write the result of 17 * 23 to out.txt".
    """
    for path, content in _assignments(clause):
        match = _RESULT_OF.fullmatch(content)
        if match is not None:
            return match["source"], path
    return None


def _assignments(clause: str) -> Iterator[tuple[str, str]]:
    """Readings of the clause as (path, content), the likeliest first."""
    if _P in clause or _QUOTATION in clause:
        return
    quoted = list(QUOTED.finditer(clause))
    for path, start, end in reversed(_paths(clause, quoted)[-_MAX_TARGETS:]):
        outside = [q for q in quoted if q.end() <= start or q.start() >= end]
        marks = [(start, end, _P), *((q.start(), q.end(), _QUOTATION) for q in outside)]
        skeleton = _marked(clause, marks)
        if len(skeleton) <= MAX_CLAUSE_CHARS and not _NEGATED.search(skeleton):
            content = _content(skeleton, [q.group() for q in outside])
            if content is not None:
                yield path, content


def _marked(clause: str, marks: Sequence[tuple[int, int, str]]) -> str:
    """The clause with marks in place of parts, so that what is long or quoted is not read."""
    parts, at = [], 0
    for start, end, mark in sorted(marks):
        parts += [clause[at:start], mark]
        at = end
    return "".join([*parts, clause[at:]])


def _content(skeleton: str, quotations: Sequence[str]) -> str | None:
    """The content that a clause names, its quotations put back; None if it names none."""
    match = next((found for form in _WRITE_FORMS if (found := form.search(skeleton))), None)
    if match is None:
        return None
    words = re.sub(rf"^{_WHAT}", "", match["content"].strip(), flags=re.IGNORECASE)
    put_back = iter(quotations[skeleton[: match.start("content")].count(_QUOTATION) :])
    return "".join(next(put_back) if char == _QUOTATION else char for char in words)


_WRITE_FORMS: Final = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        rf"\b{_WRITE}(?:\s+down)?\s+(?P<content>.+?)\s+{_INTO}\s+{_FILE}{_P}(?:\s+please)?\W*$",
        rf"\b(?:{_WRITE}|{_MAKE})\s+(?:{_INTO}\s+)?{_FILE}{_P}\s*,?\s*{_HOLDING}\s+(?P<content>.+)$",
        rf"\b{_WRITE}\s+{_INTO}\s+{_FILE}{_P}\s*:?\s+(?P<content>.+)$",
        rf"^(?:in|into|to)\s+{_FILE}{_P}\s*,?\s+{_WRITE}\s+(?P<content>.+)$",
    )
)


def _paths(clause: str, quoted: Sequence[re.Match[str]]) -> list[tuple[str, int, int]]:
    """Paths with where they stand: bare ones outside the quotations, and quoted ones."""
    found = [
        (quotation(match), match.start(), match.end())
        for match in quoted
        if _QUOTED_PATH.fullmatch(quotation(match))
    ]
    found += [
        (match["path"], match.start(), match.end())
        for match in _PATH.finditer(clause)
        if not _is_inside(match.start(), quoted) and not re.fullmatch(r"[\d.]+", match["path"])
    ]
    return sorted(found, key=lambda item: item[1])


def _is_inside(position: int, quoted: Sequence[re.Match[str]]) -> bool:
    at = bisect.bisect_right(quoted, position, key=lambda match: match.start()) - 1
    return at >= 0 and position < quoted[at].end()
