"""Which questions no policy can tell apart, so that one answer is that of all. Pure.

A likeness is made of whatever policies could look at: the action, roles, class, which entities
there are and which of them are the same, and what the tests of the policies tell of the arguments
(sight.py). A name that no policy and no grant says is replaced by its place: Cedar compares names
and does nothing else with them, so an answer stays the same if they are exchanged throughout
a question. What has not exactly the form that Remit states is like itself alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, TypeAlias
from weakref import WeakKeyDictionary

from remit import names
from remit.policy.entities import TOOL_CLASSES, reference
from remit.policy.fact_expressions import DIGEST, NOW, SETS, STRINGS
from remit.policy.grants import Grant
from remit.policy.recorded import question_json
from remit.policy.rules import Question, RuleBook
from remit.policy.sight import Sight
from remit.policy.slices import Slice

Likeness: TypeAlias = tuple[object, ...]

_DOUBT: Final = "repeats_doubt"
_FACTS: Final = frozenset({*STRINGS, *SETS, "path_escapes", "incomplete"})
_IN_ORG: Final = frozenset({"Team", "User", "ApiKey"})
_NAMES_REMEMBERED: Final = 65_536
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


class Likenesses:
    """Tells which questions a book answers alike."""

    def __init__(self, book: RuleBook) -> None:
        self._book = book
        self._eyes: WeakKeyDictionary[Slice, _Eyes] = WeakKeyDictionary()

    def of(self, question: Question) -> Likeness:
        """What the book can tell of a question whose time is stated."""
        policies = self._book.slice_of(question)
        eyes = self._eyes.get(policies)
        if eyes is None:
            eyes = self._eyes[policies] = _Eyes(policies, self._book.grants_for)
        try:
            return eyes.likeness(question)
        except _OddError:
            return ("odd", question_json(question), question.requester, question.time)


class _OddError(Exception):
    """A question is not of the form that Remit states."""


class _Eyes:
    """What the policies of one slice can tell, and the grants that may apply to a question."""

    def __init__(self, policies: Slice, grants_for: Callable[[Question], list[Grant]]) -> None:
        sight = Sight(policy.text for policy in policies.policies)
        self._names = sight.names
        self._of_time, self._of_call = sight.of_time, sight.of_call
        self._grants_for = grants_for

    def likeness(self, question: Question) -> Likeness:
        """Raise _OddError for what has another form."""
        who, context = question.principal, question.context
        if not context.keys() <= {"agent", "run", "tool_call"} or not (who.user and who.org):
            raise _OddError
        kind = _type_of(question.resource)
        if kind == "Tool" and question.permission_class not in TOOL_CLASSES:
            raise _OddError
        involved = [who.user, who.org, who.team, question.resource]
        if kind in _IN_ORG:
            involved.append(_org_of(question.resource))
        elif kind == "Approval":
            involved += [question.requester, _org_of(question.requester)]
        agent, run = _entity(context, "agent", "Agent"), _entity(context, "run", "Run")
        grants = self._grants_for(question)
        said = self._names.union(*map(_said, grants)) if grants else self._names
        return (
            question.action,
            who.roles,
            question.permission_class if kind == "Tool" else 0,
            *_pattern([*involved, agent, run], said),
            self._call(context["tool_call"]) if "tool_call" in context else None,
            self._time(question.time) if self._of_time else None,
            *(_told(grant, question.time) for grant in grants),
        )

    def _call(self, call: object) -> Likeness:
        if type(call) is not dict or call.keys() - {_DOUBT} != {DIGEST, "facts"}:
            raise _OddError
        facts = call["facts"]
        if type(facts) is not dict or facts.keys() != _FACTS:
            raise _OddError
        seen: dict[str, object] = {DIGEST: _text(call[DIGEST])}
        for name in STRINGS:
            seen[name] = _text(facts[name])
        for name in SETS:
            seen[name] = _listed(facts[name])
        return (
            _flag(call[_DOUBT]) if _DOUBT in call else None,
            _flag(facts["path_escapes"]),
            _flag(facts["incomplete"]),
            *(tell(seen) for tell in self._of_call),
        )

    def _time(self, time: datetime | None) -> Likeness:
        seen = {NOW: _milliseconds(time)}
        return tuple(tell(seen) for tell in self._of_time)


def _pattern(involved: list[str], said: frozenset[str]) -> list[object]:
    """Names that are said, and for each other its type and where it stands first."""
    places: dict[str, int] = {}
    pattern: list[object] = []
    for name in involved:
        if not name or name in said:
            pattern.append(name)
        else:
            pattern.append((_type_of(name), places.setdefault(name, len(places))))
    return pattern


@lru_cache(_NAMES_REMEMBERED)
def _said(grant: Grant) -> frozenset[str]:
    """The names that a grant says."""
    return Sight([grant.policy]).names | {grant.principal, grant.tool}


def _told(grant: Grant, time: datetime | None) -> tuple[str, bool]:
    """Which grant it is, and whether it has not ended."""
    end = grant.expire_time
    return grant.name, end is None or _milliseconds(time) < _milliseconds(end)


def _entity(context: Mapping[str, object], name: str, entity_type: str) -> str:
    stated = context.get(name)
    if stated is None and name not in context:
        return ""
    if type(stated) is not dict or stated.keys() != {"__entity"}:
        raise _OddError
    named = stated["__entity"]
    if type(named) is not dict or named.keys() != {"type", "id"} or named["type"] != entity_type:
        raise _OddError
    if type(named["id"]) is not str or _type_of(named["id"]) != entity_type:
        raise _OddError
    return named["id"]


@lru_cache(_NAMES_REMEMBERED)
def _type_of(name: str) -> str:
    try:
        return reference(name)["type"]
    except ValueError:
        raise _OddError from None


@lru_cache(_NAMES_REMEMBERED)
def _org_of(name: str) -> str:
    try:
        return names.org_of(name)
    except ValueError:
        raise _OddError from None


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise _OddError
    return value


def _text(value: object) -> str:
    """A text that Cedar can read: half a surrogate pair is none."""
    if type(value) is not str or not (value.isascii() or _is_unicode(value)):
        raise _OddError
    return value


def _listed(value: object) -> frozenset[str]:
    if type(value) is not list:
        raise _OddError
    return frozenset([_text(each) for each in value])


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _milliseconds(time: datetime | None) -> int:
    """A time as Cedar is told it: whole milliseconds since 1970."""
    if time is None:
        message = "a question that is compared with others has its time"
        raise AssertionError(message)
    return (time - _BEGINNING) // _MILLISECOND
