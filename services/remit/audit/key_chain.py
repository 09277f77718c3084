"""The chain of a log's keys: how a checkpoint stays verifiable when the key that signed it is gone.

When a key is replaced, the old and the new key sign one statement that names both: a signed note
(C2SP signed-note) with the text

1. ``remit log key rotation v1``
2. the old public key, ``name+id+base64``
3. the new public key, of the same name
4. when, RFC 3339 in UTC with whole seconds

The first line is no name of a log, so a statement is never taken for a checkpoint, nor a checkpoint
for a statement. Because both sign, trust goes both ways: whoever saved the first public key
verifies the checkpoints of every later key, and whoever saved the newest those of every earlier
one. A statement says who may sign, not who no longer may: a key that was stolen goes on to be
believed by all who trust a key of its chain.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from remit.audit.note import (
    Checkpoint,
    NoteError,
    Signer,
    Verifier,
    open_checkpoint,
    signing_keys,
)

TITLE = "remit log key rotation v1"
MAX_ROTATIONS = 100
"""Of one log: they accompany every checkpoint."""
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_LINES = 4


class ChainError(NoteError):
    """A chain of keys is broken, or the key that is trusted has no part in it.

    Attributes:
        link: number of the rotation that is at fault, from 1; 0 if none is.
        place: it in words.
        fault: what is wrong with it.

    """

    def __init__(self, link: int, count: int, fault: str) -> None:
        self.link, self.fault = link, fault
        self.place = f"key rotation {link} of {count}"
        super().__init__(f"{self.place}: {fault}" if link else fault)


@dataclass(frozen=True)
class Rotation:
    """One link: `new` took the place of `old`. `time` is RFC 3339."""

    old: Verifier
    new: Verifier
    time: str

    def text(self) -> str:
        """Return the text that both keys sign."""
        return f"{TITLE}\n{self.old}\n{self.new}\n{self.time}\n"

    @classmethod
    def open(cls, note: str) -> Rotation:
        """Read a statement and check both signatures.

        Raises:
            NoteError: it is not one, or one of its keys did not sign it.

        """
        lines = note.split("\n")
        if lines[0] != TITLE or len(lines) < _LINES:
            raise NoteError("this is not the statement of a rotation")
        rotation = cls(Verifier.parse(lines[1]), Verifier.parse(lines[2]), lines[3])
        if rotation.old.name != rotation.new.name or rotation.old == rotation.new:
            raise NoteError("it does not name two keys of one log")
        if not _TIME.fullmatch(rotation.time):
            raise NoteError("its time is not RFC 3339 in UTC with whole seconds")
        for verifier in (rotation.old, rotation.new):
            if verifier.open(note) != rotation.text():
                raise NoteError("it says more than a statement does")
        return rotation


def rotation_note(old: Signer, new: Signer, now: datetime) -> str:
    """Return the statement that a new key takes the place of an old one, signed by both."""
    time = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    text = Rotation(old.verifier(), new.verifier(), time).text()
    signatures = [signer.sign(text).removeprefix(f"{text}\n") for signer in (old, new)]
    return f"{text}\n{''.join(signatures)}"


@dataclass(frozen=True)
class KeyChain:
    """The public keys of one log, oldest first, and the statements that lead from each to the next.

    Only `read` makes one whose links are checked; a log whose key was never replaced has one key.
    """

    keys: tuple[Verifier, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, known: Verifier, notes: Sequence[str]) -> KeyChain:
        """Check a chain from a key that is trusted already, which may stand anywhere in it.

        Raises:
            ChainError: a link is broken or forged, or the chain does not hold that key.

        """
        count = len(notes)
        if count > MAX_ROTATIONS:
            raise ChainError(0, count, f"there are {count} key rotations, over {MAX_ROTATIONS}")
        keys: list[Verifier] = []
        for number, note in enumerate(notes, 1):
            try:
                rotation = _link(note, keys)
            except NoteError as error:
                raise ChainError(number, count, str(error)) from error
            keys += [rotation.new] if keys else [rotation.old, rotation.new]
        if keys and known not in keys:
            fault = f"{_short(known)} is not among the keys of the {count} key rotations"
            raise ChainError(0, count, fault)
        return cls(tuple(keys) or (known,), tuple(notes))

    @property
    def newest(self) -> Verifier:
        """The key that signs now."""
        return self.keys[-1]

    @property
    def key_ids(self) -> list[bytes]:
        """The ids by which signatures name the keys, oldest first."""
        return [key.key_id for key in self.keys]

    def open_checkpoint(self, note: str) -> Checkpoint:
        """Return the checkpoint in a note that one of these keys signed.

        Raises:
            NoteError: malformed, signed by another key, or the checkpoint of another log.

        """
        return open_checkpoint(note, self.signer_of(note))

    def signer_of(self, note: str) -> Verifier:
        """Return the key that a note names as its signer; nothing is verified.

        Of several it is the newest, and of none the newest of the chain, which then did not sign.

        Raises:
            NoteError: the note is malformed.

        """
        named = signing_keys(note)
        signed = [key for key in self.keys if (key.name, key.key_id) in named]
        return (signed or self.keys)[-1]


def _link(note: str, keys: Sequence[Verifier]) -> Rotation:
    """Return the rotation that a note states, which must go on where the keys before it end."""
    rotation = Rotation.open(note)
    if keys and rotation.old != keys[-1]:
        raise NoteError(f"it does not go on from {_short(keys[-1])}, the key before it")
    if rotation.new in keys:
        raise NoteError(f"it goes back to {_short(rotation.new)}")
    return rotation


def _short(key: Verifier) -> str:
    return f"{key.name}+{key.key_id.hex()}"
