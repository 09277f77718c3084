"""Calls that came as JSON over HTTP: how bodies are read, and what errors get besides.

The gateway's transcoder maps verb, path and query parameters (`remit.gateway.transcoder`) and marks
the call with `x-envoy-original-method`, which no client can send. A body it passes on as it came,
as a `google.api.HttpBody` in one more field of the request. It is read strictly: `application/json`
in UTF-8, no unknown fields, no wrong types, no contradiction of the path, no query parameters that
the body could hold, or the path holds. Every fault is INVALID_REQUEST and names the field.

An error is the JSON form of google.rpc.Status, `{"code", "message", "details"}`, under the HTTP
status that google/rpc/code.proto names; one that may be tried again has `retry-after`.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Final, NoReturn, TypeVar, cast

import grpc
from google.api import httpbody_pb2
from google.protobuf import descriptor, json_format, message, unknown_fields

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.contracts import MethodContract
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.scalars import duration_fault, fault_of

M = TypeVar("M", bound=message.Message)
Metadata = Iterable[tuple[str, str | bytes]]

TRANSCODED_KEY: Final = "x-envoy-original-method"
"""Metadata key that the gateway's transcoder adds, and that the edge takes from clients."""

ORIGINAL_PATH_KEY: Final = "x-envoy-original-path"
"""Metadata key of the URL's path and query, from the transcoder as well."""

BODY_FIELD: Final = "http_body"
BODY_FIELD_NUMBER: Final = 100_000
"""The field that Envoy alone knows: the body of a request as it came."""

HTTP_STATUS: Final[Mapping[grpc.StatusCode, int]] = MappingProxyType(
    {
        grpc.StatusCode.OK: 200,
        grpc.StatusCode.CANCELLED: 499,
        grpc.StatusCode.UNKNOWN: 500,
        grpc.StatusCode.INVALID_ARGUMENT: 400,
        grpc.StatusCode.DEADLINE_EXCEEDED: 504,
        grpc.StatusCode.NOT_FOUND: 404,
        grpc.StatusCode.ALREADY_EXISTS: 409,
        grpc.StatusCode.PERMISSION_DENIED: 403,
        grpc.StatusCode.UNAUTHENTICATED: 401,
        grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
        grpc.StatusCode.FAILED_PRECONDITION: 400,
        grpc.StatusCode.ABORTED: 409,
        grpc.StatusCode.OUT_OF_RANGE: 400,
        grpc.StatusCode.UNIMPLEMENTED: 501,
        grpc.StatusCode.INTERNAL: 500,
        grpc.StatusCode.UNAVAILABLE: 503,
        grpc.StatusCode.DATA_LOSS: 500,
    }
)
"""HTTP status of each code (google/rpc/code.proto), as the transcoder sets it."""

_VARIABLE: Final = re.compile(r"\{([a-z_.]+)")
_JSON: Final = re.compile(r'application/json\s*(;\s*charset="?utf-8"?\s*)?', re.IGNORECASE)
_KNOWN_TYPES: Final = "google.protobuf."
_DURATION: Final = "google.protobuf.Duration"
_MOST_CHARS_A_BYTE: Final = 8
"""JSON's worst: a control character of one byte is `\\u001f`, and names are spelt out."""
_MOST_FAULTS: Final = 20
_MOST_NAME_CHARS: Final = 64
# How json_format says where it stumbled: from the outermost field to the innermost, or at the end.
_STUMBLED: Final = re.compile(r"Failed to parse (\w+) field")
_PLACE: Final = re.compile(r" at \w+\.([\w.\[\]]+?)\.*$")


def is_transcoded(metadata: Metadata) -> bool:
    """Whether a call came as JSON over HTTP."""
    return any(key == TRANSCODED_KEY for key, _ in metadata)


def to_json(content: message.Message) -> str:
    """A message as REST clients get it, on one line: camelCase, default values printed."""
    return json_format.MessageToJson(
        content, indent=None, always_print_fields_with_no_presence=True
    )


def error_json(error: RemitError) -> str:
    """The body of an error: google.rpc.Status as JSON."""
    return to_json(error.to_status())


