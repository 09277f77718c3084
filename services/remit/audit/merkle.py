"""The Merkle tree of the log, in the form of RFC 6962 section 2.1: plain hashes in and out.

Two things are built on it. The writer keeps a `Frontier`, the O(log n) hashes of the complete
subtrees from left to right, which is all that an append and a root need. Proofs name the ranges of
leaves whose hashes they hold (`inclusion_ranges`, `consistency_ranges`); each range is a fold of
complete subtrees (`complete_nodes`), and those never change once they are complete, so they can be
stored once and for all. Only every eighth level is stored (as in the tiles of C2SP tlog-tiles): the
levels between are recomputed from at most 256 hashes, so the tree costs one small row an event.

The verifying half (`verify_inclusion`, `verify_consistency`) follows RFC 9162 sections 2.1.3.2 and
2.1.4.2 and shares nothing with the proving half but the two hash functions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple

HASH_BYTES = 32
LEAF_PREFIX = b"\x00"
NODE_PREFIX = b"\x01"
EMPTY_ROOT = hashlib.sha256(b"").digest()
# Levels 0, 8, 16, ... are stored: the height of a tile in C2SP tlog-tiles.
TILE_HEIGHT = 8


class ProofError(ValueError):
    """A proof does not show what it claims; the message says why."""


class Node(NamedTuple):
    """A complete subtree: leaves ``position << level`` up to ``(position + 1) << level``."""

    level: int
    position: int


class LeafRange(NamedTuple):
    """Leaves from ``start`` up to and without ``stop``."""

    start: int
    stop: int


def leaf_hash(leaf: bytes) -> bytes:
    """Return the hash of a leaf's bytes (RFC 6962 section 2.1), 32 bytes."""
    return hashlib.sha256(LEAF_PREFIX + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node from its children's hashes (RFC 6962 section 2.1)."""
    return hashlib.sha256(NODE_PREFIX + left + right).digest()


@dataclass
class Frontier:
    """The right edge of a tree: enough to append leaves and to tell the root.

    Attributes:
        size: number of leaves.
        hashes: hashes of the complete subtrees of `complete_nodes(LeafRange(0, size))`, left first.

    """

    size: int = 0
    hashes: list[bytes] = field(default_factory=list)

    def append(self, hashed_leaf: bytes) -> list[tuple[Node, bytes]]:
        """Append a leaf by its hash and return the subtrees that it completed, lowest first."""
        completed = []
        level, position, current = 0, self.size, hashed_leaf
        completed.append((Node(level, position), current))
        while position & 1:
            current = node_hash(self.hashes.pop(), current)
            level, position = level + 1, position >> 1
            completed.append((Node(level, position), current))
        self.hashes.append(current)
        self.size += 1
        return completed

    def root(self) -> bytes:
        """Return the tree's root, 32 bytes; of no leaves, the hash of the empty string."""
        return fold_right(self.hashes) if self.hashes else EMPTY_ROOT


def fold_right(hashes: Sequence[bytes]) -> bytes:
    """Return the hash of subtrees side by side, largest first, as RFC 6962 joins them."""
    return reduce(lambda right, left: node_hash(left, right), reversed(hashes))


def complete_nodes(leaves: LeafRange) -> list[Node]:
    """Return the largest complete subtrees that cover a range, left first.

    The range must be one that RFC 6962 hashes: its start is a multiple of the largest power of two
    that is not above its length.
    """
    nodes = []
    start = leaves.start
    while start < leaves.stop:
        level = (leaves.stop - start).bit_length() - 1
        nodes.append(Node(level, start >> level))
        start += 1 << level
    return nodes


def stored_nodes(node: Node) -> list[Node]:
    """Return the nodes of the stored level below ``node`` (or ``node`` itself) that it hashes."""
    level = node.level - node.level % TILE_HEIGHT
    width = 1 << (node.level - level)
    return [Node(level, node.position * width + offset) for offset in range(width)]


def is_stored(node: Node) -> bool:
    """Tell whether a node's hash is kept rather than recomputed."""
    return node.level % TILE_HEIGHT == 0


def range_hash(leaves: LeafRange, stored: Mapping[Node, bytes]) -> bytes:
    """Return the Merkle tree hash of a range from the hashes of its stored nodes.

    Raises:
        KeyError: a node that `needed_nodes` names is missing.

    """
    return fold_right([_subtree_hash(node, stored) for node in complete_nodes(leaves)])


def needed_nodes(ranges: Iterable[LeafRange]) -> set[Node]:
    """Return every stored node that `range_hash` of these ranges reads."""
    return {
        stored
        for leaves in ranges
        for node in complete_nodes(leaves)
        for stored in stored_nodes(node)
    }


def _subtree_hash(node: Node, stored: Mapping[Node, bytes]) -> bytes:
    hashes = [stored[child] for child in stored_nodes(node)]
    while len(hashes) > 1:
        pairs = zip(hashes[::2], hashes[1::2], strict=True)
        hashes = [node_hash(left, right) for left, right in pairs]
    return hashes[0]


def inclusion_ranges(leaf_index: int, tree_size: int) -> list[LeafRange]:
    """Return the ranges whose hashes are the audit path of a leaf (RFC 6962 section 2.1.1).

    Raises:
        ProofError: the leaf is not in a tree of that size.

    """
    if not 0 <= leaf_index < tree_size:
        raise ProofError(f"leaf {leaf_index} is not in a tree of {tree_size} leaves")
    path = []
    start, stop = 0, tree_size
    while stop - start > 1:
        middle = start + _split(stop - start)
        if leaf_index < middle:
            path.append(LeafRange(middle, stop))
            stop = middle
        else:
            path.append(LeafRange(start, middle))
            start = middle
    return path[::-1]


def consistency_ranges(first_size: int, second_size: int) -> list[LeafRange]:
    """Return the ranges whose hashes are a consistency proof (RFC 6962 section 2.1.2).

    Raises:
        ProofError: the sizes are not ``1 <= first_size <= second_size``.

    """
    if not 1 <= first_size <= second_size:
        raise ProofError(f"no tree of {first_size} leaves is a prefix of one of {second_size}")
    path = []
    start, stop = 0, second_size
    while first_size != stop:
        middle = start + _split(stop - start)
        if first_size <= middle:
            path.append(LeafRange(middle, stop))
            stop = middle
        else:
            path.append(LeafRange(start, middle))
            start = middle
    if start > 0:  # otherwise the old tree is a complete subtree, whose hash the verifier knows
        path.append(LeafRange(start, stop))
    return path[::-1]


def _split(size: int) -> int:
    """Return the largest power of two below ``size`` (which is at least 2)."""
    return 1 << ((size - 1).bit_length() - 1)


def verify_inclusion(
    hashed_leaf: bytes, leaf_index: int, tree_size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Check that a leaf is in the tree of a root (RFC 9162 section 2.1.3.2).

    Raises:
        ProofError: it is not, or the proof is for another leaf or tree size.

    """
    if not 0 <= leaf_index < tree_size:
        raise ProofError(f"leaf {leaf_index} is not in a tree of {tree_size} leaves")
    _check_hashes([hashed_leaf, root, *proof])
    position, last, current = leaf_index, tree_size - 1, hashed_leaf
    for sibling in proof:
        if last == 0:
            raise ProofError(f"the proof has {len(proof)} hashes, more than the tree has levels")
        if position & 1 or position == last:
            current = node_hash(sibling, current)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            current = node_hash(current, sibling)
        position, last = position >> 1, last >> 1
    if last != 0:
        raise ProofError(f"the proof has {len(proof)} hashes, too few for {tree_size} leaves")
    if current != root:
        raise ProofError(f"leaf {leaf_index} is not what the tree of {tree_size} leaves holds")


def verify_consistency(
    first_size: int, second_size: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that one tree is a prefix of another (RFC 9162 section 2.1.4.2).

    Raises:
        ProofError: it is not, or the proof is for other sizes.

    """
    if not 1 <= first_size <= second_size:
        raise ProofError(f"no tree of {first_size} leaves is a prefix of one of {second_size}")
    _check_hashes([first_root, second_root, *proof])
    if first_size == second_size:
        if proof or first_root != second_root:
            raise ProofError(f"two different trees of {first_size} leaves: the log has forked")
        return
    old, new = _climb(first_size, second_size, first_root, proof)
    if old != first_root:
        raise ProofError(f"the proof is not about the known tree of {first_size} leaves")
    if new != second_root:
        raise ProofError(
            f"the tree of {second_size} leaves does not extend the tree of {first_size} leaves"
        )


def _climb(
    first_size: int, second_size: int, first_root: bytes, proof: Sequence[bytes]
) -> tuple[bytes, bytes]:
    """Return the roots of both trees that a consistency proof leads to."""
    # A complete old tree is a node of the new one, and the proof leaves its hash out.
    path = list(proof) if first_size & (first_size - 1) else [first_root, *proof]
    if not path:
        raise ProofError(f"the proof is empty, but {first_size} and {second_size} differ")
    position, last = first_size - 1, second_size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise ProofError(f"the proof has {len(proof)} hashes, more than the tree has levels")
        if position & 1 or position == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        position, last = position >> 1, last >> 1
    if last != 0:
        raise ProofError(f"the proof has {len(proof)} hashes, too few for {second_size} leaves")
    return old, new


def _check_hashes(hashes: Iterable[bytes]) -> None:
    if any(len(value) != HASH_BYTES for value in hashes):
        raise ProofError(f"a hash of the proof does not have {HASH_BYTES} bytes")
