"""The offline verifier of a folder of tiles: every entry, every hash of every tile, up to the root.

The tiles' hashes prove nothing that the entries would not. They are checked because mirrors and
witnesses take their proofs from them, and because they tell where an accident happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

from remit.audit.archive_verifier import check_archives, note_archive
from remit.audit.evidence import Auditor, Report, Tree, VerificationError
from remit.audit.key_chain import ChainError, KeyChain
from remit.audit.merkle import Frontier, leaf_hash
from remit.audit.note import Verifier
from remit.audit.tile_folder import TileFaultError, TileFolder
from remit.audit.tiles import BUNDLES, CHECKPOINT, ROTATIONS, Tile, levels_of, tiles_of


def verify_tiles(folder: Path, auditor: Auditor, archives: Path | None = None) -> Report:
    """Verify a folder of tiles, also while it grows, and the archives of a folder against it.

    Raises:
        VerificationError: something does not fit; it names the place.
        OSError: a file cannot be read.

    """
    try:
        return _verified(TileFolder(folder), auditor, archives)
    except TileFaultError as error:
        raise VerificationError(error.path, error.fault) from error


def read_keys(reader: TileFolder, known: Verifier) -> KeyChain:
    """Return the keys of the log that the known one leads to. Raises VerificationError."""
    try:
        return KeyChain.read(known, reader.rotations())
    except ChainError as error:
        place = f"{ROTATIONS} ({error.place})" if error.link else "the public key"
        raise VerificationError(place, error.fault) from error


def _verified(reader: TileFolder, auditor: Auditor, archives: Path | None) -> Report:
    note = reader.checkpoint()
    keys = read_keys(reader, auditor.known)
    tree = auditor.tree(CHECKPOINT, note, keys)
    size = tree.checkpoint.tree_size
    recorded: dict[date, str] = {}
    roots = list(_check_entries(reader, size, tree, recorded))
    for level in levels_of(size)[1:]:
        roots = list(_check_level(reader, size, level, roots))
    tree.check_root()
    tree.check_earlier()
    report = tree.report()
    if archives is None:
        return report
    return replace(report, archives=tuple(check_archives(archives, recorded)))


def _check_entries(
    reader: TileFolder, tree_size: int, tree: Tree, recorded: dict[date, str]
) -> Iterator[bytes]:
    """Check each entry against its hash; give the roots of the full tiles."""
    for tile in tiles_of(tree_size, 0):
        bundle = Tile(BUNDLES, tile.index, tile.width)
        hashes = reader.hashes(tile)
        for index, (entry, hashed) in enumerate(
            zip(reader.entries(bundle), hashes, strict=True), tile.first
        ):
            if leaf_hash(entry) != hashed:
                raise VerificationError(
                    f"{bundle.path} (leaf {index})",
                    f"the entry does not have its hash in {tile.path}: one of them was changed",
                )
            tree.append(hashed, entry)
            note_archive(recorded, entry)
        if tile.is_full:
            yield _root(hashes)


def _check_level(
    reader: TileFolder, tree_size: int, level: int, below: list[bytes]
) -> Iterator[bytes]:
    """Check each hash against the full tile under it; give the roots of the full tiles."""
    for tile in tiles_of(tree_size, level):
        hashes = reader.hashes(tile)
        for index, hashed in enumerate(hashes, tile.first):
            if hashed != below[index]:
                under = Tile(level - 1, index)
                first, stop = under.leaves
                raise VerificationError(
                    f"{under.path} (leaves {first} to {stop - 1})",
                    f"it does not have its hash in {tile.path}: one of them was changed",
                )
        if tile.is_full:
            yield _root(hashes)


def _root(hashes: list[bytes]) -> bytes:
    frontier = Frontier()
    for hashed in hashes:
        frontier.append(hashed)
    return frontier.root()