def retry_after(error: RemitError) -> str | None:
    """Value of the `retry-after` header in whole seconds; None where a retry cannot help."""
    if error.retry_after_s is None:
        return None
    return str(max(1, math.ceil(error.retry_after_s)))


def check_query(contract: MethodContract, metadata: Metadata) -> None:
    """Refuses a query parameter for what the path names, or for what Envoy alone knows.

    The transcoder binds both and lets the query win: `runs/a:cancel?name=runs/b` would cancel b.

    Raises:
        RemitError: INVALID_REQUEST naming the field.

    """
    if contract.http is None:
        return
    named = {_spelt(field): field for field in _VARIABLE.findall(contract.http.path)}
    for parameter in _query_parameters(metadata):
        if _spelt(parameter.partition(".")[0]) == _spelt(BODY_FIELD):
            raise _invalid(BODY_FIELD, "there is no such query parameter")
        if field := named.get(_spelt(parameter)):
            raise _invalid(field, "is in the path of the URL, and must not be in its query")


def _query_parameters(metadata: Metadata) -> Iterator[str]:
    urls = [str(value) for key, value in metadata if key == ORIGINAL_PATH_KEY]
    for parameter in "&".join(url.partition("?")[2] for url in urls).split("&"):
        yield urllib.parse.unquote_plus(parameter.partition("=")[0])


def _spelt(field: str) -> str:
    """What the spellings of a field have in common: `request_id`, `requestId`, `requestid`."""
    return field.replace("_", "").lower()


def read_body(contract: MethodContract, bound: M) -> M:
    """The request that path, query and body make; `bound` holds the first two, and the raw body.

    Raises:
        RemitError: INVALID_REQUEST naming what is wrong with the body, or with a query parameter;
            TOO_LARGE.

    """
    if contract.http is None:
        return bound
    body = _raw_body(bound)
    if not contract.http.body:
        return _without_body(bound, body)
    _check_size(contract, len(body.data))
    bound.DiscardUnknownFields()
    within = "" if contract.http.body == "*" else contract.http.body
    target = getattr(bound, within) if within else bound
    given = _parsed(body, type(target))
    _check_against_url(target, given, _path_fields(contract.http.path, within))
    target.MergeFrom(given)
    return bound


def _check_size(contract: MethodContract, size_bytes: int) -> None:
    """A text of so much JSON is not read to find out how small a message it makes."""
    most = contract.max_request_bytes * _MOST_CHARS_A_BYTE
    if size_bytes > most:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_TOO_LARGE,
            f"the body has {size_bytes} bytes; {contract.path.removeprefix('/')} takes at most"
            f" {most} bytes of JSON",
        )


def _without_body(bound: M, body: httpbody_pb2.HttpBody) -> M:
    if body.data:
        raise _invalid("body", "must be empty; what the call takes belongs into the URL")
    bound.DiscardUnknownFields()
    return bound


def _raw_body(bound: message.Message) -> httpbody_pb2.HttpBody:
    fields = unknown_fields.UnknownFieldSet(bound)
    found = [fields[index] for index in range(len(fields))]
    bodies = [field.data for field in found if field.field_number == BODY_FIELD_NUMBER]
    # Envoy begins with an empty one, which a query parameter of the field's name would fill.
    if any(bodies[:-1]):
        raise _invalid(BODY_FIELD, "belongs into the body, not into the query of the URL")
    return httpbody_pb2.HttpBody.FromString(bodies[-1] if bodies else b"")


def _parsed(body: httpbody_pb2.HttpBody, kind: type[M]) -> M:
    """The body as a message; an empty one is a message without fields."""
    parsed = kind()
    if not body.data:
        return parsed
    if not _JSON.fullmatch(body.content_type):
        raise _invalid("content-type", "must be application/json, in UTF-8")
    content = _loaded(body.data)
    faults = list(itertools.islice(_misshapen(_described(parsed), content, ""), _MOST_FAULTS))
    if faults:
        raise invalid_request(faults)
    try:
        return json_format.ParseDict(content, parsed)
    except (json_format.ParseError, RecursionError, OverflowError, ValueError) as error:
        # Names the field, never the value: it may be sensitive.
        raise _invalid(_place_of(str(error)), "has a value of a wrong type or form") from error


