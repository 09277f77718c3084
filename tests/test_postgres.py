"""Group commit, durability check and migrations against a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.postgres import Connection, Database, GroupCommit, migrate
from remit.rpc.calls import outgoing_remit_token, remit_token
from remit.rpc.errors import RemitError
from tests.conftest import PostgresCluster
from tests.waiting import in_time


@pytest.fixture
async def numbers(postgres: PostgresCluster) -> AsyncIterator[Database]:
    """A database with one table, under a superuser: these tests are about commits, not rights."""
    dsn = postgres.dsn("postgres", "postgres")
    async with Database.open(dsn) as database:
        await database.execute("DROP TABLE IF EXISTS numbers")
        await database.execute("CREATE TABLE numbers (n int PRIMARY KEY CHECK (n >= 0))")
        yield database


async def write_numbers(connection: Connection, items: Sequence[int]) -> Sequence[int | RemitError]:
    await connection.executemany("INSERT INTO numbers VALUES ($1)", [(n,) for n in items])
    return items


async def test_many_callers_share_few_commits(numbers: Database) -> None:
    commits = GroupCommit(numbers, write_numbers, name="numbers")
    assert await asyncio.gather(*map(commits.submit, range(500))) == list(range(500))
    assert await numbers.fetchval("SELECT count(*) FROM numbers") == 500
    assert commits.commits < 50


async def test_a_bad_row_fails_alone(numbers: Database) -> None:
    commits = GroupCommit(numbers, write_numbers, name="numbers")
    results = await asyncio.gather(*map(commits.submit, [1, 2, -3, 4]), return_exceptions=True)
    assert [r for r in results if isinstance(r, int)] == [1, 2, 4]
    assert await numbers.fetchval("SELECT count(*) FROM numbers") == 3


async def test_a_refused_item_fails_alone_and_the_batch_commits(numbers: Database) -> None:
    refusal = RemitError(error_reason_pb2.ERROR_REASON_INVALID_STATE, "no")

    async def refuse_two(c: Connection, items: Sequence[int]) -> Sequence[int | RemitError]:
        await write_numbers(c, [n for n in items if n != 2])
        return [refusal if n == 2 else n for n in items]

    commits = GroupCommit(numbers, refuse_two, name="numbers")
    results = await asyncio.gather(*map(commits.submit, [1, 2, 3]), return_exceptions=True)
    assert results == [1, refusal, 3]


async def test_a_full_queue_refuses_at_once(numbers: Database) -> None:
    commits = GroupCommit(numbers, write_numbers, name="numbers", max_queue=3)
    results = await asyncio.gather(*map(commits.submit, range(9)), return_exceptions=True)
    refused = [r for r in results if isinstance(r, RemitError)]
    assert refused
    assert {r.reason for r in refused} == {error_reason_pb2.ERROR_REASON_OVERLOADED}
    assert all(r.retry_after_s for r in refused)


async def test_a_lost_connection_is_unavailable_not_a_result(numbers: Database) -> None:
    async def die(connection: Connection, items: Sequence[int]) -> Sequence[int]:
        await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return items

    commits = GroupCommit(numbers, die, name="numbers")
    with pytest.raises(RemitError) as caught:
        await commits.submit(1)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE


async def test_a_driver_that_met_the_end_of_its_server_is_an_outage(numbers: Database) -> None:
    """What the driver raises when the server dies between two of its messages."""

    async def confused(_connection: Connection, _items: Sequence[int]) -> Sequence[int]:
        message = "got result for unknown protocol state 3"
        raise asyncpg.InternalClientError(message)

    commits = GroupCommit(numbers, confused, name="numbers")
    with pytest.raises(RemitError) as caught:
        await commits.submit(1)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE


async def test_unsafe_durability_is_refused(postgres: PostgresCluster) -> None:
    dsn = postgres.dsn("postgres", "postgres") + "&options=-c%20synchronous_commit%3Doff"
    with pytest.raises(RemitError, match="synchronous_commit = off"):
        async with Database.open(dsn):
            pass


async def test_a_missing_database_is_said_within_the_deadline() -> None:
    with pytest.raises(RemitError, match="no database after"):
        async with Database.open("postgresql://nobody@127.0.0.1:9/none", connect_timeout_s=0.2):
            pass


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("sslmode=verify-full", "root certificate file"),
        ("sslmode=verify-full&sslrootcert=/nowhere/ca.pem", "sslrootcert=/nowhere/ca.pem"),
        (f"sslmode=verify-full&sslrootcert={__file__}", "sslrootcert="),
        ("sslmode=sometimes", "sslmode"),
    ],
)
async def test_a_dsn_that_can_never_work_is_said_at_once(
    query: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")  # as in the image
    dsn = f"postgresql://nobody@127.0.0.1:9/none?{query}"
    with pytest.raises(RemitError, match=reason) as caught:
        async with Database.open(dsn, connect_timeout_s=3600):
            pass
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
    with pytest.raises(RemitError, match=reason):
        await migrate(dsn, "cost")


async def test_a_migration_that_does_not_fit_is_named_and_changes_nothing(
    postgres: PostgresCluster,
) -> None:
    """A database of another version of Remit may have a part of it under another name."""
    dsn = postgres.dsn(await postgres.fresh("policy"), "remit_policy_owner")
    connection = await asyncpg.connect(dsn)
    last = "policy/migrations/0012_shadows.sql"
    await connection.execute("DELETE FROM schema_migrations WHERE name = $1", last)
    try:
        with pytest.raises(RemitError, match=f"{last} does not fit.*already exists") as caught:
            await migrate(dsn, "policy")
        assert await connection.fetchval("SELECT count(*) FROM policy_shadows") == 0
    finally:
        await connection.close()
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID


async def test_a_writer_that_answers_too_few_commits_nothing_and_hangs_nobody(
    numbers: Database,
) -> None:
    async def forgetful(c: Connection, items: Sequence[int]) -> Sequence[int | RemitError]:
        return (await write_numbers(c, items))[1:]

    commits = GroupCommit(numbers, forgetful, name="numbers")
    asked = asyncio.gather(*map(commits.submit, [1, 2, 3]), return_exceptions=True)
    results = await in_time(asked, 5)
    assert all(isinstance(result, Exception) for result in results)
    assert await numbers.fetchval("SELECT count(*) FROM numbers") == 0


async def test_what_waits_behind_a_writer_that_was_cut_off_does_not_hang(
    numbers: Database,
) -> None:
    begun = asyncio.Event()

    async def stuck(_: Connection, items: Sequence[int]) -> Sequence[int | RemitError]:
        begun.set()
        await asyncio.Event().wait()
        return items

    commits = GroupCommit(numbers, stuck, name="numbers", max_batch=1)
    asked = [asyncio.create_task(commits.submit(n)) for n in range(3)]
    await begun.wait()
    assert commits._writer is not None
    commits._writer.cancel()
    results = await in_time(asyncio.gather(*asked, return_exceptions=True), 10)
    assert all(isinstance(result, RemitError) for result in results)


@pytest.mark.parametrize("sqlstate", ["25006", "25P03", "53100", "53200"])
async def test_a_database_that_cannot_write_now_is_unavailable(
    numbers: Database, sqlstate: str
) -> None:
    """A demoted primary, a stalled transaction, a full disk, no memory: later it may work."""

    async def refuse(c: Connection, items: Sequence[int]) -> Sequence[int | RemitError]:
        await c.execute(f"DO $$ BEGIN RAISE EXCEPTION SQLSTATE '{sqlstate}'; END $$")
        return items

    commits = GroupCommit(numbers, refuse, name="numbers")
    with pytest.raises(RemitError) as caught:
        await commits.submit(1)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE


async def test_a_writer_knows_nothing_of_the_call_that_woke_it(numbers: Database) -> None:
    async def token_of_the_call(_: Connection, items: Sequence[int]) -> Sequence[str | RemitError]:
        return [outgoing_remit_token() for _ in items]

    commits = GroupCommit(numbers, token_of_the_call, name="numbers")
    with remit_token("of one caller"):
        assert await commits.submit(1) == ""


async def test_a_single_statement_needs_no_transaction_of_its_own(numbers: Database) -> None:
    async def write_one(c: Connection, items: Sequence[int]) -> Sequence[int]:
        assert not c.is_in_transaction()
        await c.execute("INSERT INTO numbers SELECT unnest($1::int[])", list(items))
        return items

    commits = GroupCommit(numbers, write_one, name="numbers", opens=lambda _: "")
    results = await asyncio.gather(*map(commits.submit, [1, -2, 3]), return_exceptions=True)
    assert [r for r in results if isinstance(r, int)] == [1, 3]


async def test_a_transaction_that_was_opened_with_a_lock_holds_it(numbers: Database) -> None:
    async def write_locked(c: Connection, items: Sequence[int]) -> Sequence[int]:
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7"
        assert await c.fetchval(held) == 1
        return await write_numbers(c, items)  # type: ignore[return-value]

    opening = "BEGIN; SELECT pg_advisory_xact_lock(7)"
    commits = GroupCommit(numbers, write_locked, name="numbers", opens=lambda _: opening)
    leaks: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, leak: leaks.append(leak))
    assert await commits.submit(1) == 1
    with pytest.raises(asyncpg.CheckViolationError):
        await commits.submit(-1)
    assert await commits.submit(2) == 2, "the failed transaction was rolled back"
    assert not leaks, "and not by the pool, which reports that as a leak"
    assert await numbers.fetchval("SELECT count(*) FROM numbers") == 2


async def test_going_on_after_a_failed_statement_is_no_commit(numbers: Database) -> None:
    async def swallow(c: Connection, items: Sequence[int]) -> Sequence[int]:
        with contextlib.suppress(asyncpg.CheckViolationError):
            await write_numbers(c, [-1])
        return items

    commits = GroupCommit(numbers, swallow, name="numbers", opens=lambda _: "BEGIN")
    with pytest.raises(ValueError, match="failed statement"):
        await commits.submit(1)
