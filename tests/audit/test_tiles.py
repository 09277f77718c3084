"""The layout of the tiles: the examples of the specification, and any size against a definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.audit.merkle import LeafRange
from remit.audit.tiles import (
    MAX_ENTRY_BYTES,
    Tile,
    TileError,
    bundle,
    entries_in,
    hashes_in,
    levels_of,
    tiles_of,
)


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 999), "tile/0/999"),
        (Tile(1, 1000), "tile/1/x001/000"),
        (Tile(0, 1_234_067), "tile/0/x001/x234/067"),
        (Tile(2, 67, 1), "tile/2/067.p/1"),
        (Tile(-1, 1_234_067, 255), "tile/entries/x001/x234/067.p/255"),
    ],
)
def test_a_tile_lies_where_the_specification_says(tile: Tile, path: str) -> None:
    assert tile.path == path
    assert tile.partials == path.partition(".p/")[0] + ".p"


def test_the_tree_of_70_000_leaves_has_the_tiles_of_the_specification() -> None:
    tiles = {level: list(tiles_of(70_000, level)) for level in levels_of(70_000)}
    assert [(len(tiles[level]), tiles[level][-1].width) for level in (0, 1, 2)] == [
        (274, 112),
        (2, 17),
        (1, 1),
    ]
    assert len(tiles) == 3


def test_a_tree_of_256_leaves_has_a_full_tile_and_one_of_width_1() -> None:
    assert list(tiles_of(256, 0)) == [Tile(0, 0)]
    assert list(tiles_of(256, 1)) == [Tile(1, 0, 1)]
    assert list(tiles_of(256, -1)) == [Tile(-1, 0)]
    assert list(levels_of(256)) == [0, 1]
    assert list(levels_of(255)) == [0]
    assert list(levels_of(0)) == []


@given(st.integers(0, 2**18), st.integers(0, 2))
def test_the_tiles_of_a_level_cover_its_whole_hashes_once(size: int, level: int) -> None:
    spans = [tile.leaves for tile in tiles_of(size, level)]
    assert all(tile.width in range(1, 257) for tile in tiles_of(size, level))
    stop = 0
    for span in spans:
        assert span.start == stop
        stop = span.stop
    assert stop == size // 256**level * 256**level


@given(st.integers(0, 2**20), st.integers(0, 2**12))
def test_tiles_from_an_index_on_are_the_rest(size: int, start: int) -> None:
    assert list(tiles_of(size, 0, start)) == list(tiles_of(size, 0))[start:]


def test_a_bundle_covers_the_leaves_of_its_tile() -> None:
    assert Tile(-1, 3, 7).leaves == Tile(0, 3, 7).leaves == LeafRange(768, 775)


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_a_bundle_gives_its_entries_back(entries: list[bytes]) -> None:
    assert entries_in(bundle(entries)) == entries


@given(st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=5), st.data())
def test_a_bundle_that_is_cut_within_an_entry_is_refused(
    entries: list[bytes], data: st.DataObject
) -> None:
    whole = bundle(entries)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    ends = [len(bundle(entries[:count])) for count in range(len(entries))]
    if len(cut) in ends:
        assert len(entries_in(cut)) < len(entries)
    else:
        with pytest.raises(TileError, match="cut off within its entry"):
            entries_in(cut)


def test_the_longest_entry_fits_and_no_longer_one() -> None:
    assert entries_in(bundle([b"x" * MAX_ENTRY_BYTES])) == [b"x" * MAX_ENTRY_BYTES]
    with pytest.raises(TileError, match="65536 bytes"):
        bundle([b"x" * (MAX_ENTRY_BYTES + 1)])


def test_a_tile_that_is_cut_within_a_hash_is_refused() -> None:
    assert hashes_in(b"a" * 32 + b"b" * 32) == [b"a" * 32, b"b" * 32]
    with pytest.raises(TileError, match="within a hash"):
        hashes_in(b"a" * 33)
