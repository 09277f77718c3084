"""The log as static files, in the layout of C2SP tlog-tiles: names, contents, what a size needs.

A mirror needs no service: whoever has the folder has the log. It holds

======================================= ============================================================
``checkpoint``                          the newest signed checkpoint whose tiles are all there
``tile/<level>/<index>``                256 hashes; level 0 are the leaves', level n + 1 those of
                                        whole tiles of level n
``tile/<level>/<index>.p/<width>``      the first hashes of a tile that is not full yet
``tile/entries/<index>[.p/<width>]``    the leaves themselves, each after its length in two bytes
``rotations``                           where the log's key was replaced: how each key led to the
                                        next (`key_chain`), a JSON string a line; our own addition
======================================= ============================================================

An index stands in groups of three digits, all but the last after an ``x``: 1234067 is
``x001/x234/067``. A full tile never changes, and a partial one is only ever replaced by a wider one
beside it; so every file but the checkpoint can be copied and cached for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from remit.audit.merkle import HASH_BYTES, TILE_HEIGHT, LeafRange

TILE_WIDTH: Final = 1 << TILE_HEIGHT
CHECKPOINT: Final = "checkpoint"
ROTATIONS: Final = "rotations"
BUNDLES: Final = -1
"""The level of `Tile` that means the bundles of entries."""
_LENGTH_BYTES: Final = 2
MAX_ENTRY_BYTES: Final = (1 << 8 * _LENGTH_BYTES) - 1
MAX_BUNDLE_BYTES: Final = TILE_WIDTH * (_LENGTH_BYTES + MAX_ENTRY_BYTES)


class TileError(ValueError):
    """A file of the folder is not what its name says; the message says why."""


@dataclass(frozen=True, order=True)
class Tile:
    """A tile, full or partial. `level` is BUNDLES for one of entries, which lies under level 0."""

    level: int
    index: int
    width: int = TILE_WIDTH

    @property
    def is_full(self) -> bool:
        """Whether nothing can be added to it any more."""
        return self.width == TILE_WIDTH

    @property
    def path(self) -> str:
        """Where it lies in the folder."""
        name = "entries" if self.level < 0 else str(self.level)
        suffix = "" if self.is_full else f".p/{self.width}"
        return f"tile/{name}/{_grouped(self.index)}{suffix}"

    @property
    def full(self) -> Tile:
        """The full tile that this one is, or becomes."""
        return Tile(self.level, self.index)

    @property
    def partials(self) -> str:
        """The folder of its partial tiles."""
        return f"{self.full.path}.p"

    @property
    def first(self) -> int:
        """The position, within its level, of its first hash or entry."""
        return self.index * TILE_WIDTH

    @property
    def leaves(self) -> LeafRange:
        """The leaves under it."""
        span = TILE_WIDTH ** max(self.level, 0)
        return LeafRange(self.first * span, (self.first + self.width) * span)


def tiles_of(tree_size: int, level: int, start: int = 0) -> Iterator[Tile]:
    """The tiles of a level, or with -1 the bundles, for a tree; from index `start` on."""
    full, width = divmod(tree_size // TILE_WIDTH ** max(level, 0), TILE_WIDTH)
    for index in range(start, full):
        yield Tile(level, index)
    if width and start <= full:
        yield Tile(level, full, width)


def levels_of(tree_size: int) -> range:
    """The levels of hash tiles that a tree of this size has."""
    count = 0
    while tree_size >> TILE_HEIGHT * count:
        count += 1
    return range(count)


def bundle(entries: Sequence[bytes]) -> bytes:
    """The bytes of a bundle of entries. Raises TileError for an entry that is too long."""
    parts = []
    for entry in entries:
        if len(entry) > MAX_ENTRY_BYTES:
            raise TileError(f"an entry has {len(entry)} bytes, above {MAX_ENTRY_BYTES}")
        parts += [len(entry).to_bytes(_LENGTH_BYTES, "big"), entry]
    return b"".join(parts)


def entries_in(data: bytes) -> list[bytes]:
    """The entries of a bundle. Raises TileError where it is cut off within an entry."""
    entries: list[bytes] = []
    position = 0
    while position < len(data):
        start = position + _LENGTH_BYTES
        position = start + int.from_bytes(data[position:start], "big")
        if start > len(data) or position > len(data):
            raise TileError(f"it is cut off within its entry {len(entries)}")
        entries.append(data[start:position])
    return entries


def hashes_in(data: bytes) -> list[bytes]:
    """The hashes of a tile. Raises TileError where it is cut off within a hash."""
    if len(data) % HASH_BYTES:
        raise TileError("it is cut off within a hash")
    return [data[start : start + HASH_BYTES] for start in range(0, len(data), HASH_BYTES)]


def _grouped(index: int) -> str:
    digits = str(index)
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[start : start + 3] for start in range(0, len(digits), 3)]
    return "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
