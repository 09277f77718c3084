"""Leaves for who reads the whole log: from the database, and of dropped months from the tiles.

What the tiles hold is compared with the leaf hashes, which the database keeps for ever.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.archived_months import ArchivedMonth, ArchivedMonths
from remit.audit.merkle import leaf_hash
from remit.audit.store import LogStore
from remit.audit.tile_folder import TileFaultError, TileFolder
from remit.audit.tiles import BUNDLES, TILE_WIDTH, Tile
from remit.rpc.errors import RemitError


class ArchivedLeaves:
    """Reads leaves, wherever they are. `tiles_dir` None: those of dropped months are not here."""

    def __init__(self, store: LogStore, months: ArchivedMonths, tiles_dir: Path | None) -> None:
        self._store = store
        self._months = months
        self._tiles = TileFolder(tiles_dir) if tiles_dir is not None else None

    async def read(self, start: int, stop: int) -> list[bytes]:
        """Return the bytes of the leaves from `start` up to and without `stop`.

        Raises:
            RemitError: EVENTS_ARCHIVED where they were dropped and this service has no tiles,
                DATA_CORRUPT when one is missing or was changed.

        """
        found = await self._store.present_leaves(start, stop)
        missing = [index for index in range(start, stop) if index not in found]
        if missing:
            await self._require_dropped(missing)
            found |= await self._from_tiles(missing)
        return [found[index] for index in range(start, stop)]

    async def _require_dropped(self, missing: list[int]) -> None:
        """Only what was dropped may be missing."""
        dropped = await self._months.all()
        for index in missing:
            if not any(_covers(month, index) for month in dropped):
                raise _corrupt(f"leaf {index} is not in the log")

    async def _from_tiles(self, missing: list[int]) -> dict[int, bytes]:
        if self._tiles is None:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_EVENTS_ARCHIVED,
                f"leaf {missing[0]} is of a month that was archived and dropped, and this service"
                " has no tiles",
            )
        found: dict[int, bytes] = {}
        for position in sorted({index // TILE_WIDTH for index in missing}):
            try:
                entries = await asyncio.to_thread(self._bundle, self._tiles, position)
            except (TileFaultError, OSError) as error:
                raise _corrupt(
                    f"leaf {missing[0]} cannot be read from the tiles: {error}"
                ) from error
            found |= dict(enumerate(entries, position * TILE_WIDTH))
        hashes = await self._store.leaf_hashes(missing[0], missing[-1] + 1)
        for index in missing:
            if index not in found or leaf_hash(found[index]) != hashes[index - missing[0]]:
                raise _corrupt(f"leaf {index} is not in the tiles as it was logged")
        return {index: found[index] for index in missing}

    @staticmethod
    def _bundle(tiles: TileFolder, position: int) -> list[bytes]:
        """The entries of a bundle, as many of it as are published."""
        size = tiles.published_size()
        width = min(size - position * TILE_WIDTH, TILE_WIDTH)
        return tiles.entries(Tile(BUNDLES, position, width)) if width > 0 else []


def _covers(month: ArchivedMonth, index: int) -> bool:
    return month.first_index <= index <= month.last_index


def _corrupt(fault: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_DATA_CORRUPT, fault)
