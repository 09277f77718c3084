"""Typos for documents, to prove that the checks find them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of every text and number."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from leaves(value, (*path, index))
    elif isinstance(node, str | int) and not isinstance(node, bool):
        yield path


def mistyped(document: Any, path: tuple[Any, ...]) -> Any:
    """The document with one letter more in one place."""
    if not path:
        return document + 1 if isinstance(document, int) else f"{document}x"
    changed = document.copy()  # what is beside the path is shared
    changed[path[0]] = mistyped(document[path[0]], path[1:])
    return changed
