"""Errors of the REST form: the JSON status, and which HTTP codes and reasons an RPC answers with.

The HTTP code follows from the canonical code by the table in `remit.rpc.rest`. A reason is general
where any RPC may meet it; what is said of a thing that is not there, or of a key used twice, is
said only by RPCs that name a thing or have a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from google.rpc import code_pb2

from remit.api.errors.v1.error_reason_pb2 import ErrorReason
from remit.rpc.contracts import MAX_MESSAGE_BYTES, MethodContract
from remit.rpc.errors import DOMAIN
from remit.rpc.rest import HTTP_STATUS
from scripts.reference import Reason, reasons

Schema = dict[str, Any]

HTTP_CODES: Final[Mapping[str, int]] = {
    code.name: http_code for code, http_code in HTTP_STATUS.items() if code.name != "OK"
} | {"UNIMPLEMENTED": 404}
"""HTTP code of each canonical code. No RPC answers UNIMPLEMENTED: the gateway does, with 404, where
a path is in no contract."""

_NOT_FOUND, _CONFLICT, _TOO_LARGE = 404, 409, 413
_NAMES: Final[Mapping[int, str]] = {
    400: "BadRequest",
    401: "Unauthenticated",
    403: "PermissionDenied",
    404: "NotFound",
    409: "Conflict",
    413: "TooLarge",
    429: "ResourceExhausted",
    499: "Cancelled",
    500: "Internal",
    503: "Unavailable",
    504: "DeadlineExceeded",
}
"""Name of the component that describes each HTTP code."""


def answers(contract: MethodContract) -> dict[str, Schema]:
    """Return the error responses of an RPC by HTTP code."""
    codes = set(_NAMES) - {_TOO_LARGE}
    if not names_a_thing(contract):
        codes.discard(_NOT_FOUND)
    if not contract.key:
        codes.discard(_CONFLICT)
    if contract.http is not None and contract.http.body:
        codes.add(_TOO_LARGE)
    known = {str(code): _reference(_NAMES[code]) for code in sorted(codes)}
    return known | {"default": _reference("Error")}


def names_a_thing(contract: MethodContract) -> bool:
    """Return whether the request names something that may not exist."""
    return bool(contract.resource) or (contract.http is not None and "{" in contract.http.path)


def components() -> dict[str, Schema]:
    """Return the responses that every RPC shares."""
    told = list(reasons())
    shared = {_NAMES[code]: _response(code, told) for code in sorted(set(_NAMES) - {_TOO_LARGE})}
    too_large = _answer(f"The body is over {MAX_MESSAGE_BYTES} bytes; the reason is `TOO_LARGE`.")
    return shared | {_NAMES[_TOO_LARGE]: too_large, "Error": _answer("Any other error.")}


def _response(http_code: int, told: Sequence[Reason]) -> Schema:
    codes = [name for name, code in HTTP_CODES.items() if code == http_code]
    lines = [f"`{'`, `'.join(codes)}`. Reasons:", ""]
    found = [reason for reason in told if code_pb2.Code.Name(reason.contract.code) in codes]
    lines += [_line(reason) for reason in found]
    waits = any(reason.contract.retryable for reason in found)
    return _answer("\n".join(lines)) | ({"headers": _RETRY_AFTER} if waits else {})


def _line(reason: Reason) -> str:
    return f"- `{reason.name.removeprefix('ERROR_REASON_')}`: {reason.comment}"


def _answer(description: str) -> Schema:
    schema = {"$ref": "#/components/schemas/Status"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_RETRY_AFTER: Final[Schema] = {
    "retry-after": {
        "description": "Seconds to wait before the same call may succeed.",
        "schema": {"type": "integer"},
    }
}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/responses/{name}"}


def schemas() -> dict[str, Schema]:
    """Return `Status` and the details that it carries."""
    return {
        "Status": {
            "type": "object",
            "description": "An error (google.rpc.Status). `ErrorInfo` is always among its details.",
            "properties": {
                "code": {
                    "type": "integer",
                    "format": "int32",
                    "description": "Canonical code, google.rpc.Code.",
                },
                "message": {"type": "string", "description": "What is wrong, for people."},
                "details": {
                    "type": "array",
                    "description": "What is wrong, for programs.",
                    "items": {"$ref": "#/components/schemas/StatusDetail"},
                },
            },
            "required": ["code", "message"],
        },
        "StatusDetail": {
            "type": "object",
            "description": "One detail; `@type` says which.",
            "oneOf": [{"$ref": f"#/components/schemas/{name}"} for name in _DETAILS],
        },
        **{name: _detail(name, properties) for name, properties in _DETAILS.items()},
    }


def _detail(name: str, properties: Schema) -> Schema:
    marker = {"const": f"type.googleapis.com/google.rpc.{name}"}
    return {
        "type": "object",
        "description": f"google.rpc.{name}: {_MEANINGS[name]}",
        "properties": {"@type": marker, **properties},
        "required": ["@type"],
        "additionalProperties": True,  # Google's, not ours: only what Remit sets is named
    }


def _list_of(**texts: str) -> Schema:
    properties = {name: {"type": "string", "description": text} for name, text in texts.items()}
    items = {"type": "object", "properties": properties, "additionalProperties": True}
    return {"type": "array", "items": items}


_REASONS: Final = [name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()[1:]]
_MEANINGS: Final[Mapping[str, str]] = {
    "ErrorInfo": "the reason, and in its metadata `next_step`, what to do.",
    "BadRequest": "every field at fault.",
    "QuotaFailure": "the limits that refused.",
    "RetryInfo": "the same call may succeed after this time.",
}
_DETAILS: Final[Mapping[str, Schema]] = {
    "ErrorInfo": {
        "reason": {
            "type": "string",
            "enum": _REASONS,
            "description": "One of the reasons in docs/ERRORS.md.",
        },
        "domain": {"const": DOMAIN},
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "BadRequest": {
        "fieldViolations": _list_of(field="Path of the field.", description="What is wrong."),
    },
    "QuotaFailure": {
        "violations": _list_of(subject="The limit.", description="What it is."),
    },
    "RetryInfo": {
        "retryDelay": {
            "type": "string",
            "pattern": r"^[0-9]+(\.[0-9]{1,9})?s$",
            "description": "Seconds to wait.",
        },
    },
}
