"""Streams as server-sent events (WHATWG HTML, section 9.2), for calls that came over REST.

    id: 7
    data: {"event":{"sequence":"7",...},"sequence":"7"}

- Each message of the stream is one event of the default type, in the JSON of REST. Its `id` is the
  message's `sequence` where the contract resumes the stream after one; `Last-Event-ID` then resumes
  it, and wins over the query parameter, because a browser reconnects to the URL that it began with.
- A heartbeat (a message with nothing but its sequence) is a comment, `: heartbeat`.
- The end is `event: end` with `{}`: without it the stream was cut, and can be resumed. A browser's
  EventSource must be closed on it, or it would connect again.
- An error after the first message is `event: error` with the JSON of google.rpc.Status, and `retry`
  in milliseconds where it may be tried again. An error before it is a plain HTTP error.

The gateway writes the data of each google.api.HttpBody out as it comes. Long events are cut into
several of them, so that no message is over the transport's bound.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from google.api import httpbody_pb2
from google.protobuf import message

from remit.rpc.contracts import MethodContract
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.rest import Metadata, error_json, to_json

LAST_EVENT_ID_KEY: Final = "last-event-id"
MEDIA_TYPE: Final = "text/event-stream"
SEQUENCE: Final = "sequence"
HEARTBEAT: Final = ": heartbeat\n\n"
END: Final = "event: end\ndata: {}\n\n"
# Such a field takes the sequence of the last message received; any other asks for more than that.
_RESUMES_AFTER: Final = "after_"
_SEQUENCE: Final = re.compile(r"[0-9]{1,19}")
_MOST: Final = 2**63 - 1
_PIECE_BYTES: Final = 256 * 1024


def resumes_by_id(contract: MethodContract) -> bool:
    """Whether the sequence of the last message is all that resumes the stream."""
    return contract.stream is not None and contract.stream.resume.startswith(_RESUMES_AFTER)


def resume(contract: MethodContract, request: message.Message, metadata: Metadata) -> None:
    """Makes `request` go on after the `Last-Event-ID` of the call, if it has one.

    Raises:
        RemitError: INVALID_REQUEST; it is no sequence, or the stream cannot be resumed by one.

    """
    last = next((value for key, value in metadata if key == LAST_EVENT_ID_KEY), "")
    if not last:
        return
    if not resumes_by_id(contract) or contract.stream is None:
        raise _invalid("does not resume this stream; see its contract")
    sequence = int(last) if _SEQUENCE.fullmatch(str(last)) else _MOST + 1
    if sequence > _MOST:
        raise _invalid("is no id of an event of this stream")
    setattr(request, contract.stream.resume, sequence)


class Events:
    """Writes the messages of one stream."""

    def __init__(self, contract: MethodContract) -> None:
        self._with_ids = resumes_by_id(contract)
        self.begun = False

    def message(self, content: message.Message) -> Iterator[httpbody_pb2.HttpBody]:
        """One message, in as many pieces as it takes."""
        if _is_heartbeat(content):
            return self._pieces(HEARTBEAT)
        identity = f"id: {getattr(content, SEQUENCE)}\n" if self._with_ids else ""
        return self._pieces(f"{identity}data: {to_json(content)}\n\n")

    def end(self) -> Iterator[httpbody_pb2.HttpBody]:
        """The end of the stream, as the server meant it."""
        return self._pieces(END)

    def error(self, error: RemitError) -> Iterator[httpbody_pb2.HttpBody]:
        """The error that ends the stream."""
        retry_s = error.retry_after_s
        wait = "" if retry_s is None else f"retry: {round(retry_s * 1000)}\n"
        return self._pieces(f"{wait}event: error\ndata: {error_json(error)}\n\n")

    def _pieces(self, text: str) -> Iterator[httpbody_pb2.HttpBody]:
        data = text.encode()
        for start in range(0, len(data), _PIECE_BYTES):
            piece = httpbody_pb2.HttpBody(data=data[start : start + _PIECE_BYTES])
            if not self.begun:
                piece.content_type = MEDIA_TYPE
                self.begun = True
            yield piece


def _is_heartbeat(content: message.Message) -> bool:
    return all(field.name == SEQUENCE for field, _ in content.ListFields())


def _invalid(description: str) -> RemitError:
    return invalid_request([Violation(LAST_EVENT_ID_KEY, description)])
