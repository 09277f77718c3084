"""The keys that sign webhooks: Ed25519, one an org, derived from a secret file.

Messages are signed as Standard Webhooks says (scheme `v1a`), over `id.timestamp.body`. Nothing is
stored: an org's key is derived from the secret with HKDF (RFC 5869), so every replica has the same
one, and a copy of the databases signs nothing. To change keys, a new file goes before the old one:
messages are signed with both until the old one is taken away.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from remit.secret_files import make_secret, read_secret

KEY_FILE: Final = "webhooks.key"
_PURPOSE: Final = b"remit webhook key 1\0"
_PUBLIC_PREFIX: Final = "whpk_"
_SCHEME: Final = "v1a"
_KNOWN_ORGS: Final = 1024


def make_webhook_key(folder: Path) -> Path:
    """Make the secret file in `folder` unless it is there, and return its path.

    Raises:
        RemitError: CONFIGURATION_INVALID if the file is there and damaged.

    """
    return make_secret(folder / KEY_FILE)


class WebhookKeys:
    """The keys of every org. Without a secret there are none, and nothing can be signed."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        """`secrets` have 32 bytes each, the newest first."""
        self._secrets = tuple(secrets)
        self._of = functools.lru_cache(_KNOWN_ORGS)(self._derived)

    @classmethod
    def load(cls, files: Sequence[Path]) -> WebhookKeys:
        """The keys of these files. Raises CONFIGURATION_INVALID that names a wrong one."""
        return cls([read_secret(path) for path in files])

    def __bool__(self) -> bool:
        return bool(self._secrets)

    def public(self, org: str) -> tuple[str, ...]:
        """What verifies messages of `orgs/{org}`, the newest first: `whpk_` and base64."""
        return tuple(
            _PUBLIC_PREFIX + _base64(key.public_key().public_bytes_raw()) for key in self._of(org)
        )

    def signature(self, org: str, identifier: str, timestamp_s: int, body: bytes) -> str:
        """The header `webhook-signature`: a signature by each key, separated by spaces."""
        signed = f"{identifier}.{timestamp_s}.".encode() + body
        return " ".join(f"{_SCHEME},{_base64(key.sign(signed))}" for key in self._of(org))

    def _derived(self, org: str) -> tuple[Ed25519PrivateKey, ...]:
        return tuple(_derive(secret, org) for secret in self._secrets)


def _derive(secret: bytes, org: str) -> Ed25519PrivateKey:
    kdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE + org.encode())
    return Ed25519PrivateKey.from_private_bytes(kdf.derive(secret))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
