"""Keys that sign remits: made, sealed, rotated, and forgotten when no remit can need them.

The newest key signs; an older one is still listed until the last remit that it may have signed has
expired. The private half is stored sealed with AES-256-GCM under a key from a file, bound to its
key id, so that a copy of the database signs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_CONFIGURATION_INVALID
from remit.rpc.errors import RemitError

_NONCE_BYTES: Final = 12
_SEED_BYTES: Final = 32


@dataclass(frozen=True)
class StoredKey:
    """A signing key as the database holds it."""

    key_id: str
    public_key: bytes
    sealed_private_key: bytes
    seal_id: str
    create_time: datetime


@dataclass(frozen=True)
class NewKey:
    """A signing key about to be stored; its time is the database's."""

    key_id: str
    public_key: bytes
    sealed_private_key: bytes
    seal_id: str


@dataclass(frozen=True)
class SigningKey:
    """The key that signs now."""

    key_id: str
    private_key: Ed25519PrivateKey


class Seal:
    """Encrypts private keys under the key from the file."""

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESGCM(secret)
        self.seal_id: Final = hashlib.sha256(b"remit seal 1\0" + secret).hexdigest()[:16]

    def seal(self, key_id: str, private_key: bytes, nonce: bytes) -> bytes:
        """Encrypt a private key for storage; `nonce` is 12 fresh random bytes."""
        return nonce + self._cipher.encrypt(nonce, private_key, key_id.encode())

    def open(self, key: StoredKey) -> Ed25519PrivateKey:
        """Decrypt a stored private key.

        Raises:
            RemitError: CONFIGURATION_INVALID if the file's key is not the one that sealed it.

        """
        nonce, sealed = key.sealed_private_key[:_NONCE_BYTES], key.sealed_private_key[_NONCE_BYTES:]
        try:
            seed = self._cipher.decrypt(nonce, sealed, key.key_id.encode())
        except InvalidTag as error:
            raise RemitError(
                ERROR_REASON_CONFIGURATION_INVALID,
                f"the signing key {key.key_id} cannot be opened with the key file of this service;"
                " REMIT_POLICY_SIGNING_KEY_FILE must name the file that the database was made with",
            ) from error
        return Ed25519PrivateKey.from_private_bytes(seed)


def make_key(key_id: str, seed: bytes, nonce: bytes, seal: Seal) -> NewKey:
    """Make a signing key from 32 random bytes and seal it with 12 more."""
    if (len(seed), len(nonce)) != (_SEED_BYTES, _NONCE_BYTES):
        message = f"a key needs {_SEED_BYTES} random bytes and a nonce of {_NONCE_BYTES}"
        raise ValueError(message)
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    return NewKey(key_id, public, seal.seal(key_id, seed, nonce), seal.seal_id)


def in_use(keys: Sequence[StoredKey], now: datetime, overlap: timedelta) -> tuple[StoredKey, ...]:
    """Return the keys that a remit still in time may be signed with, the newest first.

    A key stopped signing when its successor was made, give or take the time in which every replica
    notices; `overlap` is that time plus the longest life of a remit.
    """
    ordered = sorted(keys, key=lambda key: (key.create_time, key.key_id), reverse=True)
    kept = list(ordered[:1])
    for successor, key in pairwise(ordered):
        if successor.create_time + overlap > now:
            kept.append(key)
    return tuple(kept)


def is_due(keys: Sequence[StoredKey], now: datetime, period: timedelta) -> bool:
    """Whether the newest key is old enough for a successor, or there is none."""
    return not keys or max(key.create_time for key in keys) + period <= now


def public_key_of(key: StoredKey) -> Ed25519PublicKey:
    """The half that verifies."""
    return Ed25519PublicKey.from_public_bytes(key.public_key)
