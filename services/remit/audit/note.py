"""Signed notes and checkpoints, in the forms of C2SP signed-note and tlog-checkpoint.

A checkpoint is what an auditor keeps: three lines (the log's name, the number of leaves, the root)
and a signature by the log. The forms are public so that witnesses and verifiers of other projects
can read them. Only Ed25519 signatures (algorithm byte 1) are made and verified here; lines signed
with keys that a verifier does not know are left alone, as signed-note demands, which is how a
witness adds its own (`cosignature`).

    signer = Signer.generate("remit.dev/audit/example")
    note = signer.sign(Checkpoint(signer.name, tree_size, root_hash).body())
    checkpoint = Checkpoint.parse(signer.verifier().open(note))
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ALGORITHM_ED25519 = b"\x01"
KEY_ID_BYTES = 4
KEY_BYTES = 32
SIGNATURE_BYTES = 64
ROOT_BYTES = 32
# Bounds what a stranger can make a verifier read.
MAX_NOTE_BYTES = 64 * 1024
MAX_SIGNATURES = 16
SIGNATURE_MARK = "— "
PRIVATE_PREFIX = "PRIVATE+KEY+"
_NAME = re.compile(r"[^\s+]+")
_TREE_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")


class NoteError(ValueError):
    """A key, note or checkpoint is malformed or not signed by the key; the message says which."""


def decode_base64(text: str, what: str) -> bytes:
    """Decode standard base64, refusing every spelling but the canonical one.

    Raises:
        NoteError: ``what`` is not the base64 of anything.

    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NoteError(f"{what} is not base64") from error
    if base64.b64encode(data).decode() != text:
        raise NoteError(f"{what} is not canonical base64")
    return data


def key_id(name: str, public_key: bytes, algorithm: bytes = ALGORITHM_ED25519) -> bytes:
    """Return the four bytes by which a signature line names its key (signed-note)."""
    return hashlib.sha256(name.encode() + b"\n" + algorithm + public_key).digest()[:KEY_ID_BYTES]


@dataclass(frozen=True)
class Verifier:
    """The public half of a log's key; its text form is ``name+id+base64``."""

    name: str
    public_key: bytes

    def __str__(self) -> str:
        return key_text(self.name, self.key_id, self.public_key)

    @property
    def key_id(self) -> bytes:
        """The four bytes by which a signature line names this key."""
        return key_id(self.name, self.public_key)

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """Read a verifier key, ``name+id+base64``.

        Raises:
            NoteError: it is not one, or its id does not fit its key.

        """
        name, identifier, public_key = parse_key(text.strip(), "the public key")
        if identifier != key_id(name, public_key):
            raise NoteError("the public key does not fit its own key id")
        return cls(name, public_key)

    def open(self, note: str) -> str:
        """Return the text of a note that this key signed.

        Raises:
            NoteError: the note is malformed, or has no valid signature of this key.

        """
        text, lines = split_note(note)
        identifier = key_id(self.name, self.public_key)
        ours = [
            signature
            for name, key, signature in map(parse_signature, lines)
            if name == self.name and key == identifier
        ]
        if len(ours) != 1:
            found = "no signature" if not ours else f"{len(ours)} signatures"
            raise NoteError(f"the note has {found} of the key {self.name}")
        self._verify(text, ours[0])
        return text

    def _verify(self, text: str, signature: bytes) -> None:
        try:
            key = Ed25519PublicKey.from_public_bytes(self.public_key)
            key.verify(signature, text.encode())
        except (InvalidSignature, ValueError) as error:
            raise NoteError(f"the signature of {self.name} does not fit the note") from error


