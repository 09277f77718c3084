"""Checkpoints: signed when the log grew, on demand, and never for a fork."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.checkpoints import CheckpointSigner
from remit.audit.merkle import EMPTY_ROOT
from remit.audit.note import Signer, open_checkpoint
from remit.audit.signing_keys import SigningKeys
from remit.rpc.errors import RemitError
from tests.audit.events import KEYS, Log, make_event
from tests.conftest import PostgresCluster
from tests.waiting import eventually


async def fill(log: Log, count: int, prefix: str = "e") -> None:
    await log.append(*(make_event(f"{prefix}-{n}") for n in range(count)))


async def test_an_empty_log_has_a_checkpoint(log: Log) -> None:
    signed = await log.checkpoints.covering(0)
    assert (signed.tree_size, signed.root_hash) == (0, EMPTY_ROOT)


async def test_what_is_signed_is_the_tree(log: Log) -> None:
    await fill(log, 300)
    signed = await log.checkpoints.covering(300)
    stated = open_checkpoint(signed.signed_note, KEYS.signer.verifier())
    assert (stated.tree_size, stated.root_hash) == (300, await log.store.root(300))


async def test_a_checkpoint_is_reused_until_a_larger_one_is_asked_for(log: Log) -> None:
    await fill(log, 3)
    first = await log.checkpoints.covering(2)
    await fill(log, 2, "f")
    assert await log.checkpoints.covering(0) == first
    assert await log.checkpoints.covering(3) == first
    assert (await log.checkpoints.covering(4)).tree_size == 5
    assert await log.checkpoints.at_size(3) == first


async def test_more_than_there_is_is_refused(log: Log) -> None:
    await fill(log, 3)
    for attempt in (log.checkpoints.covering(4), log.checkpoints.at_size(2)):
        with pytest.raises(RemitError) as raised:
            await attempt
        assert raised.value.reason == error_reason_pb2.ERROR_REASON_INVALID_REQUEST


async def test_many_who_ask_at_once_cause_one_signature(log: Log) -> None:
    await fill(log, 3)
    other = CheckpointSigner(log.database, log.store, SigningKeys(KEYS.signer), interval_ms=10)
    asked = [signer.covering(3) for signer in (log.checkpoints, other) for _ in range(20)]
    assert len(set(await asyncio.gather(*asked))) == 1
    assert await log.database.fetchval("SELECT count(*) FROM checkpoints") == 1


async def test_the_background_signs_what_grew(log: Log) -> None:
    async def newest() -> int | None:
        return await log.database.fetchval("SELECT max(tree_size) FROM checkpoints")  # type: ignore[no-any-return]

    running = asyncio.create_task(log.checkpoints.run())
    try:
        for count in (2, 4):
            await fill(log, 2, f"e{count}")

            async def signed(size: int = count) -> bool:
                return await newest() == size

            await eventually(signed)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_a_damaged_tree_is_not_signed(log: Log, postgres: PostgresCluster) -> None:
    await fill(log, 300)
    await log.checkpoints.covering_all()
    await _as_owner(
        log, postgres, "UPDATE leaves SET leaf_hash = $1 WHERE leaf_index = 290", b"x" * 32
    )
    await fill(log, 1, "f")
    await _refused(log, "does not extend its last checkpoint")


async def test_a_log_that_was_rolled_back_is_not_signed(
    log: Log, postgres: PostgresCluster
) -> None:
    await fill(log, 5)
    await log.checkpoints.covering_all()
    await _as_owner(log, postgres, "DELETE FROM leaves WHERE leaf_index >= 3")
    await _refused(log, "fewer than its checkpoint")


async def test_a_checkpoint_row_that_was_changed_is_found(
    log: Log, postgres: PostgresCluster
) -> None:
    await fill(log, 5)
    await log.checkpoints.covering_all()
    await _as_owner(log, postgres, "UPDATE checkpoints SET root_hash = $1", b"x" * 32)
    await _refused(log, "not what was signed")


async def test_another_key_than_the_logs_is_refused(log: Log) -> None:
    await log.checkpoints.covering_all()
    other = CheckpointSigner(
        log.database, log.store, SigningKeys(Signer.generate(KEYS.signer.name)), interval_ms=10
    )
    with pytest.raises(RemitError, match="did not sign the log's last checkpoint") as raised:
        await other.covering_all()
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID


async def _refused(log: Log, fault: str) -> None:
    with pytest.raises(RemitError, match=fault) as raised:
        await log.checkpoints.covering_all()
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_DATA_CORRUPT


async def _as_owner(log: Log, postgres: PostgresCluster, sql: str, *args: object) -> None:
    name = await log.database.fetchval("SELECT current_database()")
    owner = await asyncpg.connect(postgres.dsn(name, "remit_audit_owner"))
    await owner.execute(sql, *args)
    await owner.close()
