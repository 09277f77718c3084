"""Values in words for people: money, times, durations, and text that strangers wrote.

Money is shown exactly, never rounded: what a person reads is what the ledger holds.
"""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from typing import Final

from google.protobuf import duration_pb2, timestamp_pb2

NANOS_PER_USD: Final = 1_000_000_000
_LEAST_DECIMALS: Final = 2
_UNITS_S: Final = (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1))
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
# What models and tools return could otherwise move the cursor, retitle the window or reverse the
# reading order of what the person is about to approve.
_UNPRINTABLE: Final = dict.fromkeys(
    (
        *(code for code in range(0x20) if chr(code) not in "\n\t"),
        *range(0x7F, 0xA0),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
    ),
    _REPLACEMENT,
)


def printable(text: str) -> str:
    """The text without characters that command a terminal; line breaks and tabs stay."""
    return text.translate(_UNPRINTABLE)


def shortened(text: str, most_chars: int) -> str:
    """The text on one line, cut with a mark that says how much there was."""
    flat = " ".join(printable(text).split())
    if len(flat) <= most_chars:
        return flat
    return f"{flat[:most_chars]}… ({len(flat):,} characters)"


def usd(nanos: int) -> str:
    """An exact amount of nano-USD, such as `0.000391 USD`: two decimals, or as many as it needs."""
    digits = f"{abs(Decimal(nanos)) / NANOS_PER_USD:.9f}".rstrip("0")
    whole, _, decimals = digits.partition(".")
    sign = "-" if nanos < 0 else ""
    return f"{sign}{int(whole):,}.{decimals.ljust(_LEAST_DECIMALS, '0')} USD"


def local_time(time: timestamp_pb2.Timestamp, zone: tzinfo | None = None) -> str:
    """A time in the person's own zone, to the second; `-` if it is unset."""
    if not (time.seconds or time.nanos):
        return "-"
    return moment(time).astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")


def moment(time: timestamp_pb2.Timestamp) -> datetime:
    """A timestamp in UTC."""
    return time.ToDatetime(UTC)


def seconds(duration: duration_pb2.Duration) -> float:
    """A duration in seconds."""
    return duration.ToNanoseconds() / 1e9


def span(length_s: float) -> str:
    """A length of time, such as `0.42 s`, `12.0 s` or `3 min 5 s`."""
    if length_s < 10:
        return f"{length_s:.2f} s"
    if length_s < 60:
        return f"{length_s:.1f} s"
    minutes, rest = divmod(round(length_s), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def age(length_s: float) -> str:
    """How long ago or ahead, in its largest unit and the next: `7 s`, `3 min 5 s`, `2 d 4 h`."""
    whole_s = max(int(length_s), 0)
    for unit, unit_s, part, part_s in _UNITS_S:
        if whole_s >= unit_s:
            return f"{whole_s // unit_s} {unit} {whole_s % unit_s // part_s} {part}"
    return f"{whole_s} s"


def last_part(name: str) -> str:
    """`assistant` of `agents/assistant`: a full name where its kind is plain."""
    return name.rpartition("/")[2]
