"""Archives old months and drops their events from the database, each step after the one before it.

1. The tiles are read back: every leaf of the month must be in them as it was logged, under a
   checkpoint that the log signed.
2. The payloads go to a file, which is synced, named, and read back.
3. The log records it: an entry that names the month and the digest of what the file holds.
4. A checkpoint covers that entry.
5. Another role drops the month; the database looks once more whether it is what the entry says.

Whatever dies in between, nothing is lost: until the last step the database has everything, and each
step that was done is found done. It is one transaction, so the month is there or recorded as gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

import asyncpg

from remit import telemetry
from remit.api.errors.v1 import error_reason_pb2
from remit.audit.archive_file import (
    ArchivedEvent,
    ArchiveError,
    ArchiveReader,
    ArchiveWriter,
    Chain,
    Contents,
    file_of,
    label,
)
from remit.audit.archived_months import ArchivedMonth, next_month
from remit.audit.checkpoints import CheckpointSigner
from remit.audit.log import AuditLog
from remit.audit.merkle import Frontier, leaf_hash
from remit.audit.own_events import record_archive
from remit.audit.signing_keys import SigningKeys
from remit.audit.tile_folder import TileFaultError, TileFolder
from remit.audit.tiles import BUNDLES, TILE_WIDTH, Tile, tiles_of
from remit.postgres import Database
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError

_PAGE: Final = 1024
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MONTHS_A_YEAR: Final = 12
# Every partition is named after its month. What was dropped keeps one for audit's own entries.
_PRESENT: Final = """
    SELECT to_date(substr(relname, 8), 'YYYY_MM') AS month
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'events'::regclass AND relname ~ '^events_[0-9]{4}_[0-9]{2}$'
    EXCEPT SELECT month FROM archived_months ORDER BY month
"""
_EVENTS: Final = """
    SELECT leaf_index, append_time, payload FROM events
    WHERE append_time >= $1 AND append_time < $2 AND leaf_index > $3
    ORDER BY leaf_index LIMIT $4