@dataclass(frozen=True)
class Signer:
    """The private half; its text form is ``PRIVATE+KEY+name+id+base64``."""

    name: str
    private_key: Ed25519PrivateKey

    @classmethod
    def generate(cls, name: str) -> Signer:
        """Make a new key for the log of a name.

        Raises:
            NoteError: the name is empty or holds white space or a plus sign.

        """
        check_name(name)
        return cls(name, Ed25519PrivateKey.generate())

    @classmethod
    def parse(cls, text: str) -> Signer:
        """Read a signer key.

        Raises:
            NoteError: it is not one, or its id does not fit its key.

        """
        if not text.startswith(PRIVATE_PREFIX):
            raise NoteError(f"the private key does not begin with {PRIVATE_PREFIX}")
        encoded = text.strip().removeprefix(PRIVATE_PREFIX)
        name, identifier, seed = parse_key(encoded, "the private key")
        signer = cls(name, Ed25519PrivateKey.from_private_bytes(seed))
        if identifier != key_id(name, signer.verifier().public_key):
            raise NoteError("the private key does not fit its own key id")
        return signer

    def secret_text(self) -> str:
        """Return the text form. It is a secret: write it to a private file only."""
        identifier = key_id(self.name, self.verifier().public_key)
        seed = self.private_key.private_bytes_raw()
        return PRIVATE_PREFIX + key_text(self.name, identifier, seed)

    def verifier(self) -> Verifier:
        """Return the public half."""
        return Verifier(self.name, self.private_key.public_key().public_bytes_raw())

    def sign(self, text: str) -> str:
        """Return a note: the text, which must end with a newline, and one signature.

        Raises:
            NoteError: the text does not end with a newline.

        """
        if not text.endswith("\n"):
            raise NoteError("the text of a note ends with a newline")
        signature = self.private_key.sign(text.encode())
        identifier = key_id(self.name, self.verifier().public_key)
        encoded = base64.b64encode(identifier + signature).decode()
        return f"{text}\n{SIGNATURE_MARK}{self.name} {encoded}\n"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a log: its name, the number of its leaves and its root, 32 bytes."""

    origin: str
    tree_size: int
    root_hash: bytes

    def body(self) -> str:
        """Return the text that is signed (tlog-checkpoint)."""
        root = base64.b64encode(self.root_hash).decode()
        return f"{self.origin}\n{self.tree_size}\n{root}\n"

    @classmethod
    def parse(cls, body: str) -> Checkpoint:
        """Read the text of a checkpoint. Extension lines are allowed and ignored.

        Raises:
            NoteError: it is not a checkpoint.

        """
        lines = body.split("\n")
        if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
            raise NoteError("a checkpoint has three lines: name, tree size and root")
        origin, size, root = lines[:3]
        if not _TREE_SIZE.fullmatch(size):
            raise NoteError("the tree size of the checkpoint is not a decimal number")
        root_hash = decode_base64(root, "the root of the checkpoint")
        if len(root_hash) != ROOT_BYTES:
            raise NoteError(f"the root of the checkpoint does not have {ROOT_BYTES} bytes")
        return cls(origin, int(size), root_hash)


def open_checkpoint(note: str, verifier: Verifier) -> Checkpoint:
    """Return the checkpoint in a note that the log of this key signed.

    Raises:
        NoteError: malformed, signed by another key, or the checkpoint of another log.

    """
    checkpoint = Checkpoint.parse(verifier.open(note))
    if checkpoint.origin != verifier.name:
        raise NoteError(
            f"the checkpoint is of the log {checkpoint.origin}, the key of {verifier.name}"
        )
    return checkpoint


def signing_keys(note: str) -> set[tuple[str, bytes]]:
    """Return name and id of every key that a note says it is signed with; nothing is verified.

    Raises:
        NoteError: the note is malformed.

    """
    return {(name, key) for name, key, _ in map(parse_signature, split_note(note)[1])}


def check_name(name: str) -> None:
    """Raise NoteError for what cannot be a key's name."""
    if not _NAME.fullmatch(name):
        raise NoteError("the name of a key is not empty and holds no white space and no `+`")


def key_text(name: str, identifier: bytes, key: bytes, algorithm: bytes = ALGORITHM_ED25519) -> str:
    """Return the text form of a key, public or private."""
    return f"{name}+{identifier.hex()}+{base64.b64encode(algorithm + key).decode()}"


def parse_key(
    text: str, what: str, algorithm: bytes = ALGORITHM_ED25519
) -> tuple[str, bytes, bytes]:
    """Return name, key id and the 32 bytes of a key in text form. Raises NoteError."""
    parts = text.split("+", 2)
    if len(parts) != 3:
        raise NoteError(f"{what} does not have the form name+id+base64")
    name, identifier, encoded = parts
    check_name(name)
    if not re.fullmatch(r"[0-9a-f]{8}", identifier):
        raise NoteError(f"the id of {what} does not have 8 hex digits")
    key = decode_base64(encoded, what)
    if key[:1] != algorithm or len(key) != 1 + KEY_BYTES:
        raise NoteError(f"{what} is not an Ed25519 key of its kind")
    return name, bytes.fromhex(identifier), key[1:]


def split_note(note: str) -> tuple[str, list[str]]:
    """Return a note's text and its signature lines, without their newlines. Raises NoteError."""
    if len(note.encode()) > MAX_NOTE_BYTES:
        raise NoteError(f"the note has more than {MAX_NOTE_BYTES} bytes")
    if any(ord(character) < 0x20 and character != "\n" for character in note):
        raise NoteError("the note holds a control character")
    text, separator, signatures = note.rpartition("\n\n")
    if not separator or not signatures.endswith("\n"):
        raise NoteError("the note is cut off: no signature follows an empty line")
    lines = signatures.removesuffix("\n").split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise NoteError(f"the note has more than {MAX_SIGNATURES} signatures")
    return text + "\n", lines


def parse_signature(line: str) -> tuple[str, bytes, bytes]:
    """Return name, key id and signature of a signature line. Raises NoteError."""
    name, separator, encoded = line.removeprefix(SIGNATURE_MARK).partition(" ")
    if not line.startswith(SIGNATURE_MARK) or not separator or not _NAME.fullmatch(name):
        raise NoteError("a signature line does not have the form `— name base64`")
    data = decode_base64(encoded, "a signature")
    if len(data) <= KEY_ID_BYTES:
        raise NoteError("a signature is too short")
    return name, data[:KEY_ID_BYTES], data[KEY_ID_BYTES:]
