"""Places and abbreviations to time zones of the IANA database.

Most names come from the database itself ("Tokyo" is the end of `Asia/Tokyo`). Added are cities that
no zone is named after, countries with a single civil time, and abbreviations that mean one zone.
"""

from __future__ import annotations

import functools
import re
import zoneinfo
from typing import Final

from remit.inference.rules.vocabulary import vocabulary

_ALSO: Final = {
    "utc": "UTC",
    "gmt": "Etc/GMT",
    "greenwich": "Etc/GMT",
    "est": "America/New_York",
    "edt": "America/New_York",
    "eastern": "America/New_York",
    "cst": "America/Chicago",
    "cdt": "America/Chicago",
    "central": "America/Chicago",
    "mst": "America/Denver",
    "mdt": "America/Denver",
    "mountain": "America/Denver",
    "pst": "America/Los_Angeles",
    "pdt": "America/Los_Angeles",
    "pacific": "America/Los_Angeles",
    "cet": "Europe/Berlin",
    "cest": "Europe/Berlin",
    "ist": "Asia/Kolkata",
    "jst": "Asia/Tokyo",
    "nyc": "America/New_York",
    "la": "America/Los_Angeles",
    "san francisco": "America/Los_Angeles",
    "seattle": "America/Los_Angeles",
    "san diego": "America/Los_Angeles",
    "las vegas": "America/Los_Angeles",
    "boston": "America/New_York",
    "washington": "America/New_York",
    "washington dc": "America/New_York",
    "miami": "America/New_York",
    "atlanta": "America/New_York",
    "philadelphia": "America/New_York",
    "houston": "America/Chicago",
    "dallas": "America/Chicago",
    "austin": "America/Chicago",
    "montreal": "America/Toronto",
    "ottawa": "America/Toronto",
    "rio de janeiro": "America/Sao_Paulo",
    "brasilia": "America/Sao_Paulo",
    "beijing": "Asia/Shanghai",
    "shenzhen": "Asia/Shanghai",
    "china": "Asia/Shanghai",
    "mumbai": "Asia/Kolkata",
    "delhi": "Asia/Kolkata",
    "new delhi": "Asia/Kolkata",
    "bangalore": "Asia/Kolkata",
    "bengaluru": "Asia/Kolkata",
    "chennai": "Asia/Kolkata",
    "india": "Asia/Kolkata",
    "osaka": "Asia/Tokyo",
    "kyoto": "Asia/Tokyo",
    "hanoi": "Asia/Bangkok",
    "abu dhabi": "Asia/Dubai",
    "tel aviv": "Asia/Jerusalem",
    "geneva": "Europe/Zurich",
    "basel": "Europe/Zurich",
    "bern": "Europe/Zurich",
    "munich": "Europe/Berlin",
    "hamburg": "Europe/Berlin",
    "cologne": "Europe/Berlin",
    "frankfurt": "Europe/Berlin",
    "milan": "Europe/Rome",
    "barcelona": "Europe/Madrid",
    "lyon": "Europe/Paris",
    "marseille": "Europe/Paris",
    "manchester": "Europe/London",
    "edinburgh": "Europe/London",
    "the hague": "Europe/Amsterdam",
    "rotterdam": "Europe/Amsterdam",
    "st petersburg": "Europe/Moscow",
    "kyiv": "Europe/Kyiv",
    "cape town": "Africa/Johannesburg",
    "germany": "Europe/Berlin",
    "france": "Europe/Paris",
    "italy": "Europe/Rome",
    "austria": "Europe/Vienna",
    "switzerland": "Europe/Zurich",
    "england": "Europe/London",
    "scotland": "Europe/London",
    "wales": "Europe/London",
    "uk": "Europe/London",
    "the uk": "Europe/London",
    "united kingdom": "Europe/London",
    "great britain": "Europe/London",
    "netherlands": "Europe/Amsterdam",
    "the netherlands": "Europe/Amsterdam",
    "belgium": "Europe/Brussels",
    "sweden": "Europe/Stockholm",
    "norway": "Europe/Oslo",
    "denmark": "Europe/Copenhagen",
    "finland": "Europe/Helsinki",
    "greece": "Europe/Athens",
    "ireland": "Europe/Dublin",
    "czech republic": "Europe/Prague",
    "hungary": "Europe/Budapest",
    "romania": "Europe/Bucharest",
    "ukraine": "Europe/Kyiv",
    "korea": "Asia/Seoul",
    "south korea": "Asia/Seoul",
    "thailand": "Asia/Bangkok",
    "vietnam": "Asia/Ho_Chi_Minh",
    "pakistan": "Asia/Karachi",
    "philippines": "Asia/Manila",
    "the philippines": "Asia/Manila",
    "south africa": "Africa/Johannesburg",
    "kenya": "Africa/Nairobi",
    "nigeria": "Africa/Lagos",
    "argentina": "America/Argentina/Buenos_Aires",
    "colombia": "America/Bogota",
    "peru": "America/Lima",
    "new zealand": "Pacific/Auckland",
}
_REGIONS: Final = vocabulary(
    "Africa America Antarctica Arctic Asia Atlantic Australia Europe Indian Pacific"
)


def zone_of(place: str) -> str | None:
    """The IANA zone of a place, a zone's own name or an abbreviation; None if none is known."""
    return _zones().get(_key(place))


def known_words() -> frozenset[str]:
    """Every name that `zone_of` knows, in lower case, words joined by single spaces."""
    return frozenset(_zones())


@functools.cache
def _zones() -> dict[str, str]:
    available = zoneinfo.available_timezones()
    named: dict[str, str] = {}
    for zone in sorted(available):
        region, _, rest = zone.partition("/")
        named[_key(zone)] = zone
        if region in _REGIONS and rest:
            named.setdefault(_key(rest.rpartition("/")[2]), zone)
        elif not rest and len(zone) > 3 and zone.isalpha():
            named.setdefault(_key(zone), zone)
    return named | {name: zone for name, zone in _ALSO.items() if zone in available}


def _key(place: str) -> str:
    return re.sub(r"[\s_.,'-]+", " ", place.casefold()).strip()
