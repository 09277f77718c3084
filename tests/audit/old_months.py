"""Months that are over: events are moved there by the owner, as if they had been appended then."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import asyncpg

from remit.audit.archive_run import ArchivePlan, Done, run_once
from remit.audit.archived_leaves import ArchivedLeaves
from remit.audit.archived_months import ArchivedMonths, next_month
from remit.audit.archiving import Archiver, months_back
from remit.audit.signing_keys import SigningKeys
from remit.audit.tile_files import TileFiles
from remit.audit.tile_writer import TileWriter
from remit.postgres import Database
from tests.audit.events import KEYS, FakeClock, Log


def month_ago(count: int) -> date:
    """The first day of the month so many before this one."""
    return months_back(datetime.now(UTC), count)


def present() -> FakeClock:
    """A clock that agrees with the database's about the month."""
    return FakeClock(datetime.now(UTC))


async def as_owner(database: Database, *statements: str) -> None:
    """What no service may do."""
    owner = await asyncpg.connect(database.dsn.replace("remit_audit@", "remit_audit_owner@"))
    try:
        for statement in statements:
            await owner.execute(statement)
    finally:
        await owner.close()


async def make_old(database: Database, month: date, first: int, stop: int) -> None:
    """Move the leaves from `first` and below `stop` into a month that is over."""
    partition = f"events_{month:%Y_%m}"
    await as_owner(
        database,
        f"CREATE TABLE IF NOT EXISTS {partition} PARTITION OF events"
        f" FOR VALUES FROM ('{month} 00:00+00') TO ('{next_month(month)} 00:00+00')",
        "UPDATE events SET append_time = "  # noqa: S608 - values of this test
        f" '{month} 12:00+00'::timestamptz + leaf_index * interval '1 millisecond'"
        f" WHERE leaf_index >= {first} AND leaf_index < {stop}",
    )


@dataclass(frozen=True)
class OldLog:
    """A log with tiles, and an archiver of it."""

    log: Log
    archiver: Archiver
    months: ArchivedMonths
    tiles: Path
    folder: Path

    @classmethod
    def of(cls, log: Log, dropper: Database | None, place: Path) -> OldLog:
        """Tiles and archives lie in `place`."""
        tiles, folder = place / "tiles", place / "archive"
        archiver = Archiver(
            log.database,
            log.log,
            log.checkpoints,
            SigningKeys(KEYS.signer),
            dropper,
            tiles=tiles,
            folder=folder,
            clock=present(),
        )
        return cls(log, archiver, ArchivedMonths(log.database), tiles, folder)

    async def publish(self) -> str:
        """Sign what there is and write its tiles; return the note."""
        note = (await self.log.checkpoints.covering_all()).signed_note
        writer = TileWriter(
            TileFiles(self.tiles),
            self.log.store,
            self.log.checkpoints,
            interval_ms=10,
            tiles_per_round=256,
            leaves=ArchivedLeaves(self.log.store, self.months, self.tiles).read,
        )
        assert await writer.round()
        return note

    async def run(self, before: date, *, drops: bool = True, looks: bool = False) -> list[Done]:
        """Archive what is due."""
        return await run_once(self.archiver, self.folder, ArchivePlan(before, drops, looks))
