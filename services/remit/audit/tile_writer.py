"""Keeps a folder of tiles up to the log's newest checkpoint, and never in the way of an append.

A round writes what is missing between the published checkpoint and the newest one: bundles and
leaf hashes, then the levels above, then the checkpoint. What is there already is left alone, so a
round that was cut off, by its bound or by a kill, is continued by the next one, on any replica.

Nothing is published that the tree does not vouch for: the leaves must have the hashes in the log,
and the log must extend what the folder shows already. Readers may have seen that; a log that has
become shorter or another one is told and the folder is left as it is.
"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, ParamSpec, TypeAlias, TypeVar

from remit import telemetry
from remit.api.errors.v1 import error_reason_pb2
from remit.audit.checkpoints import CheckpointSigner, SignedCheckpoint
from remit.audit.merkle import EMPTY_ROOT, Frontier, LeafRange, leaf_hash
from remit.audit.metrics import TILES_FAILURES, TILES_SIZE
from remit.audit.note import Checkpoint
from remit.audit.store import LogStore
from remit.audit.tile_files import TileFiles
from remit.audit.tile_folder import TileFaultError, TileFolder
from remit.audit.tiles import (
    BUNDLES,
    CHECKPOINT,
    ROTATIONS,
    TILE_WIDTH,
    Tile,
    bundle,
    levels_of,
    tiles_of,
)
from remit.rpc.errors import RemitError

_NOTHING: Final = Checkpoint("", 0, EMPTY_ROOT)
Result = TypeVar("Result")
Params = ParamSpec("Params")
ReadLeaves: TypeAlias = Callable[[int, int], Awaitable[list[bytes]]]

log = telemetry.logger(__name__)


class TileWriter:
    """Writes the tiles of one log to one folder.

    `leaves` reads those of dropped months too: a bundle that is not full yet may have some.
    """

    def __init__(
        self,
        files: TileFiles,
        store: LogStore,
        checkpoints: CheckpointSigner,
        *,
        interval_ms: int,
        tiles_per_round: int,
        leaves: ReadLeaves | None = None,
    ) -> None:
        self._files = files
        self._store = store
        self._checkpoints = checkpoints
        self._leaves = leaves or store.leaves
        self._interval_s = interval_ms / 1000
        self._most = tiles_per_round
        self._known = 0
        """The full tiles of leaves below this index are there."""
        self._published_size = 0

    async def run(self) -> None:
        """Write a round at each interval, until cancelled. A round that fails is tried again."""
        while True:
            try:
                await self.round()
            except RemitError as error:
                self._delayed(error.reason_name, error.message)
            except TileFaultError as error:
                self._delayed("DATA_CORRUPT", str(error))
            except OSError as error:
                self._delayed(errno.errorcode.get(error.errno or 0, "EIO"), str(error))
            await asyncio.sleep(self._interval_s)

    async def round(self) -> bool:
        """Write what is missing, as far as a round goes; tell whether the newest is published.

        Raises:
            RemitError: DATA_CORRUPT when the log does not extend what was published, or a leaf
                does not have its hash.
            OSError: the disk refuses.

        """
        locking = self._files.locked()
        if not await _in_thread(locking.__enter__):
            locking.__exit__(None, None, None)
            return False  # another replica is at it
        try:
            return await self._locked_round()
        finally:
            locking.__exit__(None, None, None)

    async def _locked_round(self) -> bool:
        published = await _in_thread(self._files.published) or _NOTHING
        # In this order: what was published had been signed before.
        newest = await self._checkpoints.covering(0)
        await self._check_extends(published, newest)
        await _in_thread(self._write_rotations, self._checkpoints.rotations)
        if published.origin and published.tree_size == newest.tree_size:
            TILES_SIZE.set(published.tree_size)
            return True
        if published.tree_size < self._published_size:  # somebody cleared the folder
            self._known = 0
        self._published_size = published.tree_size
        if not await self._write_leaves(published.tree_size, newest.tree_size):
            await _in_thread(self._files.sync)
            return False
        await self._write_levels(published.tree_size, newest.tree_size)
        await _in_thread(self._publish, published, newest)
        self._published_size = newest.tree_size
        TILES_SIZE.set(newest.tree_size)
        return True

    async def _check_extends(self, published: Checkpoint, newest: SignedCheckpoint) -> None:
        size = published.tree_size
        if size > newest.tree_size:
            raise _corrupt(
                f"the log has {newest.tree_size} leaves, and the tiles in {self._files.folder} show"
                f" {size} already: the database was rolled back"
            )
        if await self._store.root(size) != published.root_hash:
            raise _corrupt(
                f"the tiles in {self._files.folder} show another tree of {size} leaves, of the log"
                f" {published.origin}: give each log a folder of its own"
            )

    def _write_rotations(self, notes: Sequence[str]) -> None:
        """Write how the log's keys led to each other, before a checkpoint of the newest is shown.

        A replica with old key files knows fewer of them, and takes none away.
        """
        if len(notes) > len(TileFolder(self._files.folder).rotations()):
            lines = "".join(f"{json.dumps(note)}\n" for note in notes)
            self._files.write(ROTATIONS, lines.encode())
            self._files.sync()

    async def _write_leaves(self, published_size: int, tree_size: int) -> bool:
        """Write bundles and their hashes; False if more are missing than a round may write."""
        written = 0
        start = max(self._known, published_size // TILE_WIDTH)
        for tile in tiles_of(tree_size, 0, start):
            entries = Tile(BUNDLES, tile.index, tile.width)
            if not await _in_thread(lambda: self._files.has(entries) and self._files.has(tile)):  # noqa: B023 - awaited here
                if written == self._most:
                    log.info("tiles_behind", leaves=tile.first, tree_size=tree_size)
                    return False
                leaves = await self._leaves(*tile.leaves)
                stated = (await self._store.range_hashes([tile.leaves]))[0]
                await _in_thread(self._write_bundle, entries, tile, leaves, stated)
                written += 1
            if tile.is_full:
                self._known = tile.index + 1
        return True

    def _write_bundle(self, entries: Tile, tile: Tile, leaves: list[bytes], stated: bytes) -> None:
        hashes = [leaf_hash(leaf) for leaf in leaves]
        frontier = Frontier()
        for hashed in hashes:
            frontier.append(hashed)
        if frontier.root() != stated:
            raise _corrupt(
                f"leaves {tile.leaves.start} to {tile.leaves.stop - 1} are not what the tree holds"
            )
        self._files.write(entries.path, bundle(leaves))
        self._files.write(tile.path, b"".join(hashes))

    async def _write_levels(self, published_size: int, tree_size: int) -> None:
        for level in levels_of(tree_size)[1:]:
            first = (published_size // TILE_WIDTH**level) // TILE_WIDTH
            for tile in tiles_of(tree_size, level, first):
                if not await _in_thread(self._files.has, tile):
                    hashes = await self._store.range_hashes(_nodes(tile))
                    await _in_thread(self._files.write, tile.path, b"".join(hashes))

    def _publish(self, published: Checkpoint, newest: SignedCheckpoint) -> None:
        """Sync what the checkpoint needs, remove what nobody needs, and show the checkpoint."""
        self._files.sync()
        for level in (BUNDLES, *levels_of(newest.tree_size)):
            first = (published.tree_size // TILE_WIDTH ** max(level, 0)) // TILE_WIDTH
            for tile in tiles_of(newest.tree_size, level, first):
                if tile.is_full:
                    self._files.remove_partials(tile)
        self._files.write(CHECKPOINT, newest.signed_note.encode())
        self._files.sync()

    def _delayed(self, reason: str, error: str) -> None:
        TILES_FAILURES.labels(reason).inc()
        log.warning("tiles_delayed", reason=reason, error=error)


def _nodes(tile: Tile) -> list[LeafRange]:
    """The leaves under each hash of a tile."""
    span = TILE_WIDTH**tile.level
    starts = range(tile.leaves.start, tile.leaves.stop, span)
    return [LeafRange(start, start + span) for start in starts]


async def _in_thread(
    work: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs
) -> Result:
    """Do blocking work beside the loop. Cancelled, it ends its work first: it holds the lock."""
    task = asyncio.create_task(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _corrupt(fault: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_DATA_CORRUPT, fault)