"""

log = telemetry.logger(__name__)


@dataclass(frozen=True)
class Month:
    """A month as it is in the database."""

    month: date
    events: int
    first_index: int
    last_index: int
    digest: bytes


class Archiver:
    """Archives months of one log. `dropper`: connections of the role that may drop them."""

    def __init__(  # noqa: PLR0913 - its collaborators, each used
        self,
        database: Database,
        audit_log: AuditLog,
        checkpoints: CheckpointSigner,
        keys: SigningKeys,
        dropper: Database | None,
        *,
        tiles: Path,
        folder: Path,
        clock: Clock,
    ) -> None:
        self._database = database
        self._log = audit_log
        self._checkpoints = checkpoints
        self._keys = keys
        self._dropper = dropper
        self._tiles_dir = tiles
        self._tiles = TileFolder(tiles)
        self._folder = folder
        self._clock = clock

    async def due(self, before: date) -> list[date]:
        """The months before one whose events are in the database, oldest first."""
        rows = await self._database.fetch(_PRESENT)
        last = last_archivable(self._clock.now())
        return [row["month"] for row in rows if row["month"] < before and row["month"] <= last]

    async def look(self, month: date) -> Month | None:
        """Read a month to its end; None if it has no events."""
        chain = Chain()
        async for event in self._events(month):
            chain.add(event)
        if chain.first_index is None or chain.last_index is None:
            return None
        return Month(month, chain.events, chain.first_index, chain.last_index, chain.digest)

    async def check_tiles(self, month: Month) -> None:
        """Read back every leaf of a month from the tiles.

        Raises:
            RemitError: INVALID_STATE where they are not there yet, DATA_CORRUPT where they are not
                what was logged.

        """
        try:
            size = await self._published()
            if size <= month.last_index:
                raise _not_yet(
                    f"the tiles in {self._tiles_dir} show {size} leaves, and {label(month.month)}"
                    f" ends at leaf {month.last_index}; audit writes them"
                )
            first, last = month.first_index // TILE_WIDTH, month.last_index // TILE_WIDTH
            for tile in tiles_of(size, 0, first):
                if tile.index > last:
                    break
                stated = (await self._log.store.range_hashes([tile.leaves]))[0]
                if await asyncio.to_thread(self._hashed, tile) != stated:
                    raise _corrupt(f"{tile.path}: its leaves are not those of the log")
        except (TileFaultError, OSError) as error:
            raise _corrupt(f"the tiles in {self._tiles_dir}: {error}") from error

    async def archive(self, month: Month) -> Contents:
        """Write the file of a month, or find it written; then record it. Safe to repeat.

        Raises:
            RemitError: DATA_CORRUPT where another month's file lies in its place,
                CONFIGURATION_INVALID where it cannot be written, and as `check_tiles`.

        """
        await self.check_tiles(month)
        try:
            contents = await self._written(month)
        except (ArchiveError, OSError) as error:
            raise _unwritable(file_of(self._folder, month.month), error) from error
        entry = await record_archive(self._log, contents, self._clock.now())
        await self._checkpoints.covering(entry + 1)
        log.info("month_archived", month=label(month.month), events=contents.events, entry=entry)
        return contents

    async def drop(self, month: date) -> ArchivedMonth:
        """Drop a month that was archived. Safe to repeat.

        Raises:
            RemitError: INVALID_STATE where the database refuses, CONFIGURATION_INVALID without the
                role for it, DEPENDENCY_UNAVAILABLE where it does not come to it now.

        """
        if self._dropper is None:
            raise _invalid("REMIT_AUDIT_ARCHIVER_DSN is not set: no month can be dropped here")
        try:
            row = await self._dropper.fetchrow("SELECT * FROM drop_month($1)", month)
        except asyncpg.ObjectNotInPrerequisiteStateError as error:
            raise _not_yet(f"{label(month)} is not dropped: {error}") from error
        except asyncpg.InsufficientPrivilegeError as error:
            raise _invalid(f"REMIT_AUDIT_ARCHIVER_DSN may drop no month: {error}") from error
        assert row is not None  # noqa: S101 - the function returns a row or raises
        dropped = ArchivedMonth.of(row)
        log.info("month_dropped", month=label(month), events=dropped.events)
        return dropped

    async def _published(self) -> int:
        """Leaves that the tiles show, under a checkpoint that this log signed and still extends."""
        note = await asyncio.to_thread(self._tiles.checkpoint)
        checkpoint = await self._keys.opened(note)
        if await self._log.store.size() < checkpoint.tree_size:
            raise _corrupt(f"the tiles show {checkpoint.tree_size} leaves, more than the log has")
        if await self._log.store.root(checkpoint.tree_size) != checkpoint.root_hash:
            raise _corrupt("the tiles show another tree than the log has")
        return checkpoint.tree_size

    def _hashed(self, tile: Tile) -> bytes:
        """The root of a tile's leaves, whose hashes must be those beside them."""
        hashes = [leaf_hash(e) for e in self._tiles.entries(Tile(BUNDLES, tile.index, tile.width))]
        if hashes != self._tiles.hashes(tile):
            raise TileFaultError(tile.path, "it does not hold the hashes of its entries")
        frontier = Frontier()
        for hashed in hashes:
            frontier.append(hashed)
        return frontier.root()

    async def _written(self, month: Month) -> Contents:
        path = file_of(self._folder, month.month)
        found = await asyncio.to_thread(_whole, path)
        if found is None:
            await self._write(month)
            found = await asyncio.to_thread(ArchiveReader(path).contents)
        if (found.month, found.digest) != (month.month, month.digest):
            raise ArchiveError("it holds other events than the log; move it away")
        return found

    async def _write(self, month: Month) -> None:
        writer = await asyncio.to_thread(
            ArchiveWriter, self._folder, self._keys.signer.name, month.month
        )
        try:
            async for page in self._pages(month.month):
                await asyncio.to_thread(writer.add_all, page)
            await asyncio.to_thread(writer.finish)
        except BaseException:
            writer.abandon()
            raise

    async def _events(self, month: date) -> AsyncIterator[ArchivedEvent]:
        async for page in self._pages(month):
            for event in page:
                yield event

    async def _pages(self, month: date) -> AsyncIterator[list[ArchivedEvent]]:
        begin, end = (
            datetime.combine(day, datetime.min.time(), UTC) for day in (month, next_month(month))
        )
        after = -1
        while rows := await self._database.fetch(_EVENTS, begin, end, after, _PAGE):
            yield [
                ArchivedEvent(row["leaf_index"], _micros(row["append_time"]), row["payload"])
                for row in rows
            ]
            after = rows[-1]["leaf_index"]


def last_archivable(now: datetime) -> date:
    """The first day of the youngest month that may go: the one before the last."""
    return months_back(now, 2)


def months_back(now: datetime, count: int) -> date:
    """The first day of the month that lies so many months before this one, in UTC."""
    today = now.astimezone(UTC).date()
    months = today.year * _MONTHS_A_YEAR + today.month - 1 - count
    return date(months // _MONTHS_A_YEAR, months % _MONTHS_A_YEAR + 1, 1)


def retained_from(now: datetime, retention_months: int) -> date:
    """The first month that is kept, of so many whole months before this one."""
    return months_back(now, retention_months)


def _whole(path: Path) -> Contents | None:
    """What a file holds; None if it is not there, or was cut off or damaged: it is written anew."""
    with contextlib.suppress(FileNotFoundError, ArchiveError):
        return ArchiveReader(path).contents()
    return None


def _micros(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)


def _not_yet(fault: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_INVALID_STATE, fault)


def _unwritable(path: Path, error: Exception) -> RemitError:
    if isinstance(error, ArchiveError):
        return _corrupt(f"{path}: {error}")
    return _invalid(f"{path} cannot be written: {error}")


def _invalid(fault: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID, fault)


def _corrupt(fault: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_DATA_CORRUPT, fault)
