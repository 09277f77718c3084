"""API keys: how they look, how they are checked, and how a repeated request gets the same one.

A key is `rmt_<id>_<secret>_<checksum>`. The prefix lets scanners find leaked keys; the id is public
and names the row; the secret has 256 bits; the checksum tells a typing error from an unknown key
without asking the database. What is stored is HMAC-SHA256(pepper, key): the keys are high-entropy,
so a slow hash would protect nothing and invite denial of service.

The secret is never stored, yet CreateApiKey must answer a repeated request with the same secret. So
id and secret are *derived*: HMAC-SHA512(pepper, who asked + request id + body). Whoever lacks the
pepper cannot predict them, even with a copy of the database; whoever repeats the request gets them
again. The two uses of the pepper have a label each, so neither answers for the other.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_CREDENTIAL_INVALID
from remit.rpc.errors import RemitError

PREFIX: Final = "rmt"
SHOWN_CHARS: Final = 8
"""Of a key's id, in errors and in the log."""
_ID_BYTES: Final = 10
_SECRET_BYTES: Final = 32
# Lengths in unpadded base32: 10, 32 and 4 bytes.
_KEY: Final = re.compile(rf"{PREFIX}_([a-z2-7]{{16}})_([a-z2-7]{{52}})_([a-z2-7]{{7}})")
_VERIFY_LABEL: Final = b"remit api key verifier 1\0"
_DERIVE_LABEL: Final = b"remit api key derivation 1\0"
_FINGERPRINT_LABEL: Final = b"remit pepper fingerprint 1\0"


@dataclass(frozen=True)
class PresentedKey:
    """A key that looks right: its form and checksum hold, which proves nothing yet."""

    key_id: str
    text: str


class Pepper:
    """The secret without which no stored digest can be checked and no key derived."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @property
    def fingerprint(self) -> str:
        """Names the pepper without telling it; stored with each key to notice a wrong file."""
        return hmac.new(self._secret, _FINGERPRINT_LABEL, hashlib.sha256).hexdigest()[:16]

    def digest(self, key: PresentedKey) -> bytes:
        """What is stored of a key: 32 bytes."""
        return hmac.new(self._secret, _VERIFY_LABEL + key.text.encode(), hashlib.sha256).digest()

    def matches(self, key: PresentedKey, digest: bytes) -> bool:
        """Whether `key` is the one whose digest was stored; takes the same time either way."""
        return hmac.compare_digest(self.digest(key), digest)

    def derive(self, request: bytes) -> PresentedKey:
        """Make the key that belongs to a request: the same request gives the same key."""
        block = hmac.new(self._secret, _DERIVE_LABEL + request, hashlib.sha512).digest()
        key_id = _base32(block[:_ID_BYTES])
        body = f"{PREFIX}_{key_id}_{_base32(block[_ID_BYTES : _ID_BYTES + _SECRET_BYTES])}"
        return PresentedKey(key_id, f"{body}_{_checksum(body)}")


def shown(key_id: str) -> str:
    """Return how messages name a key: by the begin of its id."""
    return f"the API key rmt_{key_id[:SHOWN_CHARS]}..."


def parse_api_key(text: str) -> PresentedKey:
    """Read a key as a client presents it.

    Raises:
        RemitError: CREDENTIAL_INVALID; the message tells a foreign token from a typing error.

    """
    match = _KEY.fullmatch(text)
    if match is None:
        raise RemitError(
            ERROR_REASON_CREDENTIAL_INVALID,
            f"what was presented is not an API key of Remit, which begins with `{PREFIX}_`",
        )
    body, _, checksum = text.rpartition("_")
    if checksum != _checksum(body):
        raise RemitError(
            ERROR_REASON_CREDENTIAL_INVALID,
            f"the API key {PREFIX}_{match[1]} has a typing error: its checksum does not match",
        )
    return PresentedKey(match[1], text)


def shown_start(text: str) -> str:
    """What may be shown of a presented key: the start of its public id; empty if it is none."""
    match = _KEY.fullmatch(text)
    return f"{PREFIX}_{match[1][:SHOWN_CHARS]}" if match else ""


def canonical_body(body: Mapping[str, object]) -> bytes:
    """One byte string per body, by which a repetition is told from a reuse.

    `body` holds plain JSON values. Sorted keys and escaped text make it the same everywhere.
    """
    return json.dumps(dict(body), sort_keys=True, separators=(",", ":")).encode()


def canonical_request(
    method: str, subject: str, request_id: str, body: Mapping[str, object]
) -> bytes:
    """One byte string per admin request, from which its key derives."""
    parts = {"method": method, "subject": subject, "request_id": request_id, "body": dict(body)}
    return canonical_body(parts)


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


def _checksum(body: str) -> str:
    return _base32(zlib.crc32(body.encode()).to_bytes(4, "big"))
