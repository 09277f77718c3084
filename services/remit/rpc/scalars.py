"""Single values of a JSON body that protobuf's reader would take for something else.

It reads numbers as Python does: `"1_000"` is a thousand, digits of any script count, a float above
2^53 is rounded, and an enum's number loses its upper bits. A client that sends such a thing means
something else, or does not know what it will get.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from google.protobuf import descriptor

_Field = descriptor.FieldDescriptor
_INTEGER: Final = re.compile(r"-?[0-9]+")
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_DURATION: Final = re.compile(r"-?[0-9]+(\.[0-9]{1,9})?s")
_EXACT_FLOAT: Final = 2**53
"""Below it every whole number is a float of its own."""


def fault_of(field: descriptor.FieldDescriptor, value: Any) -> str | None:  # noqa: ANN401
    """What is wrong with a value of this field, where protobuf's reader would not say it."""
    check = _CHECKS.get(field.cpp_type)
    return check(field, value) if check is not None and value is not None else None


def duration_fault(value: Any) -> str | None:  # noqa: ANN401 - any JSON
    """The same for a google.protobuf.Duration."""
    ok = not isinstance(value, str) or _DURATION.fullmatch(value)
    return None if ok else 'must be seconds such as "1.5s"'


def _integer(_field: descriptor.FieldDescriptor, value: Any) -> str | None:  # noqa: ANN401
    if isinstance(value, float):
        ok = value.is_integer() and abs(value) < _EXACT_FLOAT
    else:
        ok = not isinstance(value, str) or bool(_INTEGER.fullmatch(value))
    return None if ok else "must be a whole number, and in quotation marks if it is a large one"


def _float(_field: descriptor.FieldDescriptor, value: Any) -> str | None:  # noqa: ANN401
    if isinstance(value, str):
        ok = bool(_NUMBER.fullmatch(value)) and math.isfinite(float(value))
    else:
        ok = not isinstance(value, bool)
    return None if ok else "must be a number"


def _enum(field: descriptor.FieldDescriptor, value: Any) -> str | None:  # noqa: ANN401
    values = field.enum_type.values if field.enum_type is not None else ()
    known = {one.name for one in values} | {one.number for one in values}
    # A float or a bool is equal to a number, and is none of these.
    ok = isinstance(value, str | int) and not isinstance(value, bool) and value in known
    return None if ok else "must be the name of a value of this enum"


_CHECKS: Final[Mapping[int, Callable[[descriptor.FieldDescriptor, Any], str | None]]] = (
    MappingProxyType(
        {
            _Field.CPPTYPE_INT32: _integer,
            _Field.CPPTYPE_INT64: _integer,
            _Field.CPPTYPE_UINT32: _integer,
            _Field.CPPTYPE_UINT64: _integer,
            _Field.CPPTYPE_FLOAT: _float,
            _Field.CPPTYPE_DOUBLE: _float,
            _Field.CPPTYPE_ENUM: _enum,
        }
    )
)
