"""Where services other than policy get the keys that verify remits."""

from __future__ import annotations

import asyncio
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from remit import telemetry
from remit.api.policy.v1 import policy_service_pb2, policy_service_pb2_grpc
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError
from remit.rpc.remits import KEY_AGE_S

_REFETCH_S: Final = 1.0
"""An unknown key id causes at most one request to policy in this time."""
_OUTAGE_AGE_S: Final = 600.0
"""Known keys serve through an outage of policy up to this age.

They are public, and only policy can sign with the private ones, so old keys accept nothing that was
not issued; all that an outage may delay is the withdrawal of a key, and no longer than this.
"""
_RENEW_TIMEOUT_S: Final = 1.0
"""A policy that hangs holds up a call whose key is known no longer than this,"""
_RENEW_RETRY_S: Final = 10.0
"""and not again in this time."""

log = telemetry.logger(__name__)


class RemoteKeys:
    """Keys from PolicyService.ListRemitKeys, for a minute or until an unknown key id appears."""

    def __init__(self, policy: policy_service_pb2_grpc.PolicyServiceStub, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._fetch_time = float("-inf")
        self._renew_time = float("-inf")
        self._lock = asyncio.Lock()

    async def public_key(self, key_id: str) -> Ed25519PublicKey | None:
        """The key, or None if policy does not list it.

        Raises RemitError if policy is away and the key is unknown or was fetched too long ago.
        """
        if self._must_renew() or key_id not in self._keys:
            async with self._lock:
                if self._must_renew():
                    await self._renew()
                if key_id not in self._keys:
                    await self._fetch()
        return self._keys.get(key_id)

    def _must_renew(self) -> bool:
        now = self._clock.monotonic()
        age_s = now - self._fetch_time
        retried_lately = now - self._renew_time < _RENEW_RETRY_S
        return bool(self._keys) and (
            age_s >= _OUTAGE_AGE_S or (age_s >= KEY_AGE_S and not retried_lately)
        )

    async def _renew(self) -> None:
        """Fetches again what is known. Raises RemitError if that is too old to go on with."""
        self._renew_time = self._clock.monotonic()
        try:
            await self._fetch(_RENEW_TIMEOUT_S)
        except RemitError as error:
            if self._clock.monotonic() - self._fetch_time >= _OUTAGE_AGE_S:
                raise
            log.warning("remit_keys_not_renewed", reason=error.reason_name, text=error.message)

    async def _fetch(self, timeout_s: float | None = None) -> None:
        now = self._clock.monotonic()
        if now - self._fetch_time < _REFETCH_S:
            return
        response = await self._policy.ListRemitKeys(
            policy_service_pb2.ListRemitKeysRequest(), timeout=timeout_s
        )
        self._fetch_time = now
        self._keys = {
            key.key_id: Ed25519PublicKey.from_public_bytes(key.public_key) for key in response.keys
        }
