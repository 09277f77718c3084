"""Arguments as they arrive (google.protobuf.Struct) and as a tool gets them (typed Python).

Every number of a Struct is a double. What is integral becomes an int, as JSON Schema sees it;
beyond 2^53 - 1 a double no longer tells neighbouring integers apart, so such a number is never
taken for an integer: a tool that asks for one gets a clear refusal instead of a neighbour.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Final, TypeAlias

import pydantic
from google.protobuf import struct_pb2
from pydantic_core import ErrorDetails

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError, Violation
from remit.tools.definition import ToolDefinition, canonical_json

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MAX_SAFE_INTEGER: Final = 2**53 - 1
MAX_VIOLATIONS: Final = 50
_ROOT: Final = "arguments"
_SHOWN_VIOLATIONS: Final = 3
_IMPRECISE: Final = (
    "is an integer beyond 2^53, which a Struct cannot hold exactly; send it as text if the tool "
    "takes text"
)
_INTEGER_FAULTS: Final = frozenset({"int_type", "int_from_float", "int_parsing"})


def plain_value(value: struct_pb2.Value, path: str = _ROOT) -> Json:
    """A Struct's value as JSON types; integral numbers up to 2^53 - 1 become ints.

    Raises:
        ValueError: the value is not JSON (NaN, infinity, no kind); the message names the path.

    """
    match value.WhichOneof("kind"):
        case "null_value":
            return None
        case "bool_value":
            return value.bool_value
        case "string_value":
            return value.string_value
        case "number_value":
            return _plain_number(value.number_value, path)
        case "list_value":
            items = value.list_value.values
            return [plain_value(item, f"{path}[{index}]") for index, item in enumerate(items)]
        case "struct_value":
            return plain_struct(value.struct_value, path)
        case _:
            raise NotJsonError(path, "has no value; send null for nothing")


def plain_struct(struct: struct_pb2.Struct, path: str = _ROOT) -> dict[str, Json]:
    """A Struct as a dict of JSON types; see `plain_value`."""
    return {key: plain_value(item, f"{path}.{key}") for key, item in struct.fields.items()}


class NotJsonError(ValueError):
    """A value of a Struct that JSON does not have."""

    def __init__(self, path: str, fault: str) -> None:
        super().__init__(f"{path}: {fault}")
        self.violation = Violation(path, fault)


def _plain_number(number: float, path: str) -> int | float:
    if not math.isfinite(number):
        raise NotJsonError(path, "must be a finite number")
    if number.is_integer() and abs(number) <= MAX_SAFE_INTEGER:
        return int(number)
    return number


def arguments_digest(arguments: struct_pb2.Struct) -> bytes:
    """SHA-256 over the canonical JSON of the arguments, 32 bytes.

    Raises:
        NotJsonError: a value is not JSON.

    """
    return hashlib.sha256(canonical_json(plain_struct(arguments))).digest()


def validate(definition: ToolDefinition, arguments: struct_pb2.Struct) -> pydantic.BaseModel:
    """The arguments as the tool's own model.

    Raises:
        RemitError: INVALID_TOOL_ARGUMENTS with every violation, each at the path of its field. It
            repeats no argument's value: arguments are sensitive.

    """
    try:
        plain = plain_struct(arguments)
        # By way of JSON: strict there, a date is still its text and a tuple still a list.
        return definition.arguments_model.model_validate_json(json.dumps(plain), strict=True)
    except NotJsonError as error:
        raise _invalid(definition, [error.violation]) from None
    except pydantic.ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        raise _invalid(definition, [_violation(fault) for fault in faults]) from None


def _violation(fault: ErrorDetails) -> Violation:
    return Violation(_path(fault["loc"]), _description(fault))


def _description(fault: ErrorDetails) -> str:
    given = fault.get("input")
    if fault["type"] in _INTEGER_FAULTS and isinstance(given, float) and given.is_integer():
        return _IMPRECISE
    if fault["type"] == "extra_forbidden":
        return "is not an argument of this tool"
    return fault["msg"].removeprefix("Value error, ")


def _path(location: Iterable[int | str]) -> str:
    path = _ROOT
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part[:100]}"
    return path


def _invalid(definition: ToolDefinition, violations: list[Violation]) -> RemitError:
    shown = "; ".join(
        f"{violation.field.removeprefix(_ROOT + '.')}: {violation.description}"
        for violation in violations[:_SHOWN_VIOLATIONS]
    )
    more = len(violations) - _SHOWN_VIOLATIONS
    return RemitError(
        error_reason_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS,
        f"{definition.resource_name}: {shown}" + (f" (and {more} more)" if more > 0 else ""),
        violations=violations[:MAX_VIOLATIONS],
    )
