"""Randomness as a collaborator, so that tests can repeat it."""

from __future__ import annotations

import os
import uuid
from typing import Protocol

from remit.rpc.clock import Clock, SystemClock

_VERSION_7 = 0x7000
_VARIANT_RFC = 0x8000_0000_0000_0000


class IdSource(Protocol):
    """Makes identifiers and secrets."""

    def uuid7(self) -> str:
        """A new UUIDv7 in its canonical text form: sorts by the time it was made."""
        ...

    def token_bytes(self, size_bytes: int) -> bytes:
        """Bytes from a cryptographically strong source."""
        ...


class SystemIds:
    """Identifiers from the operating system's randomness (RFC 9562 section 5.7)."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()

    def uuid7(self) -> str:
        """A new UUIDv7: 48 bits of milliseconds, 74 bits of randomness."""
        unix_ms = int(self._clock.now().timestamp() * 1000)
        random = int.from_bytes(os.urandom(10), "big")
        high = (unix_ms << 16) | _VERSION_7 | (random >> 68)
        low = _VARIANT_RFC | (random & 0x3FFF_FFFF_FFFF_FFFF)
        return str(uuid.UUID(int=(high << 64) | low))

    def token_bytes(self, size_bytes: int) -> bytes:
        """Bytes from the operating system."""
        return os.urandom(size_bytes)
