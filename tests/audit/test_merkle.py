"""The tree against an independent definition, published vectors, and tampering."""

from __future__ import annotations

import hashlib
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.audit import merkle
from remit.audit.merkle import Frontier, LeafRange, Node, ProofError

LARGEST = 300
LEAVES = [f"leaf {index}".encode() for index in range(LARGEST)]

# The leaf inputs and roots of the test data that Certificate Transparency implementations share.
CT_LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
CT_PATH_0_OF_8 = [
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
]
CT_CONSISTENCY_6_OF_8 = [
    "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
]


# ------------------------------------------------- RFC 6962 section 2.1, word for word


@cache
def mth(start: int, stop: int) -> bytes:
    """MTH(D[start:stop])."""
    if stop == start:
        return hashlib.sha256().digest()
    if stop - start == 1:
        return hashlib.sha256(b"\x00" + LEAVES[start]).digest()
    k = largest_power_below(stop - start)
    return hashlib.sha256(b"\x01" + mth(start, start + k) + mth(start + k, stop)).digest()


def largest_power_below(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def path(m: int, start: int, stop: int) -> list[bytes]:
    """PATH(m, D[start:stop])."""
    if stop - start == 1:
        return []
    k = largest_power_below(stop - start)
    if m < k:
        return [*path(m, start, start + k), mth(start + k, stop)]
    return [*path(m - k, start + k, stop), mth(start, start + k)]


def subproof(m: int, start: int, stop: int, *, known: bool) -> list[bytes]:
    """SUBPROOF(m, D[start:stop], b)."""
    if m == stop - start:
        return [] if known else [mth(start, stop)]
    k = largest_power_below(stop - start)
    if m <= k:
        return [*subproof(m, start, start + k, known=known), mth(start + k, stop)]
    return [*subproof(m - k, start + k, stop, known=False), mth(start, start + k)]


# ------------------------------------------------------------------------- the tree


def build(leaves: list[bytes]) -> tuple[Frontier, dict[Node, bytes]]:
    """Append one by one, keeping what a store keeps."""
    frontier = Frontier()
    stored: dict[Node, bytes] = {}
    for leaf in leaves:
        completed = frontier.append(merkle.leaf_hash(leaf))
        stored |= {node: hashed for node, hashed in completed if merkle.is_stored(node)}
    return frontier, stored


@pytest.fixture(scope="module")
def stored() -> dict[Node, bytes]:
    return build(LEAVES)[1]


def prove(ranges: list[LeafRange], stored: dict[Node, bytes]) -> list[bytes]:
    needed = {node: stored[node] for node in merkle.needed_nodes(ranges)}
    return [merkle.range_hash(leaves, needed) for leaves in ranges]


def test_root_of_every_size_is_the_recursive_definition(stored: dict[Node, bytes]) -> None:
    frontier = Frontier()
    assert frontier.root() == mth(0, 0)
    for size, leaf in enumerate(LEAVES, start=1):
        frontier.append(merkle.leaf_hash(leaf))
        assert frontier.root() == mth(0, size)
        assert merkle.range_hash(LeafRange(0, size), stored) == mth(0, size)
        reloaded = [
            merkle.range_hash(LeafRange(n.position << n.level, (n.position + 1) << n.level), stored)
            for n in merkle.complete_nodes(LeafRange(0, size))
        ]
        assert frontier.hashes == reloaded


def test_one_row_a_leaf_and_one_more_every_256(stored: dict[Node, bytes]) -> None:
    assert len(stored) == LARGEST + LARGEST // 256


def positions(size: int) -> range:
    """All leaves of small trees and of those around a full tile, a sample of the others."""
    return range(0, size, 1 if size < 40 or abs(size - 257) < 3 else 13)


def test_inclusion_proofs_of_every_size(stored: dict[Node, bytes]) -> None:
    for size in range(1, LARGEST + 1):
        for index in positions(size):
            proof = prove(merkle.inclusion_ranges(index, size), stored)
            assert proof == path(index, 0, size)
            hashed = merkle.leaf_hash(LEAVES[index])
            merkle.verify_inclusion(hashed, index, size, proof, mth(0, size))


def test_consistency_proofs_of_every_size(stored: dict[Node, bytes]) -> None:
    for second in range(1, LARGEST + 1):
        for first in (index + 1 for index in positions(second)):
            proof = prove(merkle.consistency_ranges(first, second), stored)
            assert proof == subproof(first, 0, second, known=True)
            merkle.verify_consistency(first, second, mth(0, first), mth(0, second), proof)


def test_published_roots_and_proofs() -> None:
    frontier, stored = build(CT_LEAVES)
    for size, root in enumerate(CT_ROOTS, start=1):
        assert build(CT_LEAVES[:size])[0].root().hex() == root
    path_0 = prove(merkle.inclusion_ranges(0, 8), stored)
    assert [value.hex() for value in path_0] == CT_PATH_0_OF_8
    extends_6 = prove(merkle.consistency_ranges(6, 8), stored)
    assert [value.hex() for value in extends_6] == CT_CONSISTENCY_6_OF_8
    assert frontier.root().hex() == CT_ROOTS[-1]


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=600), st.data())
def test_random_trees_prove_themselves(leaves: list[bytes], data: st.DataObject) -> None:
    frontier, stored = build(leaves)
    index = data.draw(st.integers(0, len(leaves) - 1))
    proof = prove(merkle.inclusion_ranges(index, len(leaves)), stored)
    hashed = merkle.leaf_hash(leaves[index])
    merkle.verify_inclusion(hashed, index, len(leaves), proof, frontier.root())


