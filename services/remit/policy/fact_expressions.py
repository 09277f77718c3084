"""Cedar expressions over the facts of a call, or over its time, as functions. Pure.

An answer depends on such an expression through its value alone, which is mostly true or false. Only
what Cedar does for certain is here: for any other expression there is no function. The property
tests compare each operator with Cedar's own answer.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, Literal, TypeAlias

from cedarpy import pst

Kind: TypeAlias = Literal["bool", "string", "set", "long", "datetime", "duration"]
Seen: TypeAlias = Mapping[str, Any]
"""Facts by name: texts, frozen sets of texts, and `now` in milliseconds since 1970."""
Pattern: TypeAlias = tuple[str, ...]
"""The texts between the wildcards of a `like`; one text is without a wildcard."""

CONTEXT: Final = pst.Var("context")
CALL: Final = pst.GetAttr(CONTEXT, "tool_call")
FACTS: Final = pst.GetAttr(CALL, "facts")
STRINGS: Final = ("common_path",)
SETS: Final = ("path_prefixes", "hosts", "mail_domains")
DIGEST: Final = "arguments_digest"
NOW: Final = "now"

_DAY_MS: Final = 86_400_000
_UNITS_MS: Final = (_DAY_MS, 3_600_000, 60_000, 1_000, 1)
_MOST: Final = 2**63
"""Cedar counts in 64 bits, with a sign."""
_DATETIME: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:T(\d\d):(\d\d):(\d\d)(?:\.(\d{3}))?(?:Z|([+-])(\d\d)(\d\d)))?",
    re.ASCII,
)
_DURATION: Final = re.compile(
    r"(-?)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?", re.ASCII
)


@dataclass(frozen=True)
class Expression:
    """An expression that reads `facts` and nothing else, and what it gives.

    `value` raises OverflowError where Cedar does not get a value.
    """

    kind: Kind
    facts: frozenset[str]
    value: Callable[[Seen], Any]


def _fact(kind: Kind, name: str) -> Expression:
    return Expression(kind, frozenset({name}), operator.itemgetter(name))


FACT_OF: Final[dict[object, Expression]] = {
    pst.GetAttr(CONTEXT, NOW): _fact("datetime", NOW),
    pst.GetAttr(CALL, DIGEST): _fact("string", DIGEST),
    **{pst.GetAttr(FACTS, name): _fact("string", name) for name in STRINGS},
    **{pst.GetAttr(FACTS, name): _fact("set", name) for name in SETS},
}


def expression(node: object) -> Expression | None:
    """The function that an expression is; None for one that is not of facts alone."""
    match node:
        case pst.StringLit(value):
            found: Expression | None = _constant("string", value)
        case pst.LongLit(value):
            found = _constant("long", value)
        case pst.GetAttr():
            found = FACT_OF.get(node)
        case pst.Set():
            found = _set(node)
        case pst.Like():
            found = _like(node)
        case pst.UnaryOp():
            found = _unary(node)
        case pst.BinaryOp():
            found = _binary(node)
        case _:
            found = None
    return found


def _constant(kind: Kind, value: object) -> Expression:
    return Expression(kind, frozenset(), lambda _: value)


def _set(node: pst.Set) -> Expression | None:
    texts = [text for each in node.elements if (text := expression(each)) is not None]
    if len(texts) < len(node.elements) or any(text.kind != "string" for text in texts):
        return None
    facts = frozenset[str]().union(*(text.facts for text in texts))
    if not facts:
        return _constant("set", frozenset(text.value({}) for text in texts))
    return Expression("set", facts, lambda seen: frozenset(text.value(seen) for text in texts))


def _like(node: pst.Like) -> Expression | None:
    text, pattern = expression(node.base), _pattern(node.pattern)
    if text is None or text.kind != "string":
        return None
    value = text.value
    return Expression("bool", text.facts, lambda seen: matches(pattern, value(seen)))


def _unary(node: pst.UnaryOp) -> Expression | None:
    if node.op in ("datetime", "duration"):
        if not isinstance(node.arg, pst.StringLit):
            return None
        read = _datetime_ms if node.op == "datetime" else _duration_ms
        value_ms = read(node.arg.value)
        return None if value_ms is None else _constant(node.op, value_ms)
    operand = expression(node.arg)
    known = _UNARY.get((node.op, operand.kind)) if operand else None
    if operand is None or known is None:
        return None
    kind, does = known
    value = operand.value
    return Expression(kind, operand.facts, lambda seen: does(value(seen)))


def _binary(node: pst.BinaryOp) -> Expression | None:
    left, right = expression(node.left), expression(node.right)
    if left is None or right is None:
        return None
    known = _BINARY.get((node.op, left.kind, right.kind))
    if known is None:
        return None
    kind, does = known
    one, other = left.value, right.value
    return Expression(kind, left.facts | right.facts, lambda seen: does(one(seen), other(seen)))


def _checked(number: int) -> int:
    if not -_MOST <= number < _MOST:
        raise OverflowError
    return number


def _whole_units(unit_ms: int) -> Callable[[int], int]:
    """How many units a duration has, without the part that is left, as in most languages."""
    return lambda span_ms: span_ms // unit_ms if span_ms >= 0 else -(-span_ms // unit_ms)


_UNARY: Final[dict[tuple[str, Kind], tuple[Kind, Callable[[Any], object]]]] = {
    ("is_empty", "set"): ("bool", operator.not_),
    ("to_date", "datetime"): ("datetime", lambda time_ms: _checked(time_ms - time_ms % _DAY_MS)),
    ("to_time", "datetime"): ("duration", lambda time_ms: time_ms % _DAY_MS),
    **{
        (f"to_{unit}", "duration"): ("long", _whole_units(unit_ms))
        for unit, unit_ms in zip(
            ("days", "hours", "minutes", "seconds", "milliseconds"), _UNITS_MS, strict=True
        )
    },
}
_EQUAL: Final[tuple[Kind, ...]] = ("string", "set", "long", "datetime", "duration")
_ORDERED: Final[tuple[Kind, ...]] = ("long", "datetime", "duration")
_BINARY: Final[dict[tuple[str, Kind, Kind], tuple[Kind, Callable[[Any, Any], object]]]] = {
    **{("eq", kind, kind): ("bool", operator.eq) for kind in _EQUAL},
    **{("not_eq", kind, kind): ("bool", operator.ne) for kind in _EQUAL},
    **{("less", kind, kind): ("bool", operator.lt) for kind in _ORDERED},
    **{("less_eq", kind, kind): ("bool", operator.le) for kind in _ORDERED},
    **{("greater", kind, kind): ("bool", operator.gt) for kind in _ORDERED},
    **{("greater_eq", kind, kind): ("bool", operator.ge) for kind in _ORDERED},
    ("contains", "set", "string"): ("bool", operator.contains),
    ("contains_all", "set", "set"): ("bool", frozenset.issuperset),
    ("contains_any", "set", "set"): ("bool", lambda one, other: not one.isdisjoint(other)),
    ("offset", "datetime", "duration"): ("datetime", lambda one, other: _checked(one + other)),
    ("duration_since", "datetime", "datetime"): (
        "duration",
        lambda one, other: _checked(one - other),
    ),
}


def _datetime_ms(text: str) -> int | None:
    """A time as it is written in a policy; None for one that is not certain."""
    found = _DATETIME.fullmatch(text)
    if found is None:
        return None
    hour, minute, second, fraction, off_hour, off_minute = (
        int(found[group] or 0) for group in (4, 5, 6, 7, 9, 10)
    )
    try:
        day = date(int(found[1]), int(found[2]), int(found[3]))
    except ValueError:
        return None
    if max(hour, off_hour) > 23 or max(minute, second, off_minute) > 59:
        return None
    east_ms = (off_hour * 60 + off_minute) * 60_000 * (-1 if found[8] == "-" else 1)
    days = day.toordinal() - date(1970, 1, 1).toordinal()
    return days * _DAY_MS + ((hour * 60 + minute) * 60 + second) * 1_000 + fraction - east_ms


def _duration_ms(text: str) -> int | None:
    """A duration as it is written in a policy; None for one that is not certain."""
    found = _DURATION.fullmatch(text)
    if found is None or not any(found.groups()[1:]):
        return None
    counts = [int(each or 0) for each in found.groups()[1:]]
    span_ms = sum(count * unit_ms for count, unit_ms in zip(counts, _UNITS_MS, strict=True))
    return None if span_ms >= _MOST else span_ms * (-1 if found[1] else 1)


def _pattern(written: tuple[pst.Char | pst.Wildcard, ...]) -> Pattern:
    texts = [""]
    for each in written:
        if isinstance(each, pst.Char):
            texts[-1] += each.value
        else:
            texts.append("")
    return tuple(texts)


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
