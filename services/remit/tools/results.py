"""What a tool returns, as it is recorded and answered: a Struct and its artifacts, both bounded.

Nothing is cut short or rounded on the way: a result that a Struct cannot hold exactly, or that is
larger than its bound, is an error that says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pydantic_core
from google.protobuf import struct_pb2

from remit.api.errors.v1 import error_reason_pb2
from remit.api.tools.v1 import tool_pb2, tool_service_pb2
from remit.rpc.errors import RemitError
from remit.tools.arguments import MAX_SAFE_INTEGER, Json

MAX_ARTIFACT_NAME_CHARS: Final = 200
MAX_DEPTH: Final = 30
"""Levels of nesting; protobuf readers in other languages stop at about three times as many."""


@dataclass(frozen=True)
class File:
    """A file that a tool hands back with its result."""

    name: str
    media_type: str
    content: bytes


@dataclass(frozen=True)
class ToolResult:
    """A result with files; a tool without files returns its value alone."""

    value: object
    files: Sequence[File] = ()


@dataclass(frozen=True)
class ResultLimits:
    """Bounds of one result."""

    max_result_bytes: int
    max_artifacts: int
    max_artifact_bytes: int


@dataclass(frozen=True)
class Outcome:
    """A result in the terms of the contract."""

    result: struct_pb2.Struct
    artifacts: tuple[tool_service_pb2.ArtifactContent, ...]


def to_outcome(tool: str, returned: object, limits: ResultLimits) -> Outcome:
    """What a tool returned, checked and bounded.

    An object becomes the Struct itself; any other value becomes its field `value`.

    Args:
        tool: full name of the tool, for messages.
        returned: a JSON value, a pydantic model, a dataclass, or a ToolResult around one of them.
        limits: bounds of the result.

    Raises:
        RemitError: TOOL_FAILED where it is not JSON, TOO_LARGE where it passes a bound.

    """
    result = returned if isinstance(returned, ToolResult) else ToolResult(returned)
    struct = _to_struct(tool, result.value)
    _check_size(f"{tool}: the result", struct.ByteSize(), limits.max_result_bytes)
    if len(result.files) > limits.max_artifacts:
        raise _too_large(
            f"{tool}: the result has {len(result.files)} files; the limit is {limits.max_artifacts}"
        )
    return Outcome(struct, _to_artifacts(tool, result.files, limits))


def _to_struct(tool: str, value: object) -> struct_pb2.Struct:
    try:
        plain = pydantic_core.to_jsonable_python(value)
        struct = struct_pb2.Struct()
        fields = plain if isinstance(plain, Mapping) else {"value": plain}
        for key, item in fields.items():
            struct.fields[key].CopyFrom(_to_value(item, depth=1))
    except (ValueError, TypeError) as error:
        # pydantic's message names types only; ours below name no content either
        raise _failed(f"{tool} returned something that is not JSON: {error}") from error
    return struct


def _to_value(plain: Json, depth: int) -> struct_pb2.Value:
    if depth > MAX_DEPTH:
        message = f"nested deeper than {MAX_DEPTH} levels"
        raise ValueError(message)
    match plain:
        case None:
            return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
        case bool():
            return struct_pb2.Value(bool_value=plain)
        case int() | float():
            return struct_pb2.Value(number_value=_exact_number(plain))
        case str():
            return struct_pb2.Value(string_value=plain)
        case list():
            items = [_to_value(item, depth + 1) for item in plain]
            return struct_pb2.Value(list_value=struct_pb2.ListValue(values=items))
        case _:
            fields = {key: _to_value(item, depth + 1) for key, item in plain.items()}
            return struct_pb2.Value(struct_value=struct_pb2.Struct(fields=fields))


def _exact_number(number: float) -> float:
    if isinstance(number, int) and abs(number) > MAX_SAFE_INTEGER:
        message = "an integer beyond 2^53, which a Struct cannot hold exactly; return it as text"
        raise ValueError(message)
    if number != number or number in {float("inf"), float("-inf")}:  # noqa: PLR0124 - NaN
        message = "a number that is not finite"
        raise ValueError(message)
    return float(number)


def _to_artifacts(
    tool: str, files: Sequence[File], limits: ResultLimits
) -> tuple[tool_service_pb2.ArtifactContent, ...]:
    # A file is told by its number: its name may be a user's words.
    return tuple(
        _to_artifact(f"{tool}: file {number} of {len(files)}", tool, file, limits)
        for number, file in enumerate(files, start=1)
    )


def _to_artifact(
    what: str, tool: str, file: File, limits: ResultLimits
) -> tool_service_pb2.ArtifactContent:
    if not 0 < len(file.name) <= MAX_ARTIFACT_NAME_CHARS:
        raise _failed(
            f"{tool} returned a file whose name has {len(file.name)} characters; "
            f"1 to {MAX_ARTIFACT_NAME_CHARS} are allowed"
        )
    _check_size(what, len(file.content), limits.max_artifact_bytes)
    return tool_service_pb2.ArtifactContent(
        artifact=tool_pb2.Artifact(
            name=file.name,
            media_type=file.media_type,
            digest=hashlib.sha256(file.content).digest(),
            size_bytes=len(file.content),
        ),
        content=file.content,
    )


def _check_size(what: str, size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise _too_large(f"{what} has {size_bytes} bytes; the limit is {limit_bytes}")


def _too_large(message: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_TOO_LARGE, message)


def _failed(message: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_TOOL_FAILED, message)
