"""How much of an error fits into the metadata that carries it.

gRPC sends a status twice at the end of a call: the message percent-encoded in `grpc-message`, and
the whole in base64 in `grpc-status-details-bin`. A client refuses metadata over 8 KiB, and so loses
the error. Envoy closes the connection to a service whose metadata is over 60 KiB, with the calls of
everybody else on it. So what is said stays far below, whatever it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from google.protobuf import message

T = TypeVar("T")
M = TypeVar("M", bound=message.Message)

MAX_STATUS_BYTES: Final = 5_000
"""A status, serialised; 6,668 characters in base64."""
MAX_MESSAGE_BYTES: Final = 1_000
"""The message, percent-encoded."""
_MAX_METADATA_BYTES: Final = 2_500
_MAX_TEXT_BYTES: Final = 500
_PLAIN: Final = frozenset(map(chr, range(0x20, 0x7F))) - {"%"}
_ENCODED_BYTES: Final = 3
_FRAME_BYTES: Final = 8
"""At most what tags and lengths add to one element of a list, or to a list in a status."""


def fitting_message(text: str) -> str:
    """The beginning of a message that fits when it is percent-encoded."""
    return _beginning(text, MAX_MESSAGE_BYTES, _encoded_bytes)


def fitting_text(text: str) -> str:
    """The beginning of a field's name, a description or a value of metadata, in UTF-8."""
    return _beginning(text, _MAX_TEXT_BYTES, _utf8_bytes)


def fitting_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The entries that fit, in their order; a value has at most the bytes of a message."""
    fitting: dict[str, str] = {}
    left = _MAX_METADATA_BYTES
    for key, whole in metadata.items():
        value = _beginning(whole, MAX_MESSAGE_BYTES, _utf8_bytes)
        size = len(_whole(key).encode()) + len(value.encode()) + _FRAME_BYTES
        if size <= left:
            fitting[_whole(key)] = value
            left -= size
    return fitting


def fitting_entries(
    entries: Sequence[T], room_bytes: int, made: Callable[[T], M], more: Callable[[int], M]
) -> list[M]:
    """The first entries that fit into the room; where some do not, the last says how many.

    What fitted once fits again, with that last one: an error may be passed on.
    """
    fitting: list[M] = []
    left = room_bytes - _FRAME_BYTES
    for entry in entries:
        one = made(entry)
        left -= _size(one)
        if left < 0:
            return _with_number(fitting, left + _size(one), len(entries), more)
        fitting.append(one)
    return fitting


def _with_number(
    fitting: list[M], left_bytes: int, entries: int, more: Callable[[int], M]
) -> list[M]:
    left = left_bytes - _size(more(entries))
    while left < 0 and fitting:
        left += _size(fitting.pop())
    return [*fitting, more(entries - len(fitting))]


def _size(element: message.Message) -> int:
    return element.ByteSize() + _FRAME_BYTES


def _beginning(text: str, most_bytes: int, size_of: Callable[[str], int]) -> str:
    """Whole characters; one that no encoding knows (half a surrogate pair) is a question mark."""
    text = _whole(text[:most_bytes])
    while (over := size_of(text) - most_bytes) > 0:
        # A character takes 12 bytes at most, so that few rounds are needed and none cuts too much.
        text = text[: -max(1, over // 12)]
    return text


def _whole(text: str) -> str:
    return text.encode(errors="replace").decode()


def _utf8_bytes(text: str) -> int:
    return len(text.encode())


def _encoded_bytes(text: str) -> int:
    return sum(1 if char in _PLAIN else _ENCODED_BYTES * len(char.encode()) for char in text)
