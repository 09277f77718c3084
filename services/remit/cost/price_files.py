"""Reads price files: YAML in, rates by item and time out, every fault named with file and field.

An item has one price for ever, or a list of prices that follow each other: each is in force from
its time `from` until the next begins, the last one until its `until`, if it has one.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from remit import names
from remit.api.errors.v1 import error_reason_pb2
from remit.cost.price_timelines import Span, Timeline, TimelineError
from remit.pricing import INT64_MAX
from remit.rpc.errors import RemitError, Violation

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


def _moment(value: object) -> object:
    """A time with its zone, from YAML's own or from text; a day begins in UTC."""
    if isinstance(value, str):
        value = _parsed_time(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, datetime):
        message = "is not a time such as 2027-01-01T00:00:00Z, nor a day"
        raise ValueError(message)  # noqa: TRY004 - what pydantic takes for a fault of the input
    if value.tzinfo is None:
        message = "has no time zone; write it as 2027-01-01T00:00:00Z"
        raise ValueError(message)
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        message = "is outside the calendar"
        raise ValueError(message) from error


def _parsed_time(text: str) -> datetime | date | str:
    for kind in (date, datetime):
        try:
            return kind.fromisoformat(text)
        except ValueError:
            continue
    return text


def _listed(value: object) -> object:
    """A price for ever is a list of one."""
    return [value] if isinstance(value, Mapping) else value


_Moment = Annotated[datetime, BeforeValidator(_moment)]


class _DatedRates(Rates):
    start: _Moment | None = Field(default=None, alias="from")
    until: _Moment | None = None


class _PriceFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    prices: dict[str, Annotated[list[_DatedRates], BeforeValidator(_listed)]]


def read_price_file(path: Path) -> Mapping[str, Timeline[Rates]]:
    """The rates of a file by item. Raises CONFIGURATION_INVALID naming the file and the field."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _invalid(path, "", f"cannot be read: {error.strerror}") from error
    if len(text) > _MAX_BYTES:
        raise _invalid(path, "", f"has more than {_MAX_BYTES} bytes")
    prices = _checked(path, _parsed(path, text)).prices
    return {item: _timeline(path, item, dated) for item, dated in prices.items()}


def _timeline(path: Path, item: str, dated: list[_DatedRates]) -> Timeline[Rates]:
    try:
        return Timeline([Span(rates, rates.start, rates.until) for rates in dated])
    except TimelineError as error:
        raise _invalid(path, f"prices.{item}", str(error)) from error


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
        raise _faults(path, content, error) from error
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


def _faults(path: Path, content: object, error: ValidationError) -> RemitError:
    """Every fault with its field, as it stands in the file: a price for ever is no list there."""
    violations = []
    for fault in error.errors():
        place = list(fault["loc"])
        if len(place) > _PLACE_IN_LIST and not _is_list(content, place[1]):
            del place[_PLACE_IN_LIST]
        violations.append(Violation(_where(path, ".".join(map(str, place))), fault["msg"]))
    return _refused(violations)


_PLACE_IN_LIST: Final = 2
"""Where a fault's path has the number of its price: after `prices` and the item."""


def _is_list(content: object, item: object) -> bool:
    return isinstance(content, dict) and isinstance(content["prices"][item], list)


def _invalid(path: Path, field: str, fault: str) -> RemitError:
    return _refused([Violation(_where(path, field), fault)])


def _where(path: Path, field: str) -> str:
    return f"{path}: {field}" if field else str(path)


def _refused(violations: list[Violation]) -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
        "; ".join(f"{each.field}: {each.description}" for each in violations),
        violations=violations,
    )
