"""Prices of an org in PostgreSQL: set and deleted under the lock of its ledger, and listed.

The ledger's lock orders a change with every hold: those that began before have their price pinned,
and those that begin after it find the change. So what is set at once begins after the latest hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from google.protobuf.message import Message

from remit.api.cost.v1 import price_service_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.columns import arrays
from remit.cost import rows
from remit.cost.messages import price_message, timestamp
from remit.cost.org_prices import OrgItem, OrgTimeline, price_of, select_org_prices
from remit.cost.reservations import Price
from remit.cost.store import lock_ledgers
from remit.idempotency import AdminChange, AdminRequest, known_change, remember
from remit.postgres import Connection, Database
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError, Violation, invalid_request

MAX_SCHEDULED: Final = 32
"""Changes of an item that wait for their time."""

_EVER: Final = datetime.min.replace(tzinfo=UTC)
_JUST_AFTER: Final = timedelta(microseconds=1)
_CHANGE: Final = (
    "SELECT c.sequence, c.item, c.price_version, c.start_time, c.create_time, c.subject,"
    " p.input_nanos_per_million, p.cached_input_nanos_per_million, p.output_nanos_per_million,"
    " p.call_nanos FROM org_prices c LEFT JOIN prices p ON p.version = c.price_version"
)

Answer = Callable[[price_service_pb2.PriceChange], Message]


@dataclass(frozen=True, slots=True)
class WantedPrice:
    """A price that an org wants from a time on; None deletes, and no time is at once."""

    item: str
    price: Price | None
    start: datetime | None


class PriceStore:
    """Changes and lists the prices of orgs."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def change(
        self, request: AdminRequest, wanted: WantedPrice, answer: Answer
    ) -> AdminChange:
        """Sets or deletes once and remembers the answer. Raises RemitError, KEY_REUSED first."""
        async with self._database.transaction() as connection:
            latest = (await lock_ledgers(connection, [request.org]))[request.org]
            known = await known_change(connection, request)
            if known is not None:
                return known
            now = self._clock.now()
            earliest = max(now, *await _last_times(connection, request.org, latest))
            start = _start_of(wanted, earliest)
            key = (request.org, wanted.item)
            in_place = (await select_org_prices(connection, {key: earliest})).get(key)
            _require_sense(wanted, in_place, start, earliest)
            sequence = await _insert(connection, key, wanted.price, start, now, request.subject)
            if wanted.start is None:
                await _advance(connection, request.org, start)
            change = price_service_pb2.PriceChange(
                sequence=sequence,
                item=wanted.item,
                price=price_message(wanted.price) if wanted.price else None,
                start_time=timestamp(start),
                create_time=timestamp(now),
                subject=request.subject,
            )
            return await remember(connection, request, answer(change).SerializeToString())

    async def in_force(
        self, org: str, items: Sequence[str]
    ) -> tuple[datetime, dict[OrgItem, OrgTimeline]]:
        """The present by the org's ledger, and what the org set for these items from then on."""
        async with self._database.transaction() as connection:
            latest = await connection.fetchval(
                "SELECT latest_time FROM ledgers WHERE org = $1", org
            )
            moment = max(self._clock.now(), latest or self._clock.now())
            wanted = {(org, item): moment for item in items}
            return moment, await select_org_prices(connection, wanted)

    async def items(self, org: str, after: str, size: int) -> list[str]:
        """Up to `size` items of which the org ever set a price, by name."""
        records = await self._database.fetch(
            "SELECT DISTINCT item FROM org_prices WHERE org = $1 AND item > $2"
            " ORDER BY item LIMIT $3",
            org,
            after,
            size,
        )
        return [record["item"] for record in records]

    async def changes(
        self, org: str, item: str, before: int | None, size: int
    ) -> list[price_service_pb2.PriceChange]:
        """Up to `size` changes, the latest first: of one item, or of all if it is empty."""
        records = await self._database.fetch(
            f"{_CHANGE} WHERE c.org = $1 AND ($2 = '' OR c.item = $2)"
            " AND ($3::bigint IS NULL OR c.sequence < $3) ORDER BY c.sequence DESC LIMIT $4",
            org,
            item,
            before,
            size,
        )
        return [_change_of(record) for record in records]


async def _last_times(
    connection: Connection, org: str, latest: datetime | None
) -> Sequence[datetime]:
    """Times that the next hold cannot lie before; the ledger's own is stored a little late."""
    last_hold = await connection.fetchval(
        "SELECT max(create_time) FROM reservations WHERE org = $1 AND account IS NOT NULL", org
    )
    return [time + _JUST_AFTER for time in (latest, last_hold) if time is not None] or [_EVER]


def _start_of(wanted: WantedPrice, earliest: datetime) -> datetime:
    if wanted.start is None:
        return earliest
    if wanted.start < earliest:
        fault = f"has passed; it is {earliest.isoformat()} now. Leave it out for a change at once"
        raise invalid_request([Violation("start_time", fault)])
    return wanted.start


def _require_sense(
    wanted: WantedPrice, in_place: OrgTimeline | None, start: datetime, earliest: datetime
) -> None:
    """Raises where there is nothing to delete, or too much is scheduled already."""
    spans = list(in_place or ())
    if wanted.price is None and not any(
        span.value is not None and (span.until is None or span.until > start) for span in spans
    ):
        raise RemitError(
            error_reason_pb2.ERROR_REASON_RESOURCE_NOT_FOUND,
            f"your org has set no price of {wanted.item} that is in force or scheduled then",
        )
    # What is set replaces a change at its time; a deletion withdraws all from its time on.
    kept = [span for span in spans if span.begin < start or (wanted.price and span.begin > start)]
    scheduled = [span for span in kept if span.begin > earliest]
    if start > earliest and len(scheduled) >= MAX_SCHEDULED:
        fault = (
            f"{wanted.item} has {MAX_SCHEDULED} changes scheduled already;"
            " delete one, or wait until one is in force"
        )
        raise invalid_request([Violation("start_time", fault)])


async def _insert(
    connection: Connection,
    key: OrgItem,
    price: Price | None,
    start: datetime,
    now: datetime,
    subject: str,
) -> int:
    org, item = key
    if price is not None:
        pinned = [rows.PinnedPrice(item, price)]
        await connection.execute(rows.NEW_PRICES.sql(), *arrays(rows.PRICE_COLUMNS, pinned))
    sequence: int = await connection.fetchval(
        "UPDATE ledgers SET price_epoch = price_epoch + 1 WHERE org = $1 RETURNING price_epoch", org
    )
    await connection.execute(
        "INSERT INTO org_prices (org, item, sequence, start_time, price_version, create_time,"
        " subject) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        org,
        item,
        sequence,
        start,
        price.version if price else None,
        now,
        subject,
    )
    return sequence


async def _advance(connection: Connection, org: str, start: datetime) -> None:
    """Lets no hold begin before `start`, by whichever clock: what is set at once counts at once."""
    await connection.execute("UPDATE ledgers SET latest_time = $2 WHERE org = $1", org, start)


def _change_of(record: Any) -> price_service_pb2.PriceChange:  # noqa: ANN401 - asyncpg's record
    change = price_service_pb2.PriceChange(
        sequence=record["sequence"],
        item=record["item"],
        start_time=timestamp(record["start_time"]),
        create_time=timestamp(record["create_time"]),
        subject=record["subject"],
    )
    price = price_of(record)
    if price is not None:
        change.price.CopyFrom(price_message(price))
    return change
