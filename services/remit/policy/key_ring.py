"""The signing keys of this replica: the one that signs now, and those that verify.

A new key is listed at once and signs a moment later, so that a verifier which fetched the list just
before it was made may fetch again (RemoteKeys asks at most once a second).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from remit.policy.signing import (
    NewKey,
    Seal,
    SigningKey,
    StoredKey,
    in_use,
    make_key,
    public_key_of,
)
from remit.policy.store import PolicyStore
from remit.rpc.clock import Clock
from remit.rpc.ids import IdSource

ANNOUNCE: Final = timedelta(seconds=2)
"""Time between the listing of a new key and its first signature."""
_RELOAD_S: Final = 1.0
"""An unknown key id causes at most one look into the database in this time."""
_SEED_BYTES: Final = 32
_NONCE_BYTES: Final = 12


class KeyRing:
    """Keys of the database as this replica last saw them."""

    def __init__(
        self,
        store: PolicyStore,
        seal: Seal,
        clock: Clock,
        ids: IdSource,
        *,
        period: timedelta,
        overlap: timedelta,
    ) -> None:
        """`period` is how long a key signs; `overlap` how long it is listed after its successor."""
        self._store = store
        self._seal = seal
        self._clock = clock
        self._ids = ids
        self._period = period
        self._overlap = overlap + ANNOUNCE
        self._signing: SigningKey | None = None
        self._public: dict[str, Ed25519PublicKey] = {}
        self._load_time = float("-inf")
        self._lock = asyncio.Lock()

    @property
    def signing(self) -> SigningKey:
        """The key that signs now. Raises LookupError before the first `refresh`."""
        if self._signing is None:
            message = "the signing keys were not loaded yet"
            raise LookupError(message)
        return self._signing

    async def refresh(self) -> None:
        """Make a key if one is due, and take over what the database holds.

        Raises:
            RemitError: CONFIGURATION_INVALID if the signing key cannot be opened.

        """
        await self._store.add_signing_key_if_due(self._period, self._make)
        await self._load()

    async def public_key(self, key_id: str) -> Ed25519PublicKey | None:
        """Return the key that verifies `key_id`; another replica may have made it just now."""
        if key_id not in self._public:
            async with self._lock:
                if key_id not in self._public:
                    await self._reload()
        return self._public.get(key_id)

    async def listed(self) -> tuple[StoredKey, ...]:
        """Return every key that verifies remits still in time, as the database has them now."""
        keys, now = await self._store.signing_keys()
        return in_use(keys, now, self._overlap)

    async def _reload(self) -> None:
        if self._clock.monotonic() - self._load_time >= _RELOAD_S:
            await self._load()

    async def _load(self) -> None:
        keys, now = await self._store.signing_keys()
        listed = in_use(keys, now, self._overlap)
        signing = signing_key(listed, now)
        if self._signing is None or self._signing.key_id != signing.key_id:
            self._signing = SigningKey(signing.key_id, self._seal.open(signing))
        self._public = {key.key_id: public_key_of(key) for key in listed}
        self._load_time = self._clock.monotonic()

    def _make(self) -> NewKey:
        seed, nonce = self._ids.token_bytes(_SEED_BYTES), self._ids.token_bytes(_NONCE_BYTES)
        return make_key(self._ids.uuid7(), seed, nonce, self._seal)


def signing_key(listed: Sequence[StoredKey], now: datetime) -> StoredKey:
    """Return the newest key that was announced long enough ago; a lone key signs at once."""
    announced = [key for key in listed if key.create_time + ANNOUNCE <= now]
    return announced[0] if announced else listed[-1]
