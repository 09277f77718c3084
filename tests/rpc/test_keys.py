"""Keys of remits: a withdrawn one stops verifying; an outage of policy stops nothing at once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.api.policy.v1 import policy_service_pb2, policy_service_pb2_grpc
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from remit.rpc.guard import Guard
from remit.rpc.keys import RemoteKeys
from remit.rpc.memory import MemoryMesh
from remit.rpc.remits import RemitVerifier, encode_remit
from tests.rpc.test_remits import KEY, NOW, REMIT, StillClock
from tests.waiting import PATIENCE


class Policy(policy_service_pb2_grpc.PolicyServiceServicer):
    """Lists what it is told to, and counts how often it was asked."""

    def __init__(self) -> None:
        self.listed = {"k1": KEY}
        self.away = False
        self.asked = 0

    async def ListRemitKeys(
        self, _request: policy_service_pb2.ListRemitKeysRequest, _context: Any
    ) -> policy_service_pb2.ListRemitKeysResponse:
        self.asked += 1
        if self.away:
            raise RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "away")
        return policy_service_pb2.ListRemitKeysResponse(
            keys=[_listed(key_id, key) for key_id, key in self.listed.items()]
        )


def _listed(key_id: str, key: Ed25519PrivateKey) -> policy_service_pb2.RemitKey:
    return policy_service_pb2.RemitKey(
        key_id=key_id, public_key=key.public_key().public_bytes_raw()
    )


@pytest.fixture
def policy() -> Policy:
    return Policy()  # type: ignore[abstract]


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def keys(policy: Policy, clock: StillClock) -> RemoteKeys:
    mesh = MemoryMesh(PATIENCE)
    guard = Guard(
        audience=options_pb2.CALLER_POLICY,
        verifier=RemitVerifier(_NoKeys(), SystemClock()),
        clock=SystemClock(),
        max_in_flight=100,
    )
    mesh.add(guard, policy_service_pb2_grpc.add_PolicyServiceServicer_to_server, policy)
    client = mesh.as_caller(options_pb2.CALLER_TOOLS)
    return RemoteKeys(client.stub(policy_service_pb2_grpc.PolicyServiceStub), clock)


class _NoKeys:
    async def public_key(self, _key_id: str) -> None:
        return None


def at(clock: StillClock, seconds: float) -> None:
    clock.time = NOW + timedelta(seconds=seconds)


async def test_a_withdrawn_key_is_forgotten_after_a_minute(
    keys: RemoteKeys, policy: Policy, clock: StillClock
) -> None:
    assert await keys.public_key("k1") is not None
    policy.listed.clear()
    at(clock, 59)
    assert await keys.public_key("k1") is not None
    assert policy.asked == 1
    at(clock, 61)
    assert await keys.public_key("k1") is None


async def test_a_remit_of_a_withdrawn_key_stops_verifying(
    keys: RemoteKeys, policy: Policy, clock: StillClock
) -> None:
    verifier = RemitVerifier(keys, clock)
    token = encode_remit(REMIT, KEY)
    await verifier.verify(token, audience=options_pb2.CALLER_TOOLS)
    policy.listed.clear()
    at(clock, 61)
    with pytest.raises(RemitError, match="not known"):
        await verifier.verify(token, audience=options_pb2.CALLER_TOOLS)


async def test_known_keys_serve_through_an_outage_of_policy_but_not_for_ever(
    keys: RemoteKeys, policy: Policy, clock: StillClock
) -> None:
    await keys.public_key("k1")
    policy.away = True
    at(clock, 300)
    for _ in range(3):
        assert await keys.public_key("k1") is not None
    assert policy.asked == 2, "a policy that is away holds up one call, not all"
    at(clock, 601)
    with pytest.raises(RemitError) as caught:
        await keys.public_key("k1")
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    policy.away = False
    assert await keys.public_key("k1") is not None


async def test_an_outage_that_ended_is_noticed(
    keys: RemoteKeys, policy: Policy, clock: StillClock
) -> None:
    await keys.public_key("k1")
    policy.away = True
    at(clock, 61)
    assert await keys.public_key("k1") is not None
    policy.away = False
    policy.listed.clear()
    at(clock, 72)
    assert await keys.public_key("k1") is None


async def test_unknown_key_ids_ask_policy_once_a_second(
    keys: RemoteKeys, policy: Policy, clock: StillClock
) -> None:
    for _ in range(3):
        assert await keys.public_key("k9") is None
    assert policy.asked == 1
    policy.listed["k9"] = KEY
    at(clock, 2)
    assert await keys.public_key("k9") is not None
