"""Watches holds that stay open: how old they are, and whether a claim still answers for them.

It reports and never closes: only the claim's own service knows whether its effect took place. A
hold that is minutes old is rare, and no index finds it, since one over the state of every
reservation would cost each settlement more than this is worth. So the watch reads each org's holds
once, in the order of their times, up to a minute ago, and remembers those that were still open.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from remit.cost import metrics
from remit.cost.claims import Claims
from remit.cost.ledger_check import report
from remit.cost.ledger_walk import LedgerWalk
from remit.cost.reconciliation import Difference, Kind, Place
from remit.cost.reservations import ReservationKey
from remit.cost.reservations import State as HoldState
from remit.postgres import Database
from remit.rpc.clock import Clock

YOUNG: Final = timedelta(minutes=1)
"""A hold that is younger is no matter: and while one is, others of its time may still commit."""
MOST_OPEN: Final = 10_000
"""Open holds that are remembered; beyond them the watch waits until some are closed."""
MOST_ASKED: Final = 1_024
"""Claims asked for in one look, of the oldest holds."""
MOST_SCANS: Final = 64
"""Scans in one look."""
ROWS_OF_A_SCAN: Final = 20_000

_BEGINNING: Final = datetime.min.replace(tzinfo=UTC)
_TICK: Final = timedelta(microseconds=1)
_OVERDUE: Final = frozenset({Kind.HOLD_LEFT, Kind.CLOSING_OVERDUE, Kind.OPEN_TOO_LONG})
_ORGS: Final = """
    SELECT l.org, coalesce(b.pending_nanos, 0) > 0 AS holds
    FROM ledgers l LEFT JOIN balances b ON b.account = l.org AND b.period = 1
"""
_SCAN: Final = f"""
    WITH span AS MATERIALIZED (
        SELECT claim, attempt, service, create_time, state, hold_nanos FROM reservations
        WHERE org = $1 AND account IS NOT NULL AND create_time >= $2 AND create_time < $3
        ORDER BY create_time LIMIT $4
    ), seen AS (SELECT count(*) AS size, max(create_time) AS latest FROM span)
    SELECT seen.*, open.* FROM seen LEFT JOIN (
        SELECT * FROM span WHERE state = {int(HoldState.HELD)} AND hold_nanos > 0
    ) open ON true
"""  # noqa: S608 - constants of this module


@dataclass(frozen=True, slots=True)
class _Open:
    org: str
    create_time: datetime


class HoldWatch:
    """Keeps the gauges of holds that stay open."""

    def __init__(self, database: Database, walk: LedgerWalk, claims: Claims, clock: Clock) -> None:
        self._database = database
        self._walk = walk
        self._claims = claims
        self._clock = clock
        self._read_until: dict[str, datetime] = {}
        self._open: dict[Place, _Open] = {}
        self._reported: set[tuple[Place, Kind]] = set()

    async def look(self) -> None:
        """One bounded round. Raises RemitError; the gauges then stay as they are."""
        now = self._clock.now()
        await self._forget_closed()
        await self._read_on(now - YOUNG)
        oldest = min((each.create_time for each in self._open.values()), default=now)
        metrics.OPEN_OLDEST.set(max((now - oldest).total_seconds(), 0.0))
        found = await self._differences()
        counts = Counter(each.kind for each in found.values())
        metrics.OPEN_UNCLAIMED.set(counts[Kind.CLAIM_MISSING])
        metrics.OPEN_OVERDUE.set(sum(counts[kind] for kind in _OVERDUE))
        self._report(found)

    async def _forget_closed(self) -> None:
        held = await self._walk.held(self._open)
        self._open = {
            place: each
            for place, each in self._open.items()
            if place in held and held[place].state is HoldState.HELD
        }

    async def _read_on(self, until: datetime) -> None:
        """Reads the ledgers on, those first that are furthest behind."""
        orgs = await self._database.fetch(_ORGS)
        holding = [row["org"] for row in orgs if row["holds"]]
        # Where nothing is held now, whatever was held before is closed.
        self._read_until |= {row["org"]: until for row in orgs if not row["holds"]}
        for _ in range(MOST_SCANS):
            behind = {org: self._read_until.get(org, _BEGINNING) for org in holding}
            org = min(behind, key=lambda org: (behind[org], org), default="")
            if not org or behind[org] >= until or len(self._open) >= MOST_OPEN:
                return
            await self._scan(org, behind[org], until)

    async def _scan(self, org: str, since: datetime, until: datetime) -> None:
        rows = await self._database.fetch(_SCAN, org, since, until, ROWS_OF_A_SCAN)
        for row in rows:
            if row["claim"] is not None:
                place = Place(row["service"], ReservationKey(row["claim"], row["attempt"]))
                self._open[place] = _Open(org, row["create_time"])
        is_last = rows[0]["size"] < ROWS_OF_A_SCAN
        self._read_until[org] = until if is_last else max(rows[0]["latest"], since + _TICK)

    async def _differences(self) -> dict[Place, Difference]:
        """What is wrong with the oldest of them, by two looks."""
        oldest = sorted(self._open, key=lambda place: self._open[place].create_time)[:MOST_ASKED]
        held = await self._walk.held(oldest)
        attempts = await self._claims.these(oldest)
        return await self._walk.confirmed(self._walk.differences(oldest, held, attempts))

    def _report(self, found: dict[Place, Difference]) -> None:
        """Says each once, for as long as it lasts."""
        standing = {(place, each.kind) for place, each in found.items()}
        for place in sorted(place for place, _ in standing - self._reported):
            report(found[place])
        self._reported = standing