# ------------------------------------------------------------------------ tampering

sizes = st.integers(2, LARGEST)
FULL = build(LEAVES)[1]


@given(sizes, st.data())
def test_a_changed_leaf_hash_root_or_proof_is_refused(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = prove(merkle.inclusion_ranges(index, size), FULL)
    parts = [merkle.leaf_hash(LEAVES[index]), mth(0, size), *proof]
    victim = data.draw(st.integers(0, len(parts) - 1))
    parts[victim] = flipped(parts[victim], data.draw(st.integers(0, 255)))
    with pytest.raises(ProofError):
        merkle.verify_inclusion(parts[0], index, size, parts[2:], parts[1])


@given(sizes, st.data())
def test_an_inclusion_proof_of_another_leaf_is_refused(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    other = data.draw(st.integers(-2, size + 2).filter(lambda value: value != index))
    proof = prove(merkle.inclusion_ranges(index, size), FULL)
    with pytest.raises(ProofError):
        merkle.verify_inclusion(merkle.leaf_hash(LEAVES[index]), other, size, proof, mth(0, size))


@given(sizes, st.data())
def test_a_proof_of_the_wrong_length_is_refused(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = prove(merkle.inclusion_ranges(index, size), FULL)
    wrong = data.draw(st.sampled_from([proof[:-1], proof[1:], [*proof, proof[0]], [b"short"]]))
    with pytest.raises(ProofError):
        merkle.verify_inclusion(merkle.leaf_hash(LEAVES[index]), index, size, wrong, mth(0, size))


@given(sizes, st.data())
def test_a_log_that_was_rewritten_is_not_consistent(size: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, size - 1))
    changed = data.draw(st.integers(0, first - 1))
    leaves = LEAVES[:size]
    leaves[changed] = b"rewritten"
    forged, stored = build(leaves)
    proof = prove(merkle.consistency_ranges(first, size), stored)
    with pytest.raises(ProofError):
        merkle.verify_consistency(first, size, mth(0, first), forged.root(), proof)


@given(sizes, st.data())
def test_a_changed_consistency_proof_is_refused(size: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, size - 1))
    proof = prove(merkle.consistency_ranges(first, size), FULL)
    parts = [mth(0, first), mth(0, size), *proof]
    victim = data.draw(st.integers(0, len(parts) - 1))
    parts[victim] = flipped(parts[victim], data.draw(st.integers(0, 255)))
    with pytest.raises(ProofError):
        merkle.verify_consistency(first, size, parts[0], parts[1], parts[2:])


@given(sizes, st.data())
def test_a_consistency_proof_of_the_wrong_length_is_refused(size: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, size - 1))
    proof = prove(merkle.consistency_ranges(first, size), FULL)
    wrong = data.draw(st.sampled_from([proof[:-1], proof[1:], [*proof, proof[0]], []]))
    with pytest.raises(ProofError):
        merkle.verify_consistency(first, size, mth(0, first), mth(0, size), wrong)


def test_a_fork_of_the_same_size_is_refused() -> None:
    with pytest.raises(ProofError, match="forked"):
        merkle.verify_consistency(5, 5, mth(0, 5), mth(1, 6), [])


@pytest.mark.parametrize(("first", "second"), [(0, 5), (6, 5), (-1, 1)])
def test_sizes_that_no_proof_exists_for(first: int, second: int) -> None:
    with pytest.raises(ProofError, match="prefix"):
        merkle.consistency_ranges(first, second)
    with pytest.raises(ProofError, match="prefix"):
        merkle.verify_consistency(first, second, mth(0, 1), mth(0, 5), [])


@pytest.mark.parametrize(("index", "size"), [(5, 5), (-1, 5), (0, 0)])
def test_leaves_that_no_tree_holds(index: int, size: int) -> None:
    with pytest.raises(ProofError, match="is not in a tree"):
        merkle.inclusion_ranges(index, size)


def flipped(value: bytes, bit: int) -> bytes:
    changed = bytearray(value)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)
