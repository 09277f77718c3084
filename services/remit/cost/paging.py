"""Page tokens: where a list goes on, opaque to callers and bound to the list they came from."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final, TypeVar, cast

from remit.pricing import INT64_MAX
from remit.rpc.errors import RemitError, Violation, invalid_request

DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 200
_MAX_TOKEN_CHARS: Final = 2048
_FOREIGN: Final = "is not a token of this list"

First = TypeVar("First", str, int)
Second = TypeVar("Second", str, int)


def page_size_of(asked: int) -> int:
    """Rows of a page: 0 asks for the default, too many get the most. Raises INVALID_REQUEST."""
    if asked < 0:
        raise invalid_request([Violation("page_size", f"is {asked}; it is at least 0")])
    return min(asked or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def encode_token(place: Sequence[str | int], query: str) -> str:
    """A token that goes on after `place`, the sort key of a row, in the list of `query`."""
    content = json.dumps([*place, _digest(query)], separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode()


def check_token(token: str) -> None:
    """Raises INVALID_REQUEST for what is no token at all, of whichever list."""
    if token:
        _content(token)


def decode_token(
    token: str, query: str, kinds: tuple[type[First], type[Second]]
) -> tuple[First, Second] | None:
    """Where to go on; None for the beginning.

    `kinds` are the types of the sort key. Raises INVALID_REQUEST for another list's token.
    """
    place = _decode(token, query, kinds)
    if place is None:
        return None
    first, second = place
    return cast("First", first), cast("Second", second)


def decode_texts(token: str, query: str, count: int) -> tuple[str, ...] | None:
    """Where to go on in a list whose sort key is `count` texts; None for the beginning.

    Raises INVALID_REQUEST for another list's token.
    """
    place = _decode(token, query, (str,) * count)
    return None if place is None else tuple(map(str, place))


def invalid_token(fault: str) -> RemitError:
    """INVALID_REQUEST about the page token."""
    return invalid_request([Violation("page_token", fault)])


def _decode(token: str, query: str, kinds: Sequence[type[str | int]]) -> Sequence[str | int] | None:
    if not token:
        return None
    *place, digest = _content(token)
    if digest != _digest(query):
        raise invalid_token("belongs to a list with other parameters; begin again without it")
    if len(place) != len(kinds) or not all(map(_is_part, place, kinds)):
        raise invalid_token(_FOREIGN)
    return place


def _content(token: str) -> list[Any]:
    if len(token) > _MAX_TOKEN_CHARS:
        raise invalid_token("is longer than any token")
    try:
        content = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    # Brackets within brackets without end are one fault more than a token can have.
    except (binascii.Error, ValueError, RecursionError) as error:
        raise invalid_token(_FOREIGN) from error
    if not isinstance(content, list) or not content:
        raise invalid_token(_FOREIGN)
    return content


def _is_part(value: object, kind: type[str | int]) -> bool:
    if isinstance(value, str):
        return kind is str and value.isprintable()
    return kind is int and type(value) is int and 0 <= value <= INT64_MAX


def _digest(query: str) -> str:
    return hashlib.sha256(query.encode()).hexdigest()[:16]
