"""Page tokens: where a list goes on, opaque to callers and bound to the list they came from."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Final, TypeVar

from remit.pricing import INT64_MAX
from remit.rpc.errors import RemitError, Violation, invalid_request

DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 200
_MAX_TOKEN_CHARS: Final = 2048

First = TypeVar("First", str, int)
Second = TypeVar("Second", str, int)


def page_size_of(asked: int) -> int:
    """Rows of a page: 0 asks for the default, too many get the most. Raises INVALID_REQUEST."""
    if asked < 0:
        raise invalid_request([Violation("page_size", f"is {asked}; it is at least 0")])
    return min(asked or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def encode_token(place: tuple[str | int, str | int], query: str) -> str:
    """A token that goes on after `place`, the sort key of a row, in the list of `query`."""
    content = json.dumps([*place, _digest(query)], separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode()


def decode_token(
    token: str, query: str, kinds: tuple[type[First], type[Second]]
) -> tuple[First, Second] | None:
    """Where to go on; None for the beginning.

    `kinds` are the types of the sort key. Raises INVALID_REQUEST for another list's token.
    """
    if not token:
        return None
    if len(token) > _MAX_TOKEN_CHARS:
        raise _invalid("is longer than any token")
    try:
        content = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
        first, second, digest = content
    except (binascii.Error, ValueError, TypeError) as error:
        raise _invalid("is not a token of this list") from error
    if digest != _digest(query):
        raise _invalid("belongs to a list with other parameters; begin again without it")
    if not (_is_part(first, kinds[0]) and _is_part(second, kinds[1])):
        raise _invalid("is not a token of this list")
    return first, second


def _is_part(value: object, kind: type[str | int]) -> bool:
    if isinstance(value, str):
        return kind is str and value.isprintable()
    return kind is int and type(value) is int and 0 <= value <= INT64_MAX


def _digest(query: str) -> str:
    return hashlib.sha256(query.encode()).hexdigest()[:16]


def _invalid(fault: str) -> RemitError:
    return invalid_request([Violation("page_token", fault)])
