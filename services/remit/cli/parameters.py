"""Values that people type: money, durations, moments, key=value pairs, names.

What cannot be read exactly is refused as a wrong command line; what a service decides (whether an
agent exists, how long a run may be) is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from google.protobuf import duration_pb2, timestamp_pb2

from remit.cli.wording import NANOS_PER_USD

Decorated = TypeVar("Decorated", bound=Callable[..., Any] | click.Command)

_UNITS_S: Final = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}
_LENGTH: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|min|m|h|d)?")
_MOST_NANOS: Final = 2**63 - 1
MOST_LISTED: Final = 10_000


class Usd(click.ParamType[int]):
    """An amount in USD, exact to nine decimals, as nano-USD."""

    name = "USD"

    def convert(
        self,
        value: object,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> int:
        """Nano-USD of `0.05`."""
        if isinstance(value, int):
            return value
        try:
            nanos = Decimal(str(value).removeprefix("$").removesuffix("USD").strip())
            nanos *= NANOS_PER_USD
        except InvalidOperation:
            self.fail(f"{value!r} is no amount; write it such as 0.05", param, ctx)
        if not nanos.is_finite() or not 0 <= nanos <= _MOST_NANOS:
            most = _MOST_NANOS // NANOS_PER_USD
            self.fail(f"{value!r} is out of range; an amount is 0 to {most:,} USD", param, ctx)
        if nanos % 1:
            self.fail(f"{value!r} has more than nine decimals", param, ctx)
        return int(nanos)


class Length(click.ParamType[timedelta]):
    """A length of time: `90`, `90s`, `1.5h`, `2min`."""

    name = "DURATION"

    def convert(
        self,
        value: object,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> timedelta:
        """The length of `90s`."""
        if isinstance(value, timedelta):
            return value
        match = _LENGTH.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no duration; write it such as 90s, 5min or 2h", param, ctx)
        try:
            return timedelta(seconds=float(match[1]) * _UNITS_S[match[2] or "s"])
        except OverflowError:
            self.fail(f"{value!r} is out of range", param, ctx)


class Moment(click.ParamType[datetime]):
    """A point in time: RFC 3339, a local date or time, or a length ago such as `24h`."""

    name = "TIME"

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now

    def convert(
        self,
        value: object,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> datetime:
        """The moment of `2026-11-23`, `2026-11-23T15:00:00Z` or `24h`."""
        if isinstance(value, datetime):
            return value
        text = str(value).strip()
        if _LENGTH.fullmatch(text) and not text.isdigit():
            return self._now() - Length().convert(text, param, ctx)
        try:
            moment = datetime.fromisoformat(text)
            # Without an offset it is the person's own zone that is meant.
            return moment.astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no time; write 2026-11-23, 2026-11-23T15:00:00Z or 24h, a day ago",
                param,
                ctx,
            )


class Start(click.ParamType[datetime]):
    """A point in time to come: RFC 3339, a local date or time, or a length from now."""

    name = "TIME"

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now

    def convert(
        self,
        value: object,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> datetime:
        """The moment of `2026-11-23T15:00:00Z`, or of `10min` from now."""
        text = str(value).strip()
        if isinstance(value, str) and _LENGTH.fullmatch(text) and not text.isdigit():
            return self._now() + Length().convert(text, param, ctx)
        return Moment(self._now).convert(value, param, ctx)


class Pair(click.ParamType[tuple[str, str]]):
    """A `KEY=VALUE` pair."""

    name = "KEY=VALUE"

    def convert(
        self,
        value: object,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, str]:
        """Key and value; the value may hold further equals signs."""
        if isinstance(value, tuple):
            return value
        key, separator, content = str(value).partition("=")
        if not separator or not key:
            self.fail(f"{value!r}: write KEY=VALUE", param, ctx)
        return key, content


def full_name(collection: str, text: str) -> str:
    """`runs/0198...` of either `0198...` or the full name."""
    return text if "/" in text else f"{collection}/{text}"


def timestamp(moment: datetime | None) -> timestamp_pb2.Timestamp | None:
    """A moment as the contracts have it."""
    if moment is None:
        return None
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def duration(length: timedelta | None) -> duration_pb2.Duration | None:
    """A length of time as the contracts have it."""
    if length is None:
        return None
    message = duration_pb2.Duration()
    message.FromTimedelta(length)
    return message


limit_option = click.option(
    "--limit",
    type=click.IntRange(1, MOST_LISTED),
    default=50,
    show_default=True,
    help="List at most this many.",
)
since_option = click.option("--since", type=Moment(), help="Only from this time on.")
until_option = click.option("--until", type=Moment(), help="Only before this time.")


def topology_option(help_text: str) -> Callable[[Decorated], Decorated]:
    """`--topology FILE`, a mesh's addresses, as the parameter `topology_file`."""
    return click.option(
        "--topology",
        "topology_file",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help=help_text,
    )
