"""The log in PostgreSQL: gap-free, unique, append-only, whoever appends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any
from unittest import mock

import asyncpg
import pytest
from asyncpg.connection import LoggedQuery

from remit.api.errors.v1 import error_reason_pb2
from remit.audit import merkle
from remit.audit import store as store_module
from remit.audit.filters import EventFilter, Walk
from remit.audit.merkle import Frontier
from remit.audit.sealing import SealedEvent
from remit.audit.store import APPEND_LOCK, LogStore, _Appended
from remit.postgres import Connection, Database
from remit.rpc.errors import RemitError
from tests.audit.events import ALICE, NOW, ORG, RUN, claim_name, make_event, sealed
from tests.conftest import OpenDatabase, PostgresCluster
from tests.waiting import eventually


def make_store(database: Database, max_batch: int = 256, max_queue: int = 10_000) -> LogStore:
    return LogStore(database, max_batch=max_batch, max_queue=max_queue)


@pytest.fixture
async def audit_database(database: OpenDatabase) -> Database:
    return await database("audit")


async def append_all(store: LogStore, ids: Sequence[str]) -> list[int]:
    return await asyncio.gather(*(store.append(sealed(make_event(i))) for i in ids))


async def assert_whole(store: LogStore, size: int) -> None:
    """No gaps, and the root from stored nodes is the root of the stored leaves."""
    assert await store.size() == size
    frontier = Frontier()
    for leaf in await store.leaves(0, size):
        frontier.append(merkle.leaf_hash(leaf))
    assert await store.root(size) == frontier.root()


async def test_indices_follow_each_other(audit_database: Database) -> None:
    store = make_store(audit_database)
    indices = await append_all(store, [f"e-{n}" for n in range(700)])
    assert sorted(indices) == list(range(700))
    await assert_whole(store, 700)
    assert store.commits < 20


async def _statements(database: Database, store: LogStore, *ids: str) -> list[str]:
    """The first word of each message that an append of these sends."""
    sent: list[str] = []

    def note(query: LoggedQuery) -> None:
        sent.append(query.query.split(maxsplit=1)[0].rstrip(";"))

    async with database.acquire() as connection:
        connection.add_query_logger(note)
    await append_all(store, ids)
    async with database.acquire() as connection:
        connection.remove_query_logger(note)
    return sent


async def test_an_append_is_one_round_trip(audit_database: Database) -> None:
    store, other = make_store(audit_database), make_store(audit_database)
    await append_all(store, ["e-0"])
    assert await _statements(audit_database, store, "e-1") == ["WITH"]
    await append_all(other, ["x-0"])
    after_another = await _statements(audit_database, store, "e-2")
    assert after_another.count("WITH") == 2, "what was remembered did not fit"
    assert await _statements(audit_database, store, "e-3") == ["WITH"]
    assert await append_all(store, ["e-1", "e-4", "x-0"]) == [1, 5, 2]
    await assert_whole(store, 6)


async def test_a_batch_on_the_heels_of_another_is_one_round_trip(audit_database: Database) -> None:
    store = make_store(audit_database, max_batch=2)
    await append_all(store, ["e-0"])
    assert await _statements(audit_database, store, *"abcdef") == ["WITH"] * 3
    await assert_whole(store, 7)


async def test_a_replay_keeps_its_index(audit_database: Database) -> None:
    store = make_store(audit_database)
    first = await append_all(store, ["e-1", "e-2", "e-1"])
    again = await append_all(make_store(audit_database), ["e-2", "e-1"])
    assert (first, again) == ([0, 1, 0], [1, 0])
    await assert_whole(store, 2)


@pytest.mark.parametrize("together", [True, False])
async def test_an_id_of_another_event_fails_alone(audit_database: Database, together: bool) -> None:  # noqa: FBT001
    store = make_store(audit_database)
    events = [make_event("e-1"), make_event("e-1", attempt=2), make_event("e-2")]
    if together:
        results = await asyncio.gather(*(_outcome(store, event) for event in events))
    else:
        results = [await _outcome(store, event) for event in events]
    assert (results[0], results[2]) == (0, 1)
    error = results[1]
    assert isinstance(error, RemitError)
    assert error.reason == error_reason_pb2.ERROR_REASON_KEY_REUSED
    assert "e-1" in error.message
    await assert_whole(store, 2)


async def _outcome(store: LogStore, event: object) -> object:
    try:
        return await store.append(sealed(event))  # type: ignore[arg-type]
    except RemitError as error:
        return error


async def test_two_replicas_share_one_log(
    database: OpenDatabase, postgres: PostgresCluster
) -> None:
    one = await database("audit")
    name = await one.fetchval("SELECT current_database()")
    async with Database.open(postgres.dsn(name, "remit_audit")) as other:
        stores = [make_store(one, max_batch=7), make_store(other, max_batch=5)]
        ids = [f"e-{n}" for n in range(600)]
        order = ids * 2  # each event arrives twice, perhaps at both replicas
        random.Random(7).shuffle(order)  # noqa: S311 - an order, no secret
        indices = await asyncio.gather(
            *(stores[n % 2].append(sealed(make_event(i))) for n, i in enumerate(order))
        )
        place = dict(zip(order, indices, strict=True))
        assert [place[i] for i in order] == indices
        assert sorted(place.values()) == list(range(600))
        await assert_whole(stores[0], 600)
        assert all(store.commits > 10 for store in stores)


async def test_a_batch_that_was_rolled_back_leaves_no_trace(audit_database: Database) -> None:
    """Another replica takes the same indices after a crash between writing and committing."""
    store, other = make_store(audit_database), make_store(audit_database)
    await append_all(store, ["e-0"])
    append = store_module._append

    async def crash(*arguments: Any) -> object:  # of the transaction, once the batch is written
        places, found = await append(*arguments)
        if arguments[0].is_in_transaction():
            raise asyncpg.AdminShutdownError
        return places, found

    await append_all(other, ["x-0"])  # so that `store` needs the transaction
    with (
        mock.patch.object(store_module, "_append", crash),
        pytest.raises(RemitError) as raised,
    ):
        await append_all(store, ["e-1", "e-2"])
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    await append_all(other, ["x-1", "x-2"])
    assert await append_all(store, ["e-1", "e-2"]) == [4, 5]
    await assert_whole(store, 6)


async def test_a_commit_that_nobody_heard_of_keeps_its_places(audit_database: Database) -> None:
    store, other = make_store(audit_database), make_store(audit_database)
    await append_all(store, ["e-0"])

    async def crash(connection: Connection, events: Sequence[object]) -> Sequence[object]:
        await store._write(connection, events)  # type: ignore[arg-type]
        raise asyncpg.AdminShutdownError

    commits = store._commits
    write, commits._write = commits._write, crash  # type: ignore[assignment]
    with pytest.raises(RemitError) as raised:
        await append_all(store, ["e-1", "e-2"])
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    commits._write = write
    await append_all(other, ["x-1", "x-2"])
    assert await append_all(store, ["e-1", "e-2"]) == [1, 2]
    await assert_whole(store, 5)


async def test_an_append_waits_for_whoever_holds_the_lock(audit_database: Database) -> None:
    store = make_store(audit_database)
    await append_all(store, ["e-0"])
    async with audit_database.transaction() as holder:
        await holder.execute("SELECT pg_advisory_xact_lock($1)", APPEND_LOCK)
        waiting = asyncio.create_task(append_all(store, ["e-1"]))

        async def waits() -> bool:
            query = (
                "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)"
            )
            return bool(await audit_database.fetchval(query))

        await eventually(waits)
        assert await store.size() == 1
    assert await waiting == [1]
    await assert_whole(store, 2)


async def test_an_append_that_its_statement_did_not_see_is_no_fault(
    audit_database: Database,
) -> None:
    """The other's event is committed after the statement's snapshot and before its lock."""
    store, other = make_store(audit_database), make_store(audit_database)
    await append_all(store, ["e-0"])
    soon = store._append_soon

    async def beaten(connection: Connection, events: Sequence[SealedEvent]) -> _Appended | None:
        refused = asyncpg.UniqueViolationError("leaves_pkey")
        with mock.patch.object(store_module, "_append", side_effect=refused):
            return await soon(connection, events)

    await append_all(other, ["x-0"])
    with mock.patch.object(store, "_append_soon", beaten):
        assert await append_all(store, ["e-1"]) == [2]
    await assert_whole(store, 3)


async def test_every_proof_from_stored_nodes_verifies(audit_database: Database) -> None:
    store = make_store(audit_database)
    await append_all(store, [f"e-{n}" for n in range(600)])
    hashes = [merkle.leaf_hash(leaf) for leaf in await store.leaves(0, 600)]
    for index, size in [(0, 1), (0, 600), (255, 256), (256, 257), (511, 600), (599, 600)]:
        proof = await store.range_hashes(merkle.inclusion_ranges(index, size))
        merkle.verify_inclusion(hashes[index], index, size, proof, await store.root(size))
    for first, second in [(1, 600), (255, 600), (256, 600), (257, 511), (600, 600)]:
        proof = await store.range_hashes(merkle.consistency_ranges(first, second))
        roots = await store.root(first), await store.root(second)
        merkle.verify_consistency(first, second, *roots, proof)
    stored = await audit_database.fetch("SELECT level, position FROM nodes ORDER BY position")
    assert [tuple(row) for row in stored] == [(8, 0), (8, 1)]


async def test_a_full_queue_refuses_at_once(audit_database: Database) -> None:
    store = make_store(audit_database, max_queue=3)
    results = await asyncio.gather(*(_outcome(store, make_event(f"e-{n}")) for n in range(9)))
    refused = [result for result in results if isinstance(result, RemitError)]
    assert len(refused) == 6
    assert {error.reason for error in refused} == {error_reason_pb2.ERROR_REASON_OVERLOADED}
    await assert_whole(store, 3)


@pytest.mark.parametrize("table", ["leaves", "nodes", "events", "checkpoints", "events_by_month"])
async def test_the_service_may_insert_and_select_and_nothing_else(
    audit_database: Database, table: str
) -> None:
    await append_all(make_store(audit_database), [f"e-{n}" for n in range(256)])
    if table == "events_by_month":  # the partition itself, which holds the rows
        table = await audit_database.fetchval("SELECT tableoid::regclass::text FROM events LIMIT 1")
    column = await audit_database.fetchval(
        "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum = 1", table
    )
    for statement in (
        f"UPDATE {table} SET {column} = {column}",  # noqa: S608 - names of our own tables
        f"DELETE FROM {table}",  # noqa: S608
        f"TRUNCATE {table}",
        f"DROP TABLE {table}",
        f"ALTER TABLE {table} ADD COLUMN x int",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await audit_database.execute(statement)


async def test_the_service_may_not_make_tables_or_functions(audit_database: Database) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await audit_database.execute("CREATE TABLE mine (n int)")


async def test_the_database_itself_refuses_a_second_leaf_at_an_index(
    audit_database: Database,
) -> None:
    await append_all(make_store(audit_database), ["e-0"])
    for index, event_id in ((0, "e-1"), (1, "e-0")):
        with pytest.raises(asyncpg.UniqueViolationError):
            await audit_database.execute(
                "INSERT INTO leaves VALUES ($1, $2, $3)", index, event_id, b"h" * 32
            )


async def test_rows_lie_in_the_partition_of_their_month(audit_database: Database) -> None:
    store = make_store(audit_database)
    await append_all(store, ["e-0"])
    await store.prepare_partitions()
    months = await audit_database.fetchval(
        "SELECT array_agg(inhrelid::regclass::text ORDER BY 1) FROM pg_inherits"
        " WHERE inhparent = 'events'::regclass"
    )
    held = await audit_database.fetchval("SELECT tableoid::regclass::text FROM events")
    expected = await audit_database.fetchval(
        "SELECT 'events_' || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')"
    )
    assert held == expected
    assert len(months) == 2
    assert held in months


async def test_a_missing_row_is_corruption_and_not_a_shorter_answer(
    audit_database: Database, postgres: PostgresCluster
) -> None:
    store = make_store(audit_database)
    await append_all(store, [f"e-{n}" for n in range(5)])
    name = await audit_database.fetchval("SELECT current_database()")
    owner = await asyncpg.connect(postgres.dsn(name, "remit_audit_owner"))
    await owner.execute("DELETE FROM events WHERE leaf_index = 2")
    await owner.execute("DELETE FROM leaves WHERE leaf_index = 2")
    await owner.close()
    for attempt in (store.leaves(0, 5), store.root(5)):
        with pytest.raises(RemitError) as raised:
            await attempt
        assert raised.value.reason == error_reason_pb2.ERROR_REASON_DATA_CORRUPT


async def test_listing_filters_and_orders(audit_database: Database) -> None:
    store = make_store(audit_database)
    claim = claim_name()
    events = [
        make_event("e-0"),
        make_event("e-1", run=""),
        make_event("e-2", claim=claim),
        make_event("e-3", org="orgs/other", subject="orgs/other/users/eve"),
    ]
    for event in events:
        await store.append(sealed(event))

    async def listed(**wanted: object) -> list[int]:
        found = await store.list_events(
            EventFilter(**({"org": ORG} | wanted)),  # type: ignore[arg-type]
            Walk(10, most=100),
            limit=10,
        )
        return [event.leaf_index for event in found]

    assert await listed() == [2, 1, 0]
    assert await listed(run=RUN) == [2, 0]
    assert await listed(claim=claim) == [2]
    assert await listed(org="orgs/other") == [3]
    assert await listed(start_time=NOW) == [2, 1, 0]
    assert await listed(end_time=NOW) == []
    [only] = await store.list_events(EventFilter(ORG), Walk(2, most=100), limit=1)
    assert only.leaf_index == 1


async def test_no_row_holds_a_name_or_a_detail(audit_database: Database) -> None:
    await append_all(make_store(audit_database), ["e-0"])
    row = await audit_database.fetchrow("SELECT * FROM events")
    assert row is not None
    for value in row.values():
        stored = value if isinstance(value, bytes) else str(value).encode()
        assert b"alice" not in stored
    assert ALICE.endswith("alice")
