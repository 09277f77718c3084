"""Prices that orgs set for themselves, as the hot path reads them: exact, and mostly from memory.

Each change raises the org's `price_epoch` in the row of `ledgers` that every batch locks. What a
replica remembers is used for the epoch alone at which it was read, under that lock: so a price that
one replica has set is what the next hold of any other one pins, and while nothing changes a batch
makes no round trip more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from remit.cost.price_timelines import Span, Timeline
from remit.cost.reservations import Price
from remit.postgres import Connection

OrgItem: TypeAlias = tuple[str, str]
"""An org and what it buys."""
OrgTimeline: TypeAlias = Timeline[Price | None]
"""None: from then on the org has no price of its own."""

SOURCE: Final = "org"
_REMEMBERED: Final = 4096
_BEFORE_ALL: Final = datetime(1970, 1, 1, tzinfo=UTC)

_IN_PLACE: Final = (
    "NOT EXISTS (SELECT FROM org_prices l WHERE l.org = f.org AND l.item = f.item"
    " AND l.sequence > f.sequence AND (l.start_time = f.start_time"
    " OR (l.price_version IS NULL AND l.start_time < f.start_time)))"
)
# For each org, item and time of $1, $2, $3: what is in force then, and what is scheduled for later.
_SELECT: Final = (
    "SELECT k.org, k.item, s.start_time, s.price_version, p.input_nanos_per_million,"  # noqa: S608 - constants of this module
    " p.cached_input_nanos_per_million, p.output_nanos_per_million, p.call_nanos"
    " FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS k (org, item, moment)"
    " CROSS JOIN LATERAL ("
    "(SELECT start_time, price_version FROM org_prices f WHERE f.org = k.org AND f.item = k.item"
    f" AND f.start_time <= k.moment AND {_IN_PLACE}"
    " ORDER BY f.start_time DESC, f.sequence DESC LIMIT 1)"
    " UNION ALL (SELECT start_time, price_version FROM org_prices f"
    " WHERE f.org = k.org AND f.item = k.item"
    f" AND f.start_time > k.moment AND {_IN_PLACE})) s"
    " LEFT JOIN prices p ON p.version = s.price_version"
    " ORDER BY k.org, k.item, s.start_time"
)


async def select_org_prices(
    connection: Connection, wanted: Mapping[OrgItem, datetime | None]
) -> dict[OrgItem, OrgTimeline]:
    """What each org set for its item, from the given time on; nothing where it set nothing."""
    keys = sorted(wanted)
    records = await connection.fetch(
        _SELECT,
        [org for org, _ in keys],
        [item for _, item in keys],
        [wanted[key] or _BEFORE_ALL for key in keys],
    )
    spans: dict[OrgItem, list[Span[Price | None]]] = {}
    for record in records:
        span = Span(price_of(record), record["start_time"])
        spans.setdefault((record["org"], record["item"]), []).append(span)
    return {key: Timeline(found) for key, found in spans.items()}


async def select_price_epochs(connection: Connection, orgs: Iterable[str]) -> dict[str, int]:
    """How often each org changed its prices; their ledgers are locked."""
    records = await connection.fetch(
        "SELECT org, price_epoch FROM ledgers WHERE org = ANY ($1::text[])", sorted(orgs)
    )
    return {record["org"]: record["price_epoch"] for record in records}


class OrgPrices:
    """Remembers what orgs set, each item as of an epoch of its org."""

    def __init__(self) -> None:
        self._known: OrderedDict[OrgItem, tuple[int, OrgTimeline | None]] = OrderedDict()

    async def load(
        self,
        connection: Connection,
        items: Iterable[OrgItem],
        epochs: Mapping[str, int],
        latest: Mapping[str, datetime | None],
    ) -> dict[OrgItem, OrgTimeline]:
        """What orgs set for these items. The ledgers of all of them are locked, at these epochs."""
        asked = sorted({item for item in items if epochs[item[0]]})
        missing = [key for key in asked if self._epoch_of(key) != epochs[key[0]]]
        if missing:
            found = await select_org_prices(connection, {key: latest[key[0]] for key in missing})
            for key in missing:
                self._known[key] = (epochs[key[0]], found.get(key))
        prices = self._recalled(asked)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return prices

    def _epoch_of(self, key: OrgItem) -> int | None:
        known = self._known.get(key)
        return None if known is None else known[0]

    def _recalled(self, keys: Sequence[OrgItem]) -> dict[OrgItem, OrgTimeline]:
        prices = {}
        for key in keys:
            self._known.move_to_end(key)
            timeline = self._known[key][1]
            if timeline is not None:
                prices[key] = timeline
        return prices


def price_of(record: Mapping[str, Any]) -> Price | None:
    """The price of a row that has the columns of `prices`; None for a deletion."""
    if record["price_version"] is None:
        return None
    return Price(
        version=record["price_version"],
        source=SOURCE,
        input_nanos_per_million=record["input_nanos_per_million"],
        cached_input_nanos_per_million=record["cached_input_nanos_per_million"],
        output_nanos_per_million=record["output_nanos_per_million"],
        call_nanos=record["call_nanos"],
    )
