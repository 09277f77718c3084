"""What wraps the subjects' keys: a KMS, or the master key in a file.

Whoever keeps the master key elsewhere writes a `KeyWrapper` of their own and gives it to the
keyring; nothing else of the service ever sees the master key. A wrapper is given the context that a
key belongs to and must refuse to unwrap it in another.
"""

from __future__ import annotations

from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from remit.audit.key_files import MasterKey
from remit.audit.sealing import NONCE_BYTES
from remit.rpc.ids import IdSource


class UnwrapError(ValueError):
    """A wrapped key does not open: it is damaged, or belongs to another context."""


class KeyWrapper(Protocol):
    """Wraps and unwraps keys under a master key that stays where it is."""

    @property
    def master_key_id(self) -> str:
        """Which master key wraps now; it is stored beside what it wraps."""

    async def wrap(self, key: bytes, context: bytes) -> bytes:
        """Return a key, wrapped, bound to a context.

        Raises:
            RemitError: DEPENDENCY_UNAVAILABLE when the master key cannot be reached.

        """

    async def unwrap(self, master_key_id: str, wrapped: bytes, context: bytes) -> bytes:
        """Return the key that was wrapped under that master key for this context.

        Raises:
            UnwrapError: it does not open.
            RemitError: DEPENDENCY_UNAVAILABLE when the master key cannot be reached.

        """


class FileKeyWrapper:
    """Wraps under the master key of the log's folder: AES-256-GCM, a random nonce before it."""

    def __init__(self, master: MasterKey, ids: IdSource) -> None:
        self._master = master
        self._cipher = AESGCM(master.key)
        self._ids = ids

    @property
    def master_key_id(self) -> str:
        """The id of the file's key."""
        return self._master.key_id

    async def wrap(self, key: bytes, context: bytes) -> bytes:
        """Return the nonce and the encrypted key."""
        nonce = self._ids.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, key, context)

    async def unwrap(self, master_key_id: str, wrapped: bytes, context: bytes) -> bytes:
        """Return the key. Raises UnwrapError."""
        if master_key_id != self._master.key_id:
            raise UnwrapError(f"is wrapped under the master key {master_key_id}")
        nonce, encrypted = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, encrypted, context)
        except (InvalidTag, ValueError) as error:
            raise UnwrapError("does not open with its master key") from error