def _described(content: message.Message) -> descriptor.Descriptor:
    return cast("descriptor.Descriptor", content.DESCRIPTOR)


def _loaded(data: bytes) -> Any:  # noqa: ANN401 - any JSON
    try:
        return json.loads(
            data.decode(), object_pairs_hook=_once, parse_constant=_no_number, parse_float=_float
        )
    except UnicodeDecodeError as error:
        raise _invalid("body", "is not UTF-8") from error
    except RecursionError as error:
        raise _invalid("body", "is nested too deeply") from error
    except ValueError as error:
        raise _invalid("body", f"is no JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        message_ = "a key stands twice in one object"
        raise ValueError(message_)
    return content


def _float(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number("one over the largest float")


def _no_number(constant: str) -> NoReturn:
    message_ = f"{constant} is no number of JSON"
    raise ValueError(message_)


def _misshapen(kind: descriptor.Descriptor, content: Any, place: str) -> Iterator[Violation]:  # noqa: ANN401
    """Unknown fields, fields said twice, values that would be changed to be read."""
    if not isinstance(content, dict):
        yield Violation(place or "body", "must be an object")
        return
    seen: set[str] = set()
    for name, value in content.items():
        field = _field(kind, name)
        inner = f"{place}.{_shown(name)}" if place else _shown(name)
        if field is None:
            yield Violation(inner, "there is no such field")
        elif field.name in seen:
            yield Violation(inner, "is given twice")
        else:
            seen.add(field.name)
            yield from _misshapen_values(field, value, inner)


def _field(kind: descriptor.Descriptor, name: str) -> descriptor.FieldDescriptor | None:
    # JSON can spell half a surrogate pair, at which the look-up itself would fail.
    if not name.isascii():
        return None
    return kind.fields_by_camelcase_name.get(name) or kind.fields_by_name.get(name)


def _shown(name: str) -> str:
    return name[:_MOST_NAME_CHARS].encode(errors="replace").decode()


def _misshapen_values(
    field: descriptor.FieldDescriptor,
    value: Any,  # noqa: ANN401 - any JSON
    place: str,
) -> Iterator[Violation]:
    kind = field.message_type
    if value is None:
        return  # an absent field
    if kind is not None and kind.GetOptions().map_entry:
        if not isinstance(value, dict):
            yield Violation(place, "must be an object")
    elif not field.is_repeated:
        yield from _misshapen_value(field, value, place)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from _misshapen_value(field, one, f"{place}[{index}]")


def _misshapen_value(
    field: descriptor.FieldDescriptor,
    value: Any,  # noqa: ANN401 - any JSON
    place: str,
) -> Iterator[Violation]:
    kind = field.message_type
    if kind is not None and not kind.full_name.startswith(_KNOWN_TYPES):
        yield from _misshapen(kind, value, place)
        return
    is_duration = kind is not None and kind.full_name == _DURATION
    fault = duration_fault(value) if is_duration else fault_of(field, value)
    if fault is not None:
        yield Violation(place, fault)


def _place_of(text: str) -> str:
    place = _PLACE.search(text)
    return place[1] if place else ".".join(_STUMBLED.findall(text)) or "body"


def _check_against_url(target: message.Message, given: message.Message, path: set[str]) -> None:
    """A body may repeat what the path says, and takes every other field for itself."""
    rest = type(target)()
    rest.CopyFrom(target)
    for field in path:
        rest.ClearField(field)
        said = getattr(given, field)
        if said and said != getattr(target, field):
            raise _invalid(field, "is not what the path of the URL says")
    for stray, _ in rest.ListFields():
        raise _invalid(stray.name, "belongs into the body, not into the query of the URL")


@cache
def _path_fields(path: str, within: str) -> set[str]:
    """Fields of the body's message that the path binds."""
    names = _VARIABLE.findall(path)
    prefix = f"{within}." if within else ""
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def _invalid(field: str, description: str) -> RemitError:
    return invalid_request([Violation(field, description)])
