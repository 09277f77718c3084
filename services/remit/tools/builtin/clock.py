"""`clock`: the current time somewhere, because a language model has none."""

from __future__ import annotations

import difflib
import functools
import zoneinfo
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from remit.tools.context import ToolContext
from remit.tools.definition import tool

UTC: Final = "UTC"
_MAX_ZONE_CHARS: Final = 64


@functools.cache
def _zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())


@functools.cache
def _zones_by_city() -> dict[str, tuple[str, ...]]:
    """Zones by their last component in lower case: `tokyo` to `Asia/Tokyo`."""
    cities: dict[str, tuple[str, ...]] = {}
    for zone in sorted(_zones()):
        if "/" in zone and not zone.startswith("Etc/"):
            city = zone.rpartition("/")[2].lower()
            cities[city] = (*cities.get(city, ()), zone)
    return cities


def resolve_zone(text: str) -> str:
    """The IANA zone that a text names: a zone itself, or the city of exactly one zone.

    Raises:
        ValueError: there is no such zone; the message suggests the nearest.

    """
    if text in _zones():
        return text
    folded = text.strip().replace(" ", "_").lower()
    by_name = {zone.lower(): zone for zone in _zones()}
    if folded in by_name:
        return by_name[folded]
    named = _zones_by_city().get(folded, ())
    if len(named) == 1:
        return named[0]
    near = [_zones_by_city()[city][0] for city in _near(folded, list(_zones_by_city()))]
    suggestions = list(named) or near or [by_name[zone] for zone in _near(folded, list(by_name))]
    hint = f"did you mean {', '.join(suggestions[:3])}?" if suggestions else "such as Asia/Tokyo"
    message = f"must be the name of an IANA time zone; {hint}"
    raise ValueError(message)


def _near(text: str, known: list[str]) -> list[str]:
    return difflib.get_close_matches(text, known, n=3, cutoff=0.75)


Zone = Annotated[
    str,
    Field(
        min_length=1,
        max_length=_MAX_ZONE_CHARS,
        description="IANA time zone, such as `Europe/Berlin`, or the city in its name. UTC if left "
        "out.",
    ),
    AfterValidator(resolve_zone),
]


@tool(permission_class="none", idempotent=True, timeout_s=5)
async def clock(context: ToolContext, timezone: Zone = UTC) -> dict[str, object]:
    """Tell the current date and time in a time zone.

    Returns `time` in ISO 8601 with the offset from UTC, `timezone`, `weekday` and `unix_s`.
    """
    now = context.clock.now()
    local = now.astimezone(zoneinfo.ZoneInfo(timezone))
    return {
        "time": local.isoformat(timespec="seconds"),
        "timezone": timezone,
        "weekday": local.strftime("%A"),
        "unix_s": int(now.timestamp()),
    }
