"""A folder of tiles as it is read: whole files of a bounded size, and proofs from them.

A partial tile may be removed once the full one is there, so whoever looks for a partial one and
finds none looks for the full one. Reading it this way, a folder that is being written to can be
verified, copied and witnessed at any moment.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from remit.audit import merkle
from remit.audit.merkle import HASH_BYTES, TILE_HEIGHT, LeafRange, Node
from remit.audit.note import MAX_NOTE_BYTES, Checkpoint, NoteError
from remit.audit.tiles import (
    CHECKPOINT,
    MAX_BUNDLE_BYTES,
    ROTATIONS,
    TILE_WIDTH,
    Tile,
    TileError,
    entries_in,
    hashes_in,
)

_MAX_ROTATIONS_BYTES: Final = 1 << 20


class TileFaultError(Exception):
    """A file of the folder is missing or damaged; `path` is relative to the folder."""

    def __init__(self, path: str, fault: str) -> None:
        super().__init__(f"{path}: {fault}")
        self.path = path
        self.fault = fault


class TileFolder:
    """Reads a folder of tiles. Each method raises TileFaultError and OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def checkpoint(self) -> str:
        """The signed note in `checkpoint`."""
        data = self._read(CHECKPOINT, MAX_NOTE_BYTES)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise TileFaultError(CHECKPOINT, "it is not text") from error

    def published_size(self) -> int:
        """The number of leaves that are shown. Nobody's signature is looked at."""
        try:
            return Checkpoint.parse(self.checkpoint().partition("\n\n")[0] + "\n").tree_size
        except NoteError as error:
            raise TileFaultError(CHECKPOINT, f"it is no checkpoint: {error}") from error

    def rotations(self) -> list[str]:
        """The statements by which each key of the log led to the next; none if it had one key."""
        if not (self._folder / ROTATIONS).exists():
            return []
        data = self._read(ROTATIONS, _MAX_ROTATIONS_BYTES)
        try:
            notes = [json.loads(line) for line in data.decode().splitlines()]
        except (ValueError, RecursionError) as error:
            raise TileFaultError(ROTATIONS, "it is not a JSON string a line") from error
        if not data.endswith(b"\n") or not all(isinstance(note, str) for note in notes):
            raise TileFaultError(ROTATIONS, "it is not a JSON string a line")
        return notes

    def entries(self, tile: Tile) -> list[bytes]:
        """The entries of a bundle."""
        path, data = self._tile(tile, MAX_BUNDLE_BYTES)
        try:
            entries = entries_in(data)
        except TileError as error:
            raise TileFaultError(path, str(error)) from error
        return _counted(path, entries, tile, "entries")

    def hashes(self, tile: Tile) -> list[bytes]:
        """The hashes of a tile."""
        path, data = self._tile(tile, TILE_WIDTH * HASH_BYTES)
        try:
            hashes = hashes_in(data)
        except TileError as error:
            raise TileFaultError(path, str(error)) from error
        return _counted(path, hashes, tile, "hashes")

    def consistency_proof(self, first_size: int, second_size: int) -> list[bytes]:
        """The proof that a tree is a prefix of one whose tiles are here."""
        ranges = merkle.consistency_ranges(first_size, second_size)
        stored = self._nodes(merkle.needed_nodes(ranges), second_size)
        return [merkle.range_hash(leaves, stored) for leaves in ranges]

    def root(self, tree_size: int, within: int) -> bytes:
        """The root of the first leaves of a tree of `within` leaves whose tiles are here."""
        if tree_size == 0:
            return merkle.EMPTY_ROOT
        leaves = LeafRange(0, tree_size)
        return merkle.range_hash(leaves, self._nodes(merkle.needed_nodes([leaves]), within))

    def _nodes(self, nodes: set[Node], tree_size: int) -> dict[Node, bytes]:
        wanted: dict[Tile, list[Node]] = defaultdict(list)
        for node in nodes:
            level, index = node.level // TILE_HEIGHT, node.position // TILE_WIDTH
            there = tree_size // TILE_WIDTH**level - index * TILE_WIDTH
            wanted[Tile(level, index, min(there, TILE_WIDTH))].append(node)
        found: dict[Node, bytes] = {}
        for tile, inside in wanted.items():
            hashes = self.hashes(tile)
            found |= {node: hashes[node.position - tile.first] for node in inside}
        return found

    def _tile(self, tile: Tile, most_bytes: int) -> tuple[str, bytes]:
        """The path and the bytes of a tile, or of the full one that has replaced it."""
        try:
            return tile.path, self._read(tile.path, most_bytes)
        except TileFaultError:
            if tile.is_full or not (self._folder / tile.full.path).exists():
                raise
        return tile.full.path, self._read(tile.full.path, most_bytes)

    def _read(self, path: str, most_bytes: int) -> bytes:
        try:
            with (self._folder / path).open("rb") as file:
                data = file.read(most_bytes + 1)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise TileFaultError(path, "it is missing") from error
        if len(data) > most_bytes:
            raise TileFaultError(path, f"it has more than {most_bytes} bytes")
        return data


def _counted(path: str, items: Sequence[bytes], tile: Tile, what: str) -> list[bytes]:
    """As many items as the tile has; of a full one, read in place of a partial one, the first."""
    due = {tile.width} if path == tile.path else {TILE_WIDTH}
    if len(items) not in due:
        raise TileFaultError(path, f"it holds {len(items)} {what} instead of {min(due)}")
    return list(items[: tile.width])
