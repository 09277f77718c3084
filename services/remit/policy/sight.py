"""What a set of policies can tell of a question: the names they say, and the tests they make. Pure.

Policies say names (`User::"orgs/acme/users/alice"`) and test facts of the arguments (`common_path
like "/reports/*"`). Cedar compares names and never looks inside one, and a condition depends on
a fact through its tests alone. So two questions that agree in the tests, and in which names
are which, get the same answer (likeness.py). A fact that is used in any other way counts whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, Final, TypeAlias

from cedarpy import pst

_CONTEXT: Final = pst.Var("context")
_CALL: Final = pst.GetAttr(_CONTEXT, "tool_call")
_FACTS: Final = pst.GetAttr(_CALL, "facts")
_RECORDS: Final = frozenset({_CONTEXT, _CALL, _FACTS})
STRINGS: Final = ("common_path",)
SETS: Final = ("path_prefixes", "hosts", "mail_domains")
DIGEST: Final = "arguments_digest"
DOUBT: Final = "repeats_doubt"
NOW: Final = "now"
_FACT_OF: Final = {
    pst.GetAttr(_CONTEXT, NOW): NOW,
    pst.GetAttr(_CALL, DIGEST): DIGEST,
    **{pst.GetAttr(_FACTS, name): name for name in (*STRINGS, *SETS)},
}
_SWAPPED: Final = {"eq": "eq", "not_eq": "not_eq", "contains_any": "contains_any"}

Pattern: TypeAlias = tuple[str, ...]
"""The texts between the wildcards of a `like`; one text is without a wildcard."""


@dataclass
class Tests:
    """How policies use one fact. `whole`: in a way that is not one of the tests below."""

    whole: bool = False
    literals: set[str] = field(default_factory=set)
    """Texts that it, or an element of it, is compared with."""
    patterns: set[Pattern] = field(default_factory=set)
    bounds: set[frozenset[str]] = field(default_factory=set)
    """Sets that are asked whether they hold all of it."""

    @cached_property
    def ordered(self) -> tuple[list[Pattern], list[frozenset[str]]]:
        """Patterns and bounds in an order; asked for once all policies were looked at."""
        return sorted(self.patterns), sorted(self.bounds, key=sorted)


class Sight:
    """What these policies can tell."""

    def __init__(self, policies: Iterable[pst.Template]) -> None:
        given = tuple(policies)
        self.names = frozenset(uid.id for uid in pst.entity_uids(given))
        """Every name that some policy says."""
        self.tests = {name: Tests() for name in _FACT_OF.values()}
        for policy in given:
            for clause in policy.clauses:
                self._look(clause.expr)

    def _look(self, root: pst.Expr) -> None:
        waiting: list[Any] = [root]
        while waiting:
            node = waiting.pop()
            fact = _FACT_OF.get(node) if isinstance(node, pst.GetAttr) else None
            if fact is not None:
                self.tests[fact].whole = True
            elif isinstance(node, pst.Var | pst.GetAttr) and node in _RECORDS:
                for tests in self.tests.values():
                    tests.whole = True
            elif not self._is_test(node):
                waiting.extend(_parts(node))

    def _is_test(self, node: object) -> bool:
        """Whether this is a test of a fact, or needs no look inside; a test is taken down."""
        if isinstance(node, pst.GetAttr | pst.HasAttr):
            return node.base in _RECORDS  # which attributes there are is part of the likeness
        if isinstance(node, pst.Like):
            fact = _fact(node.base)
            return fact is not None and self._like(fact, node.pattern)
        if isinstance(node, pst.UnaryOp) and node.op == "is_empty":
            fact = _fact(node.arg)
            return fact in SETS and self._bound(fact, frozenset())
        if isinstance(node, pst.BinaryOp):
            return self._compared(node.op, node.left, node.right)
        return False

    def _like(self, fact: str, pattern: tuple[pst.Char | pst.Wildcard, ...]) -> bool:
        self.tests[fact].patterns.add(_texts(pattern))
        return True

    def _bound(self, fact: str | None, bound: frozenset[str]) -> bool:
        if fact is not None:
            self.tests[fact].bounds.add(bound)
        return fact is not None

    def _literals(self, fact: str, texts: Iterable[str]) -> bool:
        self.tests[fact].literals.update(texts)
        return True

    def _compared(self, op: str, left: object, right: object) -> bool:
        """A fact on one side and what is written in the policy on the other."""
        fact, written, is_left = _fact(left), _written(right), True
        if fact is None or written is None:
            fact, written, is_left = _fact(right), _written(left), False
        if fact is None or written is None or fact == NOW:
            return False
        is_set, texts = fact in SETS, written if isinstance(written, frozenset) else {written}
        one = isinstance(written, str)
        if op in {"eq", "not_eq"} and one is not is_set:
            return self._literals(fact, texts) and (one or self._bound(fact, frozenset(texts)))
        if op == "contains" and is_left is is_set and one is is_left:
            return self._literals(fact, texts)
        if op == "contains_any" and is_set and not one:
            return self._literals(fact, texts)
        if op == "contains_all" and is_set and not one:
            return self._literals(fact, texts) and (is_left or self._bound(fact, frozenset(texts)))
        return False


def _fact(node: object) -> str | None:
    return _FACT_OF.get(node) if isinstance(node, pst.GetAttr) else None


def _written(node: object) -> str | frozenset[str] | None:
    """A text, or a set of texts, that stands in the policy."""
    if isinstance(node, pst.StringLit):
        return node.value
    if isinstance(node, pst.Set):
        texts = [each.value for each in node.elements if isinstance(each, pst.StringLit)]
        return frozenset(texts) if len(texts) == len(node.elements) else None
    return None


def _texts(pattern: tuple[pst.Char | pst.Wildcard, ...]) -> Pattern:
    texts = [""]
    for each in pattern:
        if isinstance(each, pst.Char):
            texts[-1] += each.value
        else:
            texts.append("")
    return tuple(texts)


def _parts(node: object) -> Iterator[object]:
    if isinstance(node, tuple):
        yield from node
    elif isinstance(node, dict):
        yield from node.values()
    elif is_dataclass(node):
        yield from (getattr(node, each.name) for each in fields(node))


def matches(pattern: Pattern, text: str) -> bool:
    """Whether Cedar's `like` holds: a wildcard stands for any characters, also for none."""
    first, *others = pattern
    if not others:
        return text == first
    *middle, last = others
    end = len(text) - len(last)
    if not (text.startswith(first) and text.endswith(last)) or end < len(first):
        return False
    place = len(first)
    for part in middle:
        found = text.find(part, place, end)
        if found < 0:
            return False
        place = found + len(part)
    return True


def tells_of_text(tests: Tests) -> Callable[[str], object]:
    """What the tests tell of a text."""
    patterns, literals = tests.ordered[0], tests.literals
    if tests.whole:
        return str
    return lambda text: (
        text if text in literals else None,
        *(matches(pattern, text) for pattern in patterns),
    )


def tells_of_set(tests: Tests) -> Callable[[list[str]], object]:
    """What the tests tell of a set of texts."""
    bounds, literals = tests.ordered[1], tests.literals
    if tests.whole:
        return lambda texts: tuple(sorted(set(texts)))
    return lambda texts: (
        *sorted(literals.intersection(texts)),
        *(bound.issuperset(texts) for bound in bounds),
    )
