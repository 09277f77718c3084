"""While the audit log cannot be written no effect starts; the gate and the log here are real."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from remit.api.usage.v1 import usage_pb2
from remit.audit.admission import Limits
from remit.audit.filters import EventFilter, Walk
from remit.audit.service import AuditService
from remit.audit.store import APPEND_LOCK
from remit.effects import EffectRequest, EffectResult, Outcome, Permit
from remit.effects.store import ClaimStore
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from remit.rpc.remits import RemitVerifier
from tests.audit.events import Log, make_log
from tests.audit.test_service import POLICY_KEY, token
from tests.conftest import OpenDatabase
from tests.effects.world import LEASE_S, Replica, World, a_call, a_request, replica, settled_down
from tests.waiting import in_time

_LIMITS = Limits(max_entries=256, max_detail_bytes=16_384, max_text_chars=512, max_future_s=300.0)


class _Key:
    """Policy's public key."""

    async def public_key(self, _key_id: str) -> Ed25519PublicKey:
        return POLICY_KEY.public_key()


@dataclass
class Governed:
    """A gate whose intents and outcomes go to a real log, and what touched the world."""

    gate: Replica
    log: Log
    touched: int = 0

    async def effect(self, permit: Permit) -> EffectResult:
        assert await self.log.store.index_of(_intent(permit)) is not None
        self.touched += 1
        return EffectResult(Outcome.SUCCEEDED, usage_pb2.Usage(calls=1), payload=b"answer")

    async def perform(self, request: EffectRequest, seconds: float = 30.0) -> bytes:
        with a_call(seconds):
            return (await self.gate.gate.perform(request, self.effect)).payload

    async def kinds(self) -> list[str]:
        """What the log holds, by kind, oldest first. Readers are answered whatever writers are."""
        found = await self.log.store.list_events(
            EventFilter(org="orgs/acme"), Walk(1000, most=1000), limit=100
        )
        return [_kind(event.leaf) for event in reversed(found)]


def _kind(leaf: bytes) -> str:
    from remit.audit.leaf import Leaf  # noqa: PLC0415 - used once

    return Leaf.decode(leaf).kind


def _intent(permit: Permit) -> str:
    return f"{permit.claim.removeprefix('claims/')}-{permit.attempt}-intent"


@pytest.fixture
async def governed(database: OpenDatabase) -> Governed:
    log = make_log(await database("audit"), await database("audit_keys"))
    service = AuditService(log.log, RemitVerifier(_Key(), SystemClock()), _LIMITS, SystemClock())
    store = ClaimStore(await database("tools"), owner="one", lease_s=LEASE_S)
    return Governed(replica(store, World(), real_audit=service), log)


def request(key: str) -> EffectRequest:
    """A tool call under a remit that the log verifies."""
    return replace(a_request(key), remit_token=token(run=""))


@contextlib.asynccontextmanager
async def owner_of(log: Log) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    dsn = log.database.dsn.replace("remit_audit@", "remit_audit_owner@")
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def test_the_effect_is_recorded_before_and_after(governed: Governed) -> None:
    assert await governed.perform(request("key")) == b"answer"
    await settled_down(governed.gate)
    assert await governed.kinds() == ["INTENT", "OUTCOME"]
    assert governed.touched == 1


@pytest.mark.parametrize("state", ["53100", "53200", "25006", "58030"])
async def test_no_effect_starts_while_the_log_cannot_be_written(
    governed: Governed, state: str
) -> None:
    await governed.perform(request("before"))
    await settled_down(governed.gate)
    async with owner_of(governed.log) as owner:
        await owner.execute(
            "CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE SQLSTATE '{state}'; END $$;"
            " CREATE TRIGGER fails BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION fails()"
        )
        for key in ("one", "two", "one"):
            with pytest.raises(RemitError) as raised:
                await governed.perform(request(key))
            assert raised.value.reason_name == "DEPENDENCY_UNAVAILABLE"
            assert raised.value.retry_after_s
            assert raised.value.next_step
        assert governed.touched == 1
        assert await governed.kinds() == ["INTENT", "OUTCOME"]
        await owner.execute("DROP FUNCTION fails CASCADE")
    assert await governed.perform(request("one")) == b"answer"
    assert await governed.perform(request("two")) == b"answer"
    await settled_down(governed.gate)
    assert governed.touched == 3
    kinds = await governed.kinds()
    assert kinds.count("INTENT") == 3
    assert kinds.count("OUTCOME") >= 3, "one that was refused may have one too"


async def test_no_effect_starts_while_the_log_stands_still(governed: Governed) -> None:
    async with owner_of(governed.log) as owner:
        await owner.execute("SELECT pg_advisory_lock($1)", APPEND_LOCK)
        with pytest.raises(RemitError) as raised:
            await in_time(governed.perform(request("key"), seconds=1.0), 30)
        assert raised.value.reason_name in {"DEADLINE_EXCEEDED", "DEPENDENCY_UNAVAILABLE"}
        assert governed.touched == 0
        assert await governed.kinds() == []
    await settled_down(governed.gate)
    assert await governed.perform(request("key")) == b"answer"
    await settled_down(governed.gate)
    assert governed.touched == 1
    assert set(await governed.kinds()) == {"INTENT", "OUTCOME"}
