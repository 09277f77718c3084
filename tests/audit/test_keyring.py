"""Subjects' keys: one a subject, wrapped, kept apart, and gone when their row is gone."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.key_files import MasterKey
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.audit.events import FakeClock, make_keyring
from tests.conftest import OpenDatabase, PostgresCluster

ONE, TWO = b"1" * 32, b"2" * 32


@pytest.fixture
async def keys_database(database: OpenDatabase) -> Database:
    return await database("audit_keys")


async def test_each_subject_has_one_key_for_ever(keys_database: Database) -> None:
    keys = await make_keyring(keys_database, FakeClock()).for_writing([ONE, TWO, ONE])
    assert len(keys[ONE]) == 32
    assert keys[ONE] != keys[TWO]
    assert await make_keyring(keys_database, FakeClock()).for_writing([TWO, ONE]) == keys


async def test_replicas_that_meet_a_subject_at_once_agree(keys_database: Database) -> None:
    rings = [make_keyring(keys_database, FakeClock()) for _ in range(5)]
    found = await asyncio.gather(*(ring.for_writing([ONE, TWO]) for ring in rings))
    assert all(keys == found[0] for keys in found)


async def test_no_key_lies_in_clear(keys_database: Database) -> None:
    keys = await make_keyring(keys_database, FakeClock()).for_writing([ONE])
    wrapped = await keys_database.fetchval("SELECT wrapped_key FROM subject_keys")
    assert keys[ONE] not in wrapped


async def test_reading_makes_no_key(keys_database: Database) -> None:
    assert await make_keyring(keys_database, FakeClock()).for_reading([ONE]) == {}
    assert await keys_database.fetchval("SELECT count(*) FROM subject_keys") == 0


async def test_a_deleted_key_is_forgotten_in_bounded_time(
    keys_database: Database, postgres: PostgresCluster
) -> None:
    clock = FakeClock()
    ring = make_keyring(keys_database, clock)
    await ring.for_writing([ONE])
    await _delete_all(keys_database, postgres)
    clock.advance(61)
    assert await ring.for_reading([ONE]) == {}


async def test_the_cache_is_bounded(keys_database: Database) -> None:
    ring = make_keyring(keys_database, FakeClock(), cache_size=3)
    subjects = [bytes([number]) * 32 for number in range(10)]
    keys = await ring.for_writing(subjects)
    assert len(ring._cache) == 3
    assert await ring.for_writing(subjects) == keys


async def test_another_master_key_is_named(keys_database: Database) -> None:
    await make_keyring(keys_database, FakeClock()).for_writing([ONE])
    ring = make_keyring(keys_database, FakeClock(), MasterKey(b"x" * 32))
    with pytest.raises(RemitError, match="wrapped under the master key") as raised:
        await ring.for_writing([ONE])
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_DATA_CORRUPT


@pytest.mark.parametrize(
    "sql", ["UPDATE subject_keys SET wrapped_key = ''", "TRUNCATE subject_keys"]
)
async def test_the_service_may_not_change_a_key(keys_database: Database, sql: str) -> None:
    for statement in (sql, "DELETE FROM subject_keys"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await keys_database.execute(statement)


async def _delete_all(database: Database, postgres: PostgresCluster) -> None:
    name = await database.fetchval("SELECT current_database()")
    owner = await asyncpg.connect(postgres.dsn(name, "remit_audit_keys_owner"))
    await owner.execute("DELETE FROM subject_keys")
    await owner.close()
