"""What an auditor brings along, and how a log that is read leaf by leaf is held against it.

An auditor has a public key, perhaps checkpoints that were saved earlier, perhaps the public keys of
witnesses. Every earlier checkpoint must be the log's own as it was at that size. A log that passes
extends each of them, so each of them extends the smaller ones too: no proof between them is needed.

Where something does not fit, the checkpoints also tell where: the fault lies behind the largest one
that fits and before the smallest that does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remit.audit.archive_file import Contents
from remit.audit.cosignature import WitnessKey
from remit.audit.declared_loss import DeclaredLoss, declared_loss
from remit.audit.key_chain import KeyChain
from remit.audit.merkle import Frontier
from remit.audit.note import Checkpoint, NoteError, Verifier


class VerificationError(Exception):
    """A log proves nothing.

    Attributes:
        place: where the fault is, such as `line 7 (leaf 4)` or `the earlier checkpoint`.
        fault: what is wrong there.
        loss: the loss that the log itself declares, if that is why.

    """

    def __init__(self, place: str, fault: str, loss: DeclaredLoss | None = None) -> None:
        super().__init__(f"{place}: {fault}")
        self.place = place
        self.fault = fault
        self.loss = loss


@dataclass(frozen=True)
class Cosigned:
    """A witness's word about a checkpoint, and when it was given, in Unix seconds."""

    witness: str
    tree_size: int
    time_s: int


@dataclass(frozen=True)
class Report:
    """What a log proves.

    Attributes:
        origin: name of the log.
        tree_size: number of leaves, every one of which was checked.
        root_hash: root of the tree, 32 bytes.
        earlier_tree_sizes: sizes of the earlier checkpoints that this log extends, smallest first.
        cosigned: what the witnesses that were asked for have cosigned.
        archives: archives of months whose every byte is what the log says, oldest first.
        losses: losses that the log itself declares, in its order.

    """

    origin: str
    tree_size: int
    root_hash: bytes
    earlier_tree_sizes: tuple[int, ...] = ()
    cosigned: tuple[Cosigned, ...] = ()
    archives: tuple[Contents, ...] = ()
    losses: tuple[DeclaredLoss, ...] = ()

    @property
    def earlier_tree_size(self) -> int | None:
        """The largest of the earlier sizes."""
        return self.earlier_tree_sizes[-1] if self.earlier_tree_sizes else None


@dataclass(frozen=True)
class Auditor:
    """What an auditor brings along.

    Attributes:
        known: a public key of the log.
        earlier_notes: checkpoints that were saved earlier, as signed notes.
        witnesses: keys of witnesses, each of which must have cosigned every earlier checkpoint, or
            the log's own where there is none.

    """

    known: Verifier
    earlier_notes: tuple[str, ...] = ()
    witnesses: tuple[WitnessKey, ...] = ()

    @classmethod
    def of(
        cls, public_key: str, earlier_notes: Sequence[str] = (), witness_keys: Sequence[str] = ()
    ) -> Auditor:
        """Raise VerificationError when a key is none."""
        try:
            known = Verifier.parse(public_key)
        except NoteError as error:
            raise VerificationError("the public key", str(error)) from error
        try:
            witnesses = tuple(map(WitnessKey.parse, witness_keys))
        except NoteError as error:
            raise VerificationError("the witness's public key", str(error)) from error
        return cls(known, tuple(earlier_notes), witnesses)

    def tree(self, place: str, note: str, keys: KeyChain) -> Tree:
        """Return the tree that the log's checkpoint, found at a place, and the earlier ones demand.

        Raises:
            VerificationError: one is no checkpoint of this log, or a witness did not cosign it.

        """
        checkpoint = opened_checkpoint(place, note, keys)
        earlier = [
            (where, opened_checkpoint(where, text, keys), text) for where, text in self._places()
        ]
        cosigned = [
            self._cosigned(where, opened, text, witness)
            for where, opened, text in earlier or [(place, checkpoint, note)]
            for witness in self.witnesses
        ]
        ordered = sorted((opened for _, opened, _ in earlier), key=lambda each: each.tree_size)
        return Tree(checkpoint, ordered, cosigned)

    def _places(self) -> list[tuple[str, str]]:
        count = len(self.earlier_notes)
        if count == 1:
            return [("the earlier checkpoint", self.earlier_notes[0])]
        return [
            (f"earlier checkpoint {number} of {count}", note)
            for number, note in enumerate(self.earlier_notes, 1)
        ]

    def _cosigned(self, place: str, opened: Checkpoint, note: str, witness: WitnessKey) -> Cosigned:
        try:
            return Cosigned(witness.name, opened.tree_size, witness.open(note))
        except NoteError as error:
            raise VerificationError(place, str(error)) from error


