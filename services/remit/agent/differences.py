"""Where two messages of one type differ, and texts shown from where they part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import Message

MAX_VALUE_CHARS: Final = 300
_BEFORE_CHARS: Final = 40
"""Characters shown of what two texts have in common, before where they part."""


def shown(one: str, other: str) -> tuple[str, str]:
    """Two texts that differ, each cut to what may be shown, from shortly before they part."""
    start = max(0, _common_chars(one, other) - _BEFORE_CHARS)
    return _cut(one, start), _cut(other, start)


def text_of(value: Any) -> str:  # noqa: ANN401 - of any field
    """A field's value in one form."""
    if isinstance(value, Message):
        return json_format.MessageToJson(value, indent=None, sort_keys=True)
    return value.hex() if isinstance(value, bytes) else str(value)


def parts_that_differ(path: str, left: Message, right: Message) -> Iterator[tuple[str, str, str]]:
    """The fields in which two messages differ, by path, in the order of the contract."""
    for descriptor in left.DESCRIPTOR.fields:
        where, name = f"{path}.{descriptor.name}", descriptor.name
        one, other = getattr(left, name), getattr(right, name)
        there = (_is_set(left, name), _is_set(right, name))
        if one == other and there[0] == there[1]:
            continue
        message = descriptor.message_type
        if not all(there):
            yield where, text_of(one) if there[0] else "", text_of(other) if there[1] else ""
        elif message is None and not descriptor.is_repeated:
            yield where, text_of(one), text_of(other)
        elif message is None or message.GetOptions().map_entry:
            yield where, text_of(left), text_of(right)
        elif descriptor.is_repeated:
            yield from _items(where, list(one), list(other))
        else:
            yield from parts_that_differ(where, one, other)


def _is_set(message: Message, name: str) -> bool:
    """Whether a field is there; one whose absence cannot be told always is."""
    return not message.DESCRIPTOR.fields_by_name[name].has_presence or message.HasField(name)


def _items(path: str, one: list[Message], other: list[Message]) -> Iterator[tuple[str, str, str]]:
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            yield from parts_that_differ(f"{path}[{index}]", left, right)
    if len(one) != len(other):
        longer = max(one, other, key=len)
        first = text_of(longer[min(len(one), len(other))])
        where = f"{path}[{min(len(one), len(other))}]"
        yield where, first if longer is one else "", first if longer is other else ""


def _common_chars(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _cut(text: str, start: int) -> str:
    """At most so many characters as a value may have, with a mark where something is left out."""
    shown = text[start : start + MAX_VALUE_CHARS - 2]
    before = "…" if start and shown else ""
    return before + shown + ("…" if start + len(shown) < len(text) else "")
