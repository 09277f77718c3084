"""Subjects' keys: one a subject, wrapped, kept apart, and gone when their row is gone."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.key_files import MasterKey
from remit.audit.sealing import FIRST_KEY_ID, SubjectKey
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.audit.events import KEYS, FakeClock, make_keyring
from tests.conftest import OpenDatabase, PostgresCluster

ONE, TWO = b"1" * 32, b"2" * 32


@pytest.fixture
async def keys_database(database: OpenDatabase) -> Database:
    return await database("audit_keys")


async def test_each_subject_has_one_key_for_ever(keys_database: Database) -> None:
    keys = await make_keyring(keys_database, FakeClock()).for_writing([ONE, TWO, ONE])
    assert len(keys[ONE].secret) == 32
    assert keys[ONE] != keys[TWO]
    assert await make_keyring(keys_database, FakeClock()).for_writing([TWO, ONE]) == keys


async def test_replicas_that_meet_a_subject_at_once_agree(keys_database: Database) -> None:
    rings = [make_keyring(keys_database, FakeClock()) for _ in range(5)]
    found = await asyncio.gather(*(ring.for_writing([ONE, TWO]) for ring in rings))
    assert all(keys == found[0] for keys in found)


async def test_no_key_lies_in_clear(keys_database: Database) -> None:
    keys = await make_keyring(keys_database, FakeClock()).for_writing([ONE])
    wrapped = await keys_database.fetchval("SELECT wrapped_key FROM subject_keys")
    assert keys[ONE].secret not in wrapped


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
    clock.advance(59.9)
    assert await ring.for_reading([ONE]) != {}
    clock.advance(0.1)
    assert await ring.for_reading([ONE]) == {}


async def test_what_is_passed_on_is_never_remembered(
    keys_database: Database, postgres: PostgresCluster
) -> None:
    ring = make_keyring(keys_database, FakeClock())
    first = await ring.for_passing_on([ONE])
    await _delete_all(keys_database, postgres)
    second = await ring.for_passing_on([ONE])
    assert first[ONE].key_id != second[ONE].key_id
    assert first[ONE].secret != second[ONE].secret


async def test_a_key_from_before_keys_had_ids_opens(
    keys_database: Database, postgres: PostgresCluster
) -> None:
    wrapped = b"n" * 12 + AESGCM(KEYS.master.key).encrypt(b"n" * 12, b"s" * 32, ONE)
    owner = await asyncpg.connect(
        postgres.dsn(
            await keys_database.fetchval("SELECT current_database()"), "remit_audit_keys_owner"
        )
    )
    await owner.execute(
        "INSERT INTO subject_keys VALUES ($1, $2, $3, now(), $4)",
        ONE,
        KEYS.master.key_id,
        wrapped,
        FIRST_KEY_ID,
    )
    await owner.close()
    found = await make_keyring(keys_database, FakeClock()).for_writing([ONE])
    assert found == {ONE: SubjectKey(FIRST_KEY_ID, b"s" * 32)}


async def test_a_key_that_took_another_ones_place_does_not_open(
    keys_database: Database, postgres: PostgresCluster
) -> None:
    await make_keyring(keys_database, FakeClock()).for_writing([ONE])
    owner = await asyncpg.connect(
        postgres.dsn(
            await keys_database.fetchval("SELECT current_database()"), "remit_audit_keys_owner"
        )
    )
    await owner.execute("UPDATE subject_keys SET key_id = '\\x0102030405060708'")
    await owner.close()
    with pytest.raises(RemitError, match="does not open with its master key"):
        await make_keyring(keys_database, FakeClock()).for_reading([ONE])


async def test_the_eraser_deletes_by_name_and_reads_nothing(
    keys_database: Database, postgres: PostgresCluster
) -> None:
    keys = await make_keyring(keys_database, FakeClock()).for_writing([ONE, TWO])
    name = await keys_database.fetchval("SELECT current_database()")
    eraser = await asyncpg.connect(postgres.dsn(name, "remit_audit_keys_eraser"))
    try:
        for statement in (
            "SELECT wrapped_key FROM subject_keys",
            "DELETE FROM subject_keys RETURNING wrapped_key",
            "UPDATE subject_keys SET key_id = key_id",
            "INSERT INTO subject_keys DEFAULT VALUES",
            "TRUNCATE subject_keys",
            "CREATE TABLE loot (a int)",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await eraser.execute(statement)
        await eraser.execute(
            "DELETE FROM subject_keys WHERE subject_pseudonym = $1 AND key_id = $2",
            ONE,
            keys[ONE].key_id,
        )
    finally:
        await eraser.close()
    assert list(await make_keyring(keys_database, FakeClock()).for_reading([ONE, TWO])) == [TWO]


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
