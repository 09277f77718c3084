"""Cosignatures: a witness's word that it saw a checkpoint, and that it extends all it saw before.

The form is cosignature/v1 of C2SP tlog-cosignature: a signature line of a note whose key has the
algorithm byte 4, whose signature begins with the time in eight bytes, and which signs

1. ``cosignature/v1``
2. ``time `` and the Unix time in seconds
3. the text of the checkpoint

The line stands beside the log's own. Whoever does not know the witness leaves it alone.

    cosigner = Cosigner.generate("witness.example/w1")
    cosigned = cosigner.cosign(note, time_s)
    time_s = cosigner.witness_key().open(cosigned)
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from remit.audit.note import (
    PRIVATE_PREFIX,
    SIGNATURE_BYTES,
    SIGNATURE_MARK,
    NoteError,
    check_name,
    key_id,
    key_text,
    parse_key,
    parse_signature,
    split_note,
)

ALGORITHM_COSIGNATURE = b"\x04"
_TIME_BYTES = 8
_MAX_TIME_S = (1 << 63) - 1


@dataclass(frozen=True)
class WitnessKey:
    """The public half of a witness's key; its text form is ``name+id+base64``."""

    name: str
    public_key: bytes

    def __str__(self) -> str:
        return key_text(self.name, self.key_id, self.public_key, ALGORITHM_COSIGNATURE)

    @property
    def key_id(self) -> bytes:
        """The four bytes by which a signature line names this key."""
        return key_id(self.name, self.public_key, ALGORITHM_COSIGNATURE)

    @classmethod
    def parse(cls, text: str) -> WitnessKey:
        """Read a witness's public key.

        Raises:
            NoteError: it is not one, or its id does not fit its key.

        """
        name, identifier, public_key = parse_key(
            text.strip(), "the witness's public key", ALGORITHM_COSIGNATURE
        )
        if identifier != key_id(name, public_key, ALGORITHM_COSIGNATURE):
            raise NoteError("the witness's public key does not fit its own key id")
        return cls(name, public_key)

    def open(self, note: str) -> int:
        """Return when this witness cosigned a note, in Unix seconds.

        Raises:
            NoteError: the note is malformed, or this witness did not cosign it.

        """
        text, lines = split_note(note)
        ours = [
            signature
            for name, key, signature in map(parse_signature, lines)
            if name == self.name and key == self.key_id
        ]
        if len(ours) != 1:
            found = "no cosignature" if not ours else f"{len(ours)} cosignatures"
            raise NoteError(f"the note has {found} of the witness {self.name}")
        return self._verified(text, ours[0])

    def _verified(self, text: str, signature: bytes) -> int:
        time_s = int.from_bytes(signature[:_TIME_BYTES], "big")
        if len(signature) != _TIME_BYTES + SIGNATURE_BYTES or time_s > _MAX_TIME_S:
            raise NoteError(f"the cosignature of {self.name} is malformed")
        try:
            key = Ed25519PublicKey.from_public_bytes(self.public_key)
            key.verify(signature[_TIME_BYTES:], _signed(text, time_s))
        except (InvalidSignature, ValueError) as error:
            raise NoteError(f"the cosignature of {self.name} does not fit the note") from error
        return time_s


@dataclass(frozen=True)
class Cosigner:
    """The private half; its text form is ``PRIVATE+KEY+name+id+base64``."""

    name: str
    private_key: Ed25519PrivateKey

    @classmethod
    def generate(cls, name: str) -> Cosigner:
        """Make a new key for a witness.

        Raises:
            NoteError: the name is empty or holds white space or a plus sign.

        """
        check_name(name)
        return cls(name, Ed25519PrivateKey.generate())

    @classmethod
    def parse(cls, text: str) -> Cosigner:
        """Read a witness's private key.

        Raises:
            NoteError: it is not one, or its id does not fit its key.

        """
        what = "the witness's private key"
        if not text.startswith(PRIVATE_PREFIX):
            raise NoteError(f"{what} does not begin with {PRIVATE_PREFIX}")
        encoded = text.strip().removeprefix(PRIVATE_PREFIX)
        name, identifier, seed = parse_key(encoded, what, ALGORITHM_COSIGNATURE)
        cosigner = cls(name, Ed25519PrivateKey.from_private_bytes(seed))
        if identifier != cosigner.witness_key().key_id:
            raise NoteError(f"{what} does not fit its own key id")
        return cosigner

    def secret_text(self) -> str:
        """Return the text form. It is a secret: write it to a private file only."""
        seed = self.private_key.private_bytes_raw()
        key = self.witness_key()
        return PRIVATE_PREFIX + key_text(self.name, key.key_id, seed, ALGORITHM_COSIGNATURE)

    def witness_key(self) -> WitnessKey:
        """Return the public half."""
        return WitnessKey(self.name, self.private_key.public_key().public_bytes_raw())

    def cosign(self, note: str, time_s: int) -> str:
        """Return a note with this witness's line beside those of others, and none of its earlier.

        Raises:
            NoteError: the note is malformed.

        """
        text, lines = split_note(note)
        key = self.witness_key()
        others = [line for line in lines if parse_signature(line)[:2] != (self.name, key.key_id)]
        signature = self.private_key.sign(_signed(text, time_s))
        data = key.key_id + time_s.to_bytes(_TIME_BYTES, "big") + signature
        ours = f"{SIGNATURE_MARK}{self.name} {base64.b64encode(data).decode()}"
        return "\n".join([text, *others, ours, ""])


def _signed(text: str, time_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()
