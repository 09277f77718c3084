"""Folders of tiles made from leaves alone: what the writer writes is compared with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from remit.audit.merkle import Frontier, Node, leaf_hash
from remit.audit.note import Checkpoint, Signer
from remit.audit.tiles import bundle, levels_of, tiles_of


def tree(leaves: Sequence[bytes]) -> tuple[bytes, dict[Node, bytes]]:
    """The root, and every complete subtree."""
    frontier = Frontier()
    nodes: dict[Node, bytes] = {}
    for leaf in leaves:
        nodes |= dict(frontier.append(leaf_hash(leaf)))
    return frontier.root(), nodes


def signed(leaves: Sequence[bytes], signer: Signer) -> str:
    """A checkpoint of exactly these leaves."""
    return signer.sign(Checkpoint(signer.name, len(leaves), tree(leaves)[0]).body())


def tile_files(leaves: Sequence[bytes], note: str) -> dict[str, bytes]:
    """Every file that a log of these leaves needs, by path."""
    nodes = tree(leaves)[1]
    files = {"checkpoint": note.encode()}
    for tile in tiles_of(len(leaves), -1):
        files[tile.path] = bundle(leaves[tile.first : tile.first + tile.width])
    for level in levels_of(len(leaves)):
        for tile in tiles_of(len(leaves), level):
            files[tile.path] = b"".join(
                nodes[Node(8 * level, tile.first + offset)] for offset in range(tile.width)
            )
    return files


def write_tiles(folder: Path, leaves: Sequence[bytes], note: str) -> Path:
    """Writes them."""
    for path, data in tile_files(leaves, note).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    """The files of a folder by path, but hidden ones."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }
