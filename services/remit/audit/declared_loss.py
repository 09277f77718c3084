"""A loss that the log itself declares: a leaf says which leaves of before are gone for good.

The leaf stands where the first lost one stood, so its index is the number of leaves that were kept.
Its id names the checkpoint that the log signed and cannot extend any more: size and root. All of
that is in the leaf, so whoever verifies the log offline is told; who accepted the loss and why is
in the event's detail, for who may read the log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from remit.audit.leaf import Leaf, LeafError
from remit.audit.note import Checkpoint

ACCEPT_LOSS: Final = "audit.accept_loss"
_REPORTER: Final = "audit"
_MARK: Final = b'"event_id":"loss-'
_ID: Final = re.compile(r"loss-([1-9][0-9]{0,18})-([0-9a-f]{64})")


@dataclass(frozen=True)
class DeclaredLoss:
    """Leaves from `kept_size` on and below `lost_size` were lost; others took their places."""

    kept_size: int
    lost_size: int
    lost_root: bytes

    def __str__(self) -> str:
        """What a person is told."""
        return (
            f"leaf {self.kept_size} declares that leaves {self.kept_size} to {self.lost_size - 1}"
            f" of the tree of {self.lost_size} leaves (root {self.lost_root.hex()}) were lost"
        )

    def covers(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint that the log does not extend is the lost one, or an earlier one."""
        if checkpoint.tree_size == self.lost_size:
            return checkpoint.root_hash == self.lost_root
        return self.kept_size < checkpoint.tree_size < self.lost_size


def loss_id(lost: Checkpoint) -> str:
    """The id of the event that declares the loss of a checkpoint: one of each."""
    return f"loss-{lost.tree_size}-{lost.root_hash.hex()}"


def declared_loss(index: int, entry: bytes) -> DeclaredLoss | None:
    """Return the loss that the leaf at an index declares; None: it declares none.

    Audit alone can say so: another service may report changes, but not in its name.
    """
    if _MARK not in entry:
        return None
    try:
        leaf = Leaf.decode(entry)
    except LeafError:
        return None
    stated = _ID.fullmatch(leaf.event_id)
    own = (leaf.kind, leaf.action, leaf.reporter) == ("ADMIN", ACCEPT_LOSS, _REPORTER)
    if stated is None or not own or int(stated[1]) <= index:
        return None
    return DeclaredLoss(index, int(stated[1]), bytes.fromhex(stated[2]))
