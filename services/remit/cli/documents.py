"""Messages as JSON for machines: fields named as in the contracts, integers as integers.

It follows the protobuf JSON mapping with three exceptions that scripts need: names stay in
snake_case, 64-bit integers are numbers (`jq '.cost_nanos > 0'` must mean what it says), and a
google.rpc.Status is our error with its reason and advice. Times are RFC 3339 in UTC.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf import (
    duration_pb2,
    json_format,
    struct_pb2,
    timestamp_pb2,
)
from google.protobuf.message import Message
from google.rpc import status_pb2

from remit.rpc.errors import RemitError

Document = dict[str, Any]


def to_line(document: Mapping[str, Any]) -> str:
    """One line of JSON in ASCII, so that no terminal can be told anything by it."""
    return json.dumps(document, separators=(", ", ": "))


def of_message(message: Message) -> Document:
    """The fields of a message; absent ones are left out, empty ones are not."""
    return {
        field.name: _value(message, field)
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def of_error(error: RemitError) -> Document:
    """An error with everything that it says."""
    document: Document = {
        "reason": error.reason_name,
        "code": error.code.name,
        "message": error.message,
        "next_step": error.next_step,
    }
    if error.violations:
        document["violations"] = [
            {"field": v.field, "description": v.description} for v in error.violations
        ]
    if error.quota:
        document["quota"] = [
            {"subject": q.subject, "description": q.description} for q in error.quota
        ]
    if error.retry_after_s is not None:
        document["retry_after_s"] = error.retry_after_s
    if error.metadata:
        document["metadata"] = error.metadata
    return document


def _value(message: Message, field: Any) -> Any:  # noqa: ANN401 - a descriptor; JSON
    value = getattr(message, field.name)
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        of_value = entry.fields_by_name["value"]
        return {str(key): _single(of_value, value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [_single(field, item) for item in value]
    return _single(field, value)


def _single(field: Any, value: Any) -> Any:  # noqa: ANN401 - as above
    if field.message_type is not None:
        special = _SPECIAL.get(field.message_type.full_name)
        return special(value) if special else of_message(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _of_time(value: timestamp_pb2.Timestamp | duration_pb2.Duration) -> str:
    return value.ToJsonString()


def _of_status(value: status_pb2.Status) -> Document:
    return of_error(RemitError.from_status(value))


def of_struct(value: struct_pb2.Struct) -> Document:
    """A Struct as the object that it stands for."""
    return json_format.MessageToDict(value)


_SPECIAL: Final[Mapping[str, Callable[[Any], Any]]] = {
    "google.protobuf.Timestamp": _of_time,
    "google.protobuf.Duration": _of_time,
    "google.protobuf.Struct": of_struct,
    "google.rpc.Status": _of_status,
}
