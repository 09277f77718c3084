"""Where leaves that a database lost can still be had: an export or the tiles of before.

Nothing here is believed. Whoever uses the leaves hashes them and compares roots with checkpoints
that the log signed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from remit.audit.note import NoteError, decode_base64
from remit.audit.tile_folder import TileFaultError, TileFolder
from remit.audit.tiles import BUNDLES, tiles_of
from remit.audit.verifier import MAX_LINE_BYTES


class SourceError(Exception):
    """A file holds no leaves; the message says where it is at fault."""


class LeafSource(Protocol):
    """Leaves of a log, kept outside of its database."""

    @property
    def path(self) -> Path:
        """Where they are kept."""

    def signed_note(self) -> str:
        """Return the checkpoint that they end at. Raises SourceError and OSError."""

    def leaves(self, count: int) -> Iterator[bytes]:
        """Yield that many leaves, or all, from the first on. Raises SourceError and OSError."""


def source_of(path: Path) -> LeafSource:
    """The source that a folder of tiles or the file of an export is."""
    return TileLeaves(path) if path.is_dir() else ExportFile(path)


@dataclass(frozen=True)
class TileLeaves:
    """The leaves of a folder of tiles, up to its checkpoint."""

    path: Path

    def signed_note(self) -> str:
        """Return the checkpoint that the tiles show. Raises SourceError and OSError."""
        try:
            return TileFolder(self.path).checkpoint()
        except TileFaultError as error:
            raise SourceError(f"{self.path}: {error}") from error

    def leaves(self, count: int) -> Iterator[bytes]:
        """Yield the bytes of that many leaves, or of all. Raises SourceError and OSError."""
        tiles = TileFolder(self.path)
        try:
            size = min(count, tiles.published_size())
            for tile in tiles_of(tiles.published_size(), BUNDLES):
                yield from tiles.entries(tile)[: max(size - tile.first, 0)]
        except TileFaultError as error:
            raise SourceError(f"{self.path}: {error}") from error


@dataclass(frozen=True)
class ExportFile:
    """The leaves of an export, from the first on, each time they are asked for."""

    path: Path

    def signed_note(self) -> str:
        """Return the checkpoint that the export ends at. Raises SourceError and OSError."""
        for number, members in self._lines():
            if isinstance(members.get("checkpoint"), str):
                return str(members["checkpoint"])
            if "leaf" in members:
                raise SourceError(
                    f"{self.path}: line {number}: a leaf stands before the checkpoint"
                )
        raise SourceError(f"{self.path} holds no checkpoint")

    def leaves(self, count: int) -> Iterator[bytes]:
        """Yield the bytes of that many leaves, or of all. Raises SourceError and OSError."""
        found = (
            (number, members["leaf"]) for number, members in self._lines() if "leaf" in members
        )
        for number, leaf in islice(found, count):
            try:
                yield decode_base64(str(leaf), "the leaf")
            except NoteError as error:
                raise SourceError(f"{self.path}: line {number}: {error}") from error

    def _lines(self) -> Iterator[tuple[int, dict[str, object]]]:
        with self.path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                try:
                    members = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise SourceError(f"{self.path}: line {number} is not JSON") from error
                if not isinstance(members, dict):
                    raise SourceError(f"{self.path}: line {number} is no line of an export")
                yield number, members