def opened_checkpoint(place: str, note: str, keys: KeyChain) -> Checkpoint:
    """Return the checkpoint in a note. Raises VerificationError, which names the place."""
    try:
        return keys.open_checkpoint(note)
    except NoteError as error:
        raise VerificationError(place, str(error)) from error


class Tree:
    """The tree of the leaves that were read so far, compared at each size that was signed."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        earlier: Sequence[Checkpoint],
        cosigned: Sequence[Cosigned] = (),
    ) -> None:
        self.checkpoint = checkpoint
        self._earlier = tuple(earlier)
        self._cosigned = tuple(cosigned)
        self._ahead = list(earlier)
        self._frontier = Frontier()
        self._fits = 0
        self._differs: Checkpoint | None = None
        self._losses: list[DeclaredLoss] = []
        self._look()

    def append(self, hashed_leaf: bytes, entry: bytes) -> None:
        """Add the next leaf: its hash, and its bytes, which have it."""
        loss = declared_loss(self._frontier.size, entry)
        if loss is not None:
            self._losses.append(loss)
        self._frontier.append(hashed_leaf)
        if self._ahead and self._ahead[0].tree_size == self._frontier.size:
            self._look()

    def _look(self) -> None:
        """Compare with what was signed at this size."""
        while self._ahead and self._ahead[0].tree_size == self._frontier.size:
            signed = self._ahead.pop(0)
            if self._differs is None and signed.root_hash == self._frontier.root():
                self._fits = signed.tree_size
            else:
                self._differs = self._differs or signed

    def check_root(self) -> None:
        """Compare the whole tree with its checkpoint. Raises VerificationError."""
        if self._frontier.root() != self.checkpoint.root_hash:
            stop = (self._differs or self.checkpoint).tree_size
            raise VerificationError(
                f"leaves {self._fits} to {stop - 1}",
                "they are not the leaves that the checkpoint was signed for: at least one was"
                " changed, removed, inserted or moved",
            )

    def check_earlier(self) -> None:
        """Tell what was signed earlier and is not so any more. Raises VerificationError."""
        differs = self._differs or (self._ahead[0] if self._ahead else None)
        if differs is None:
            return
        place = f"the earlier checkpoint of {differs.tree_size} leaves"
        for loss in self._losses:
            if self._fits <= loss.kept_size and loss.covers(differs):
                raise VerificationError(place, f"the log does not extend it: its {loss}", loss)
        if differs.tree_size > self.checkpoint.tree_size:
            size = self.checkpoint.tree_size
            raise VerificationError(place, f"the log was cut back: it has {size} leaves now")
        raise VerificationError(
            place,
            f"the log was rewritten: leaves {self._fits} to {differs.tree_size - 1} are not those"
            f" signed then (root {differs.root_hash.hex()})",
        )

    def report(self) -> Report:
        """Return what was proved once every check has passed."""
        return Report(
            self.checkpoint.origin,
            self.checkpoint.tree_size,
            self.checkpoint.root_hash,
            tuple(each.tree_size for each in self._earlier),
            self._cosigned,
            losses=tuple(self._losses),
        )
