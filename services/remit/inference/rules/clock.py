"""Recognises questions for the time or the date, here or at a place."""

from __future__ import annotations

import re
from typing import Final

from remit.inference.rules.jobs import TimeQuestion
from remit.inference.rules.places import zone_of

_MAX_CLAUSE_CHARS: Final = 300
_NOW: Final = (
    r"(?:right now|at the moment|at present|currently|now|today|please|exactly|there|here)"
)
_THING: Final = (
    r"(?P<thing>time|hour|clock|date|day of the week|day of the month|weekday|day|month|year)"
)
_KIND: Final = r"(?:current|exact|local|present|actual|precise|todays|today's|today’s)"  # noqa: RUF001
_ASK: Final = (
    r"(?:what(?:'s|’s|s)?(?: is| was)?|which|tell me|give me|show me|check|get|know|have|need|got"  # noqa: RUF001
    r"|want|say|see)"
)
_FORMS: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # what time is it, which day is today, what the date is
        (
            rf"\b{_ASK}(?: what)?(?: the)?(?: {_KIND})* {_THING}"
            rf"(?: is it| it is| is it today| is today| is)?"
            rf"(?P<tail>.*)$"
        ),
        # what is it o'clock; time in Tokyo; current time; Tokyo time
        rf"^(?:the )?(?:{_KIND} )*{_THING}(?: now)?(?P<tail>(?: in | at | for ).*|)$",
        rf"\bwhat(?:'s|’s|s| is) (?:the )?(?P<place>[\w .'-]+?) {_THING}(?P<tail>)$",  # noqa: RUF001
        r"\bhow late is it(?P<thing>)(?P<tail>.*)$",
        rf"^(?P<place>[\w .'-]+?) {_THING}(?P<tail>)$",
        (
            rf"\b(?:what|which)(?: {_KIND})? {_THING} (?:do we|do they|does it|is it|have we)"
            r"(?: have| got)?(?P<tail>.*)$"
        ),
    )
)
_PREPOSITION: Final = re.compile(r"^(?:in|at|for|of)\s+", re.IGNORECASE)
_LIST: Final = re.compile(r"\s*,\s*(?:and\s+)?|\s+and\s+(?:in\s+)?", re.IGNORECASE)
_EDGES: Final = re.compile(rf"^(?:\s*,?\s*{_NOW}\b)+|(?:\s*,?\s*\b{_NOW})+$", re.IGNORECASE)
_DATES: Final = frozenset(
    {"date", "day", "weekday", "month", "year", "day of the week", "day of the month"}
)
_NO_PLACE_ZONE: Final = "UTC"


def time_questions(clause: str) -> list[TimeQuestion] | str:
    """The questions of a clause, one a place.

    A clause that asks for something else gives an empty list; one that asks for the time of a place
    that no rule knows gives that place as a string.
    """
    text = " ".join(clause.strip(" ?!.").split())
    if len(text) > _MAX_CLAUSE_CHARS:
        return []
    for form in _FORMS:
        match = form.search(text)
        if match is not None:
            questions = _questions(match)
            if questions or isinstance(questions, str):
                return questions
    return []


def _questions(match: re.Match[str]) -> list[TimeQuestion] | str:
    wants_date = match["thing"].lower() in _DATES
    tail = _bare(match["tail"])
    places = [match.groupdict().get("place") or "", *_places(tail)]
    if tail and len(places) == 1:
        return []
    named = [place for place in places if place]
    unknown = [place for place in named if zone_of(place) is None]
    if unknown:
        return unknown[0] if not match.groupdict().get("place") and _is_name(unknown[0]) else []
    if not named:
        return [TimeQuestion("", _NO_PLACE_ZONE, wants_date)]
    return [TimeQuestion(place, zone_of(place) or _NO_PLACE_ZONE, wants_date) for place in named]


def _places(tail: str) -> list[str]:
    """The places that a tail such as "in Tokyo, Paris and Rome" lists."""
    preposition = _PREPOSITION.match(tail)
    if preposition is None:
        return []
    listed = tail[preposition.end() :]
    if zone_of(listed) is not None:
        return [listed]
    whole_first = listed.split(",", maxsplit=1)[0]
    parts = [_bare(part) for part in _LIST.split(listed)]
    # "Paris, France" is one place; "Paris, Rome" are two, of which each has a zone of its own.
    if len(parts) == 2 and "," in listed and " and " not in listed:
        zones = {zone_of(part) for part in parts}
        if None in zones or len(zones) == 1:
            return [whole_first]
    return [part for part in parts if part]


def _bare(text: str) -> str:
    """A text without words such as "right now" at its ends."""
    return _EDGES.sub("", text.strip(" ,?!.")).strip(" ,?!.")


def _is_name(place: str) -> bool:
    """Whether it reads like the name of a place: capital letters, no digits."""
    return place[:1].isupper() and not any(character.isdigit() for character in place)
