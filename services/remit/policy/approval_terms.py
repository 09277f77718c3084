"""What `@approval("team:ops; quorum=2; expires=24h")` on a policy says: who approves, how long.

A permit with it permits once people have approved; a forbid with it forbids until they have. Of
several that apply every one must be met: nobody's approval stands for another's. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

ANNOTATION: Final = "approval"
MAX_QUORUM: Final = 10
MAX_APPROVERS: Final = 20
DEFAULT_EXPIRY_S: Final = 86_400
MIN_EXPIRY_S: Final = 60
MAX_EXPIRY_S: Final = 30 * 86_400
_APPROVER: Final = re.compile(
    r"(?:team|role|user):[A-Za-z0-9](?:[A-Za-z0-9._@-]{0,98}[A-Za-z0-9])?"
)
_QUORUM: Final = re.compile(r"quorum=([0-9]{1,3})")
_EXPIRES: Final = re.compile(r"expires=([0-9]{1,6})([smhd])")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_FORM: Final = '"team:ops, role:admin; quorum=2; expires=24h"'


@dataclass(frozen=True)
class Rule:
    """What one policy wants."""

    approvers: tuple[str, ...]
    """Any of these may approve: `team:ops`, `role:admin`, `user:alice`, sorted."""
    quorum: int
    """How many different people must."""

    def is_met(self, voices: Iterable[frozenset[str]]) -> bool:
        """Whether enough of those who approved were asked; each is given by what they are."""
        return sum(1 for words in voices if words.intersection(self.approvers)) >= self.quorum


@dataclass(frozen=True)
class Terms:
    """What the policies that apply want together."""

    rules: tuple[Rule, ...]
    expiry_s: int

    @property
    def approvers(self) -> tuple[str, ...]:
        """Everybody who is asked, by any rule."""
        return tuple(sorted({who for rule in self.rules for who in rule.approvers}))

    @classmethod
    def of(cls, several: Sequence[Terms]) -> Terms:
        """All of them together: every rule, and the shortest time."""
        rules = dict.fromkeys(rule for terms in several for rule in terms.rules)
        return cls(tuple(rules), min(terms.expiry_s for terms in several))


def parsed_terms(text: str | None) -> Terms:
    """Read an annotation. Raises ValueError that says what is wrong with it."""
    approvers: tuple[str, ...] = ()
    found: dict[str, int] = {}
    for part in (part.strip() for part in (text or "").split(";")):
        if match := _QUORUM.fullmatch(part):
            _once(found, "quorum", int(match[1]))
        elif match := _EXPIRES.fullmatch(part):
            _once(found, "expires", int(match[1]) * _UNIT_S[match[2]])
        elif not approvers and part:
            approvers = _approvers(part)
        else:
            raise ValueError(_unreadable(part))
    if not approvers:
        message = f"names nobody who may approve; it is written {_FORM}"
        raise ValueError(message)
    quorum = _within(found.get("quorum", 1), 1, MAX_QUORUM, "quorum")
    expiry_s = found.get("expires", DEFAULT_EXPIRY_S)
    expiry_s = _within(expiry_s, MIN_EXPIRY_S, MAX_EXPIRY_S, "expires, in seconds,")
    return Terms((Rule(approvers, quorum),), expiry_s)


def terms_of(annotations: Mapping[str, str | None]) -> Terms | None:
    """What a policy with these annotations wants. Raises ValueError where it is not understood."""
    return parsed_terms(annotations[ANNOTATION]) if ANNOTATION in annotations else None


def words_of(user: str, team: str, roles: Iterable[str]) -> frozenset[str]:
    """What a person is, in the words of the annotation; takes full names."""
    words = {f"user:{user.rpartition('/')[2]}", *(f"role:{role}" for role in roles)}
    return frozenset(words | ({f"team:{team.rpartition('/')[2]}"} if team else set()))


def _approvers(part: str) -> tuple[str, ...]:
    named = [word.strip() for word in part.split(",")]
    for word in named:
        if not _APPROVER.fullmatch(word):
            raise ValueError(_unreadable(word))
    if len(named) > MAX_APPROVERS:
        message = f"names {len(named)} approvers; {MAX_APPROVERS} are the most"
        raise ValueError(message)
    return tuple(sorted(set(named)))


def _once(found: dict[str, int], name: str, value: int) -> None:
    if name in found:
        message = f"says {name} twice"
        raise ValueError(message)
    found[name] = value


def _within(value: int, least: int, most: int, what: str) -> int:
    if not least <= value <= most:
        message = f"{what} is {value}; it is from {least} to {most}"
        raise ValueError(message)
    return value


def _unreadable(part: str) -> str:
    return f"says {part!r}, which is not understood; it is written {_FORM}"


def wanted(identifiers: Sequence[str], terms: Mapping[str, Terms]) -> Terms | None:
    """What the policies want together that determined an answer, by their `@id`.

    None where one of them wants no approval: then none of the others changes the answer.
    """
    if not identifiers or any(identifier not in terms for identifier in identifiers):
        return None
    return Terms.of([terms[identifier] for identifier in identifiers])
