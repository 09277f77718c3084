"""Reads price files: YAML in, rates by item out, every fault named with its file and field."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from remit import names
from remit.api.errors.v1 import error_reason_pb2
from remit.pricing import INT64_MAX
from remit.rpc.errors import RemitError, Violation
from remit.settings import configuration_error

SHIPPED: Final = Path(__file__).parent / "prices.yaml"
"""Prices of the engine and the tools that Remit ships."""

_MAX_BYTES: Final = 1_048_576
Rate = Annotated[int, Field(ge=0, le=INT64_MAX, strict=True)]


class Rates(BaseModel):
    """What a file states of an item, in nano-USD; what it leaves out is 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_nanos_per_million: Rate = 0
    cached_input_nanos_per_million: Rate | None = None
    """Unset: the input rate."""
    output_nanos_per_million: Rate = 0
    call_nanos: Rate = 0


class _PriceFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    prices: dict[str, Rates]


def read_price_file(path: Path) -> Mapping[str, Rates]:
    """The rates of a file by item. Raises CONFIGURATION_INVALID naming the file and the field."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _invalid(path, "", f"cannot be read: {error.strerror}") from error
    if len(text) > _MAX_BYTES:
        raise _invalid(path, "", f"has more than {_MAX_BYTES} bytes")
    return _checked(path, _parsed(path, text)).prices


def _parsed(path: Path, text: bytes) -> object:
    try:
        return yaml.load(text, _UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}" if mark else ""
        raise _invalid(path, where, str(error.problem or "is not YAML")) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise _invalid(path, "", f"is not YAML: {error}") from error


def _checked(path: Path, content: object) -> _PriceFile:
    try:
        file = _PriceFile.model_validate(content)
    except ValidationError as error:
        raise configuration_error(f"{path}: ", error) from error
    for item in file.prices:
        if not (names.is_name("model", item) or names.is_name("tool", item)):
            fault = "is neither `models/{model}` nor `tools/{tool}`"
            raise _invalid(path, f"prices.{item}", fault)
    return file


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands twice: the second price would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        """The mapping, if its keys differ."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} stands twice", key_node.start_mark
                )
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep)


def _invalid(path: Path, field: str, fault: str) -> RemitError:
    where = f"{path}: {field}" if field else str(path)
    return RemitError(
        error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
        f"{where}: {fault}",
        violations=[Violation(where, fault)],
    )
