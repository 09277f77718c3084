"""Reads what a tool answered, whatever the shape: JSON of any form or plain text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from remit.inference.rules.offers import words

_VALUE_KEYS: Final = (
    "result", "value", "answer", "output", "content", "text", "body", "data", "message",
)  # fmt: skip
_LIST_KEYS: Final = ("hits", "results", "matches", "documents", "items", "files", "passages")
_PLACE_KEYS: Final = ("path", "file", "name", "title", "url", "source", "id")
_PASSAGE_KEYS: Final = ("snippet", "text", "passage", "excerpt", "line", "content", "summary")
_MAX_DEPTH: Final = 8


@dataclass(frozen=True)
class ToolResult:
    """A tool's answer; `failed` means that `text` says why there is none."""

    text: str
    failed: bool = False

    @property
    def data(self) -> object:
        """The text as JSON, or itself where it is none."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            return self.text

    def value(self) -> str:
        """The one value that the answer is about, as text."""
        return _shown(_principal(self.data))

    def states(self, key: str, value: object) -> bool:
        """Whether the answer is an object that holds this value under the key."""
        data = self.data
        return isinstance(data, dict) and data.get(key) == value

    def moment(self) -> datetime | None:
        """The first date and time with an offset (ISO 8601) in the answer, if there is one."""
        for text in _strings(self.data):
            found = _moment(text)
            if found is not None:
                return found
        return None

    def hits(self) -> list[str] | None:
        """The lines of a list of findings; None if the answer holds no list."""
        found = _list(self.data)
        return None if found is None else [_hit(item) for item in found]


def _principal(data: object) -> object:
    """The main value of an object: by its key, or the only one there is."""
    if isinstance(data, list) and len(data) == 1:
        return _principal(data[0])
    if not isinstance(data, dict):
        return data
    for key in _VALUE_KEYS:
        for name, value in data.items():
            if key in words(name) and value is not None:
                return _principal(value)
    return next(iter(data.values())) if len(data) == 1 else data


def _shown(value: object) -> str:
    """A scalar as people write it; anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _strings(data: object, depth: int = 0) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif depth < _MAX_DEPTH:
        nested = data.values() if isinstance(data, dict) else data
        for item in nested if isinstance(nested, list | type({}.values())) else ():
            yield from _strings(item, depth + 1)


def _moment(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def _list(data: object) -> Sequence[object] | None:
    if isinstance(data, list):
        return data
    if isinstance(data, dict):
        keyed = (data.get(key) for key in _LIST_KEYS)
        return next((v for v in (*keyed, *data.values()) if isinstance(v, list)), None)
    return None


def _hit(item: object) -> str:
    if not isinstance(item, Mapping):
        return _shown(item)
    place = next((item[key] for key in _PLACE_KEYS if item.get(key)), None)
    passage = next((item[key] for key in _PASSAGE_KEYS if item.get(key)), None)
    parts = [" ".join(_shown(part).split()) for part in (place, passage) if part is not None]
    return ": ".join(parts) or _shown(item)
