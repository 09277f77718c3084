"""What is told beside a failure: a part that died explains what its clients merely suffered."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

_TELLERS: Final[dict[str, Callable[[], str]]] = {}


@contextlib.contextmanager
def telling(name: str, tell: Callable[[], str]) -> Iterator[None]:
    """While it is open, whatever fails in this test process shows what `tell` returns."""
    _TELLERS[name] = tell
    try:
        yield
    finally:
        del _TELLERS[name]


def told() -> list[tuple[str, str]]:
    """The name and words of everything that runs now."""
    return [(name, tell()) for name, tell in _TELLERS.items()]
