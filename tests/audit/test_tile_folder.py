"""Tiles as they are read: proofs from them, a full tile in place of a partial one, and faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from remit.audit import merkle
from remit.audit.note import Signer
from remit.audit.tile_folder import TileFaultError, TileFolder
from remit.audit.tiles import Tile
from tests.audit.tile_trees import signed, tree, write_tiles

SIGNER = Signer.generate("remit.internal/audit/test")
LEAVES = [f"leaf {index}".encode() for index in range(600)]
SIZES = (1, 2, 255, 256, 257, 300, 511, 512, 599, 600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("tiles"), LEAVES, signed(LEAVES, SIGNER))


def test_its_proofs_show_that_every_tree_extends_every_smaller_one(folder: Path) -> None:
    for size in SIZES:
        assert TileFolder(folder).root(size, 600) == tree(LEAVES[:size])[0]
        proof = TileFolder(folder).consistency_proof(size, 600)
        merkle.verify_consistency(size, 600, tree(LEAVES[:size])[0], tree(LEAVES)[0], proof)
    assert TileFolder(folder).root(0, 600) == merkle.EMPTY_ROOT


def test_a_full_tile_stands_in_for_the_partial_one_that_it_replaced(folder: Path) -> None:
    reader = TileFolder(folder)
    assert reader.entries(Tile(-1, 1, 44)) == LEAVES[256:300]
    assert reader.hashes(Tile(0, 1, 44)) == [merkle.leaf_hash(leaf) for leaf in LEAVES[256:300]]


@pytest.mark.parametrize(
    ("tile", "data", "fault"),
    [
        (Tile(0, 0), b"x" * 31, "cut off within a hash"),
        (Tile(0, 0), b"x" * 32 * 255, "holds 255 hashes instead of 256"),
        (Tile(0, 0), b"x" * 32 * 257, "more than 8192 bytes"),
        (Tile(0, 2, 88), b"x" * 32 * 87, "holds 87 hashes instead of 88"),
        (Tile(-1, 0), b"\x00\x05four", "cut off within its entry 0"),
        (Tile(-1, 2, 88), b"\x00\x01x" * 89, "holds 89 entries instead of 88"),
        (Tile(0, 7), None, "missing"),
        (Tile(0, 7, 3), None, "missing"),
    ],
)
def test_what_is_no_tile_is_named_with_its_path(
    tmp_path: Path, tile: Tile, data: bytes | None, fault: str
) -> None:
    if data is not None:
        (tmp_path / tile.path).parent.mkdir(parents=True)
        (tmp_path / tile.path).write_bytes(data)
    reader = TileFolder(tmp_path)
    with pytest.raises(TileFaultError, match=fault) as raised:
        (reader.entries if tile.level < 0 else reader.hashes)(tile)
    assert raised.value.path == tile.path


@pytest.mark.parametrize(
    ("data", "fault"), [(None, "missing"), (b"\xff\xff", "not text"), (b"x" * 70_000, "more than")]
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, data: bytes | None, fault: str) -> None:
    if data is not None:
        (tmp_path / "checkpoint").write_bytes(data)
    with pytest.raises(TileFaultError, match=fault) as raised:
        TileFolder(tmp_path).checkpoint()
    assert raised.value.path == "checkpoint"
