"""The witness: remembers the last checkpoint that it saw, and cosigns only what extends it.

A log that is rewritten and signed anew is perfect in itself; only somebody who remembers can tell.
A witness keeps one checkpoint. It cosigns the next one if the log proves that it extends this one,
and refuses, with both sizes and roots, what is shorter, another tree, another log, or signed by
another key. What was cosigned is on the disk before anybody gets it, so a witness that dies never
forgets what it has vouched for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from remit.audit import merkle
from remit.audit.cosignature import Cosigner
from remit.audit.key_chain import ChainError, KeyChain
from remit.audit.note import Checkpoint, NoteError, Verifier


class WitnessRefusalError(Exception):
    """What the log shows contradicts what it showed before, or is not this log's.

    Attributes:
        note: what the log shows, if the log signed it: then it is evidence against the log.

    """

    def __init__(self, fault: str, note: str = "") -> None:
        super().__init__(fault)
        self.note = note


class LogView(Protocol):
    """What a log shows of itself: over RPC, or as a folder of tiles."""

    async def checkpoint(self) -> tuple[str, Sequence[str]]:
        """Its newest checkpoint, and the statements by which one of its keys leads to all."""
        ...

    async def consistency_proof(self, first_size: int, second_size: int) -> Sequence[bytes]:
        """Its proof that one tree is a prefix of another."""
        ...


@dataclass(frozen=True)
class Sighting:
    """A checkpoint that was cosigned, and the one before; the same size where the log stood still.

    Attributes:
        note: the checkpoint with the log's signature and this witness's.

    """

    note: str
    checkpoint: Checkpoint
    last_size: int | None


async def first_sighting(
    cosigner: Cosigner, known: Verifier, log: LogView, time_s: int
) -> Sighting:
    """Cosign the checkpoint with which a new witness begins. Raises WitnessRefusalError."""
    note, rotations = await log.checkpoint()
    shown = _opened(note, _keys(known, rotations), "the log shows")
    return Sighting(cosigner.cosign(note, time_s), shown, None)


async def next_sighting(
    cosigner: Cosigner, known: Verifier, last_note: str, log: LogView, time_s: int
) -> Sighting:
    """Cosign what the log shows now, if it extends the last checkpoint that was cosigned.

    Raises:
        WitnessRefusalError: it does not, or it is of another log or key.

    """
    note, rotations = await log.checkpoint()
    keys = _keys(known, rotations)
    shown = _opened(note, keys, "the log shows")
    last = _opened(last_note, keys, "this witness keeps")
    await _check_follows(last, shown, log, note)
    return Sighting(cosigner.cosign(note, time_s), shown, last.tree_size)


async def _check_follows(last: Checkpoint, shown: Checkpoint, log: LogView, note: str) -> None:
    before, now = _told(last), _told(shown)
    if shown.tree_size < last.tree_size:
        raise WitnessRefusalError(
            f"rolled back: this witness saw {before}, and the log shows {now}", note
        )
    if shown.tree_size == last.tree_size:
        if shown.root_hash != last.root_hash:
            raise WitnessRefusalError(
                f"forked: this witness saw {before}, and the log shows {now}", note
            )
        return
    if last.tree_size == 0:
        return
    proof = await log.consistency_proof(last.tree_size, shown.tree_size)
    try:
        merkle.verify_consistency(
            last.tree_size, shown.tree_size, last.root_hash, shown.root_hash, proof
        )
    except merkle.ProofError as error:
        raise WitnessRefusalError(
            f"forked: this witness saw {before}, and the log shows {now} without a proof that it"
            f" extends them: {error}",
            note,
        ) from error


def _keys(known: Verifier, rotations: Sequence[str]) -> KeyChain:
    try:
        return KeyChain.read(known, rotations)
    except ChainError as error:
        raise WitnessRefusalError(f"another key: {error}") from error


def _opened(note: str, keys: KeyChain, whose: str) -> Checkpoint:
    try:
        return keys.open_checkpoint(note)
    except NoteError as error:
        raise WitnessRefusalError(
            f"another log or key: {whose} a checkpoint of {_origin(note)}, which {keys.newest.name}"
            f" did not sign: {error}"
        ) from error


def _origin(note: str) -> str:
    line = note.partition("\n")[0]
    return repr(line[:100]) if line else "nobody"


def _told(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.tree_size} leaves (root {checkpoint.root_hash.hex()})"
