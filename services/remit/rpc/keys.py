"""Where services other than policy get the keys that verify remits."""

from __future__ import annotations

import asyncio
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from remit.api.policy.v1 import policy_service_pb2, policy_service_pb2_grpc
from remit.rpc.clock import Clock

_REFETCH_S: Final = 1.0
"""An unknown key id causes at most one request to policy in this time."""


class RemoteKeys:
    """Keys from PolicyService.ListRemitKeys, kept until an unknown key id appears."""

    def __init__(self, policy: policy_service_pb2_grpc.PolicyServiceStub, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._fetch_time = float("-inf")
        self._lock = asyncio.Lock()

    async def public_key(self, key_id: str) -> Ed25519PublicKey | None:
        """The key, or None if policy does not list it. Raises RemitError if policy is away."""
        if key_id not in self._keys:
            async with self._lock:
                if key_id not in self._keys:
                    await self._fetch()
        return self._keys.get(key_id)

    async def _fetch(self) -> None:
        now = self._clock.monotonic()
        if now - self._fetch_time < _REFETCH_S:
            return
        response = await self._policy.ListRemitKeys(policy_service_pb2.ListRemitKeysRequest())
        self._fetch_time = now
        self._keys = {
            key.key_id: Ed25519PublicKey.from_public_bytes(key.public_key) for key in response.keys
        }
