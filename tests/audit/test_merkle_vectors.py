"""The proofs that Certificate Transparency implementations share, and the ways they break them.

The values are those of the test data of transparency-dev/merkle (`testdata/inclusion` and
`testdata/consistency`), which are the eight leaves of `test_merkle`; each must verify, and none
after any of the changes that the same data makes to it.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.audit import merkle
from remit.audit.merkle import LeafRange, ProofError
from tests.audit.test_merkle import CT_LEAVES, CT_ROOTS, build, prove

NODES = {
    "0-1": "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "2-3": "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "0-3": "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4-5": "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
    "6-7": "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "4-7": "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    "0": "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "1": "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "2": "0298d122906dcfc10892cb53a73992fc5b9f493ea4c9badb27b791b4127a7fe7",
    "4": "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    "5": "4271a26be0d8a84f0bd54c8c302e7cb3a3b5d1fa6780a40bcce2873477dab658",
    "6": "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
}
"""Published hashes, by the leaves that they cover."""
GARBAGE = b"\xa5" * 32


def hashes(*names: str) -> list[bytes]:
    return [bytes.fromhex(NODES[name]) for name in names]


def root(size: int) -> bytes:
    return bytes.fromhex(CT_ROOTS[size - 1])


@dataclass(frozen=True)
class Inclusion:
    leaf: bytes
    index: int
    size: int
    proof: list[bytes]
    root: bytes

    def verify(self) -> None:
        merkle.verify_inclusion(self.leaf, self.index, self.size, self.proof, self.root)


@dataclass(frozen=True)
class Consistency:
    first: int
    second: int
    first_root: bytes
    second_root: bytes
    proof: list[bytes]

    def verify(self) -> None:
        merkle.verify_consistency(
            self.first, self.second, self.first_root, self.second_root, self.proof
        )


def included(index: int, size: int, *proof: str) -> Inclusion:
    (leaf,) = hashes(str(index))
    return Inclusion(leaf, index, size, hashes(*proof), root(size))


def consistent(first: int, second: int, *proof: str) -> Consistency:
    return Consistency(first, second, root(first), root(second), hashes(*proof))


INCLUSIONS = [
    included(0, 1),
    included(0, 8, "1", "2-3", "4-7"),
    included(5, 8, "4", "6-7", "0-3"),
    included(2, 3, "0-1"),
    included(1, 5, "0", "2-3", "4"),
]
CONSISTENCIES = [
    consistent(1, 1),
    consistent(1, 8, "1", "2-3", "4-7"),
    consistent(6, 8, "4-5", "6-7", "0-3"),
    consistent(2, 5, "2-3", "4"),
    consistent(6, 7, "4-5", "6", "0-3"),
]


def test_the_tree_has_the_published_hashes() -> None:
    stored = build(CT_LEAVES)[1]
    for name, value in NODES.items():
        first, _, last = name.partition("-")
        leaves = LeafRange(int(first), int(last or first) + 1)
        assert prove([leaves], stored)[0].hex() == value


@pytest.mark.parametrize("vector", INCLUSIONS, ids=lambda v: f"{v.index} of {v.size}")
def test_published_inclusion_proofs(vector: Inclusion) -> None:
    vector.verify()
    ranges = merkle.inclusion_ranges(vector.index, vector.size)
    assert prove(ranges, build(CT_LEAVES)[1]) == vector.proof
    for broken in broken_inclusions(vector):
        with pytest.raises(ProofError):
            broken.verify()


@pytest.mark.parametrize("vector", CONSISTENCIES, ids=lambda v: f"{v.first} of {v.second}")
def test_published_consistency_proofs(vector: Consistency) -> None:
    vector.verify()
    ranges = merkle.consistency_ranges(vector.first, vector.second)
    assert prove(ranges, build(CT_LEAVES)[1]) == vector.proof
    for broken in broken_consistencies(vector):
        with pytest.raises(ProofError):
            broken.verify()


def broken_inclusions(vector: Inclusion) -> Iterator[Inclusion]:
    for index in (vector.index - 1, vector.index + 1, vector.index ^ 2):
        yield replace(vector, index=index)
    for size in (vector.size * 2, vector.size // 2):
        yield replace(vector, size=size)
    yield replace(vector, leaf=b"WrongLeaf")
    yield replace(vector, leaf=GARBAGE)
    yield replace(vector, root=merkle.EMPTY_ROOT)
    yield replace(vector, root=GARBAGE)
    for proof in broken_proofs(vector.proof, [vector.root]):
        yield replace(vector, proof=proof)


def broken_consistencies(vector: Consistency) -> Iterator[Consistency]:
    for first in (vector.first - 1, vector.first + 1, vector.first ^ 2):
        yield replace(vector, first=first)
    yield replace(vector, second=vector.second * 2)
    yield replace(vector, second=vector.second // 2)
    yield replace(vector, first_root=b"WrongRoot")
    yield replace(vector, second_root=b"WrongRoot")
    if vector.first != vector.second:
        roots = vector.second_root, vector.first_root
        yield replace(vector, first_root=roots[0], second_root=roots[1])
        yield replace(vector, proof=[])
    for proof in broken_proofs(vector.proof, [vector.first_root, vector.second_root]):
        yield replace(vector, proof=proof)


def broken_proofs(proof: list[bytes], roots: list[bytes]) -> Iterator[list[bytes]]:
    for extra in (b"", GARBAGE, *roots, *proof[:1]):
        yield [extra, *proof]
        yield [*proof, extra]
    for place in range(len(proof)):
        yield [*proof[:place], *proof[place + 1 :]]
        yield [*proof[:place], b"", *proof[place + 1 :]]
        yield [*proof[:place], bytes([proof[place][0] ^ 8, *proof[place][1:]]), *proof[place + 1 :]]
        yield [*proof[:place], GARBAGE, *proof[place:]]


# --------------------------------------------------------------- all that are published

PUBLISHED: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("transparency_dev_vectors.json").read_text(encoding="utf-8")
)
"""`testdata/inclusion` and `testdata/consistency` of github.com/transparency-dev/merkle at 417fb0c,
Apache License 2.0, word for word but for their descriptions."""
STRICTER = "consistency/additional/sizes-are-equal-one-and-proof-is-empty"
"""Its roots are texts of 12 bytes; here a root is a SHA-256 or nothing is proved."""


@pytest.mark.parametrize("vector", PUBLISHED, ids=lambda vector: vector["name"])
def test_every_published_vector_is_judged_as_its_authors_do(vector: dict[str, Any]) -> None:
    proof = [base64.b64decode(part) for part in vector["proof"]]
    if "leafIdx" in vector:
        leaf, root_hash = (base64.b64decode(vector[name] or "") for name in ("leafHash", "root"))
        proved: Inclusion | Consistency = Inclusion(
            leaf, vector["leafIdx"], vector["treeSize"], proof, root_hash
        )
    else:
        first, second = (base64.b64decode(vector[name] or "") for name in ("root1", "root2"))
        proved = Consistency(vector["size1"], vector["size2"], first, second, proof)
    if vector["wantErr"] or vector["name"] == STRICTER:
        with pytest.raises(ProofError):
            proved.verify()
    else:
        proved.verify()


def test_the_published_vectors_are_all_there() -> None:
    kinds = Counter((v["name"].partition("/")[0], v["wantErr"]) for v in PUBLISHED)
    assert kinds == {
        ("consistency", False): 6,
        ("consistency", True): 92,
        ("inclusion", False): 6,
        ("inclusion", True): 92,
    }
    (stricter,) = (v for v in PUBLISHED if v["name"] == STRICTER)
    assert not stricter["wantErr"]


# ------------------------------------------------------------------- random trees


@given(st.binary(max_size=8), st.integers(1, 400), st.integers(1, 400), st.data())
def test_random_trees_extend_each_other(
    seed: bytes, one: int, another: int, data: st.DataObject
) -> None:
    """A proof of two sizes verifies for these, and one of other sizes does not."""
    first, second = sorted((one, another))
    leaves = [seed + b"%d" % index for index in range(second)]
    frontier, stored = build(leaves)
    first_root = merkle.range_hash(LeafRange(0, first), stored)
    proof = prove(merkle.consistency_ranges(first, second), stored)
    merkle.verify_consistency(first, second, first_root, frontier.root(), proof)
    other = data.draw(st.integers(1, second))
    if other != first:
        wrong = prove(merkle.consistency_ranges(other, second), stored)
        with pytest.raises(ProofError):
            merkle.verify_consistency(first, second, first_root, frontier.root(), wrong)


LEAVES = [b"leaf %d" % index for index in range(400)]
STORED = build(LEAVES)[1]


@given(st.integers(2, 400), st.data())
def test_a_proof_for_another_tree_size_proves_nothing(size: int, data: st.DataObject) -> None:
    """However the sizes' shapes resemble each other, it does not lead to the other's root."""
    index = data.draw(st.integers(0, size - 1))
    other = data.draw(st.integers(1, 400).filter(lambda value: value != size))
    proof = prove(merkle.inclusion_ranges(index, size), STORED)
    other_root = merkle.range_hash(LeafRange(0, other), STORED)
    with pytest.raises(ProofError):
        merkle.verify_inclusion(merkle.leaf_hash(LEAVES[index]), index, other, proof, other_root)
