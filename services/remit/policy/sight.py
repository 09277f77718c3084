"""What a set of policies can tell of a question: the names they say, and the tests they make. Pure.

Policies say names (`User::"orgs/acme/users/alice"`) and test facts of the arguments (`common_path
like "/reports/*"`) and the time (`context.now.toTime() < duration("8h")`). Cedar compares names and
never looks inside one, and a condition depends on facts through the values of the expressions that
are over facts alone. So two questions that agree in these, and in which names are which, get the
same answer (likeness.py). A fact that is used in any other way counts whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

import cedarpy
from cedarpy import pst

from remit.policy.fact_expressions import (
    CALL,
    CONTEXT,
    FACT_OF,
    FACTS,
    NOW,
    Expression,
    Seen,
    expression,
)

_RECORDS: Final = frozenset({CONTEXT, CALL, FACTS})
_POLICIES_REMEMBERED: Final = 16_384

Tell: TypeAlias = Callable[[Seen], object]
"""Something that policies can tell of the facts, in a form that may be compared."""


class Sight:
    """What these policies, each with its text, can tell."""

    def __init__(self, policies: Iterable[str]) -> None:
        looks = [_look_of(policy) for policy in policies]
        self.names = frozenset[str]().union(*(look.names for look in looks))
        """Every name that some policy says."""
        # No expression is of both: none compares a time with a text.
        tests = tuple({node: test for look in looks for node, test in look.tests.items()}.values())
        self.of_time: tuple[Tell, ...] = tuple(_tell(test) for test in tests if NOW in test.facts)
        """What they can tell of the time of a question."""
        self.of_call: tuple[Tell, ...] = (
            *(_tell(test) for test in tests if NOW not in test.facts),
            *(
                _tell_texts(FACT_OF[fact], texts)
                for fact, texts in _together(look.texts for look in looks)
            ),
            *(
                _tell_starts(FACT_OF[fact], texts)
                for fact, texts in _together(look.starts for look in looks)
            ),
        )
        """What they can tell of a tool call."""


class _Look:
    """What one policy can tell."""

    def __init__(self, policy: pst.Template) -> None:
        self.names = frozenset(uid.id for uid in pst.entity_uids(policy))
        self.tests: dict[object, Expression] = {}
        # Many policies ask for one text or its beginning: these are looked for together.
        self.texts: defaultdict[object, set[str]] = defaultdict(set)
        self.starts: defaultdict[object, set[str]] = defaultdict(set)
        for clause in policy.clauses:
            self._look(clause.expr)

    def _look(self, root: pst.Expr) -> None:
        waiting: list[Any] = [root]
        while waiting:
            node = waiting.pop()
            if isinstance(node, pst.Var | pst.GetAttr) and node in _RECORDS:
                self.tests |= FACT_OF
            elif not (_is_of_form(node) or self._one_text(node) or self._test(node)):
                waiting.extend(_parts(node))

    def _test(self, node: object) -> bool:
        found = expression(node)
        if found is not None and found.facts:
            self.tests[node] = found
        return found is not None

    def _one_text(self, node: object) -> bool:
        """Whether it asks for one text, or for what begins with one."""
        if isinstance(node, pst.Like):
            return self._one_start(node)
        if not isinstance(node, pst.BinaryOp) or node.op not in {"eq", "not_eq", "contains"}:
            return False
        for fact, text in ((node.left, node.right), (node.right, node.left)):
            if fact in FACT_OF and isinstance(text, pst.StringLit) and expression(node):
                self.texts[fact].add(text.value)
                return True
        return False

    def _one_start(self, node: pst.Like) -> bool:
        *written, last = node.pattern or (None,)
        texts = [each.value for each in written if isinstance(each, pst.Char)]
        is_start = isinstance(last, pst.Wildcard) and len(texts) == len(written)
        if not is_start or node.base not in FACT_OF:
            return False
        self.starts[node.base].add("".join(texts))
        return True


@lru_cache(_POLICIES_REMEMBERED)
def _look_of(policy: str) -> _Look:
    (written,) = cedarpy.PolicySet.from_str(policy).to_pst().static_policies.values()
    return _Look(written)


def _together(asked: Iterable[Mapping[object, set[str]]]) -> Iterable[tuple[object, set[str]]]:
    """The texts that all policies together ask a fact for."""
    together: defaultdict[object, set[str]] = defaultdict(set)
    for each in asked:
        for fact, texts in each.items():
            together[fact] |= texts
    return together.items()


def _is_of_form(node: object) -> bool:
    """An attribute that is part of the likeness, or whether there is one."""
    if not isinstance(node, pst.GetAttr | pst.HasAttr):
        return False
    return node.base in _RECORDS and node not in FACT_OF


def _tell(test: Expression) -> Tell:
    value, is_set = test.value, test.kind == "set"

    def tell(seen: Seen) -> object:
        try:
            found = value(seen)
        except OverflowError:
            return "overflow"
        return tuple(sorted(found)) if is_set else found

    return tell


def _tell_texts(fact: Expression, texts: set[str]) -> Tell:
    value, is_set = fact.value, fact.kind == "set"

    def tell(seen: Seen) -> object:
        found = value(seen)
        if is_set:
            return tuple(sorted(texts & found))
        return found if found in texts else None

    return tell


def _tell_starts(fact: Expression, starts: set[str]) -> Tell:
    """Which of the texts it begins with: by lengths, of which there are fewer than texts."""
    value, lengths = fact.value, sorted({len(start) for start in starts})

    def tell(seen: Seen) -> object:
        text = value(seen)
        return tuple(start for length in lengths if (start := text[:length]) in starts)

    return tell


def _parts(node: object) -> Iterator[object]:
    if isinstance(node, tuple):
        yield from node
    elif isinstance(node, dict):
        yield from node.values()
    elif is_dataclass(node):
        yield from (getattr(node, each.name) for each in fields(node))
