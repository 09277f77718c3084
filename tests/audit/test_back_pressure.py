"""A slow disk makes callers wait, one that refuses makes them come again, and nothing is lost.

The log's lock, held elsewhere, stands for whatever keeps an append from ending; a stopped backend
for a disk that hangs; a trigger raises what PostgreSQL raises when its disk is full.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterable

import asyncpg
import grpc
import pytest

from remit.api.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from remit.audit.merkle import Frontier, leaf_hash
from remit.audit.store import APPEND_LOCK, LogStore
from remit.postgres import Database, unavailable
from remit.rpc.errors import RemitError
from tests.audit.events import make_event, sealed
from tests.audit.test_service import TOOLS, Audit, admin, audit, intent, read_results, reasons
from tests.conftest import OpenDatabase
from tests.waiting import eventually, in_time

assert audit  # the fixture of a running service

_APPENDING = """
    SELECT pid FROM pg_stat_activity
    WHERE wait_event = 'PgSleep' AND usename = 'remit_audit' AND datname = current_database()
"""
_WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


@pytest.fixture
async def store(database: OpenDatabase) -> LogStore:
    """A log that takes 4 events a commit, while 8 may wait."""
    return LogStore(await database("audit"), max_batch=4, max_queue=8)


@contextlib.asynccontextmanager
async def as_owner(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    owner = await asyncpg.connect(dsn.replace("remit_audit@", "remit_audit_owner@"))
    try:
        yield owner
    finally:
        await owner.close()


@contextlib.asynccontextmanager
async def held(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """No append ends meanwhile."""
    async with as_owner(dsn) as owner:
        await owner.execute("SELECT pg_advisory_lock($1)", APPEND_LOCK)
        yield owner


@contextlib.asynccontextmanager
async def failing(dsn: str, table: str, does: str) -> AsyncIterator[None]:
    """Whatever is inserted into a table fails, or waits."""
    async with as_owner(dsn) as owner:
        await owner.execute(
            f"CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {does};"
            " RETURN NEW; END $$"
        )
        try:
            await owner.execute(
                f"CREATE TRIGGER fails BEFORE INSERT ON {table} FOR EACH ROW"
                " EXECUTE FUNCTION fails()"
            )
            yield
        finally:
            await owner.execute("DROP FUNCTION fails CASCADE")


async def waits(owner: asyncpg.Connection[asyncpg.Record]) -> None:
    """Until an append has begun to wait for the lock."""
    await eventually(lambda: owner.fetchval(_WAITING))


def appending(store: LogStore, names: Iterable[str]) -> dict[str, asyncio.Task[int]]:
    """One caller for each event."""
    return {name: asyncio.create_task(store.append(sealed(make_event(name)))) for name in names}


async def answers(tasks: dict[str, asyncio.Task[int]]) -> dict[str, int | RemitError]:
    """What each caller is answered: a place or a refusal, and nothing else."""
    done = await asyncio.gather(*tasks.values(), return_exceptions=True)
    for answer in done:
        assert isinstance(answer, (int, RemitError)), answer
    return dict(zip(tasks, done, strict=True))  # type: ignore[arg-type]


async def come_again(store: LogStore, told: dict[str, int | RemitError]) -> dict[str, int]:
    """Every caller that was refused asks again, until it has its place."""
    places = {name: place for name, place in told.items() if isinstance(place, int)}

    async def again() -> bool:
        missing = [name for name in told if name not in places]
        for name, place in (await answers(appending(store, missing))).items():
            if isinstance(place, int):
                places[name] = place
            else:
                assert place.retryable, place
        return len(places) == len(told)

    await eventually(again, 30)
    return places


async def assert_holds(store: LogStore, places: dict[str, int]) -> None:
    """Each event once, at the place that its caller was told, and no gap between."""
    assert sorted(places.values()) == list(range(len(places)))
    assert await store.size() == len(places)
    for name, place in places.items():
        assert await store.index_of(name) == place
    frontier = Frontier()
    for leaf in await store.leaves(0, len(places)):
        frontier.append(leaf_hash(leaf))
    assert await store.root(len(places)) == frontier.root()


# ------------------------------------------------------------------------- slow


async def test_a_slow_log_holds_its_callers_back_and_loses_none(store: LogStore) -> None:
    dsn = store._database.dsn
    async with held(dsn) as owner:
        first = appending(store, ["first"])
        await waits(owner)
        more = appending(store, [f"e-{n}" for n in range(20)])
        refused = {
            name: error
            for name, task in more.items()
            if await eventually(lambda: task.done() or store.waiting == 8)  # noqa: B023
            if task.done() and isinstance(error := task.exception(), RemitError)
        }
        assert {error.reason_name for error in refused.values()} == {"OVERLOADED"}
        assert {error.code for error in refused.values()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert all(error.retry_after_s for error in refused.values())
        assert len(refused) == 12, "what waits is bounded"
        assert await store.size() == 0, "and who only reads is answered"
    told = await answers({**first, **more})
    assert await store.size() == sum(isinstance(place, int) for place in told.values())
    await assert_holds(store, await come_again(store, told))


async def test_a_log_that_stands_still_for_long_keeps_nobody_for_ever(store: LogStore) -> None:
    """The wait for the lock has an end, and what waited behind it has the same."""
    async with held(store._database.dsn):
        told = await in_time(answers(appending(store, [f"e-{n}" for n in range(8)])), 30)
        for error in told.values():
            assert isinstance(error, RemitError)
            assert error.reason_name == "DEPENDENCY_UNAVAILABLE"
            assert "waited too long for another transaction" in error.message
            assert error.retry_after_s
        assert await store.size() == 0
    await assert_holds(store, await come_again(store, told))


async def test_who_left_while_it_stood_still_has_an_entry_at_most_once(store: LogStore) -> None:
    """The caller's deadline passes, the append takes place all the same, the caller asks again."""
    async with held(store._database.dsn) as owner:
        tasks = appending(store, ["e-0", "e-1"])
        await waits(owner)
        for task in tasks.values():
            task.cancel()
        left = await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in left)
        assert await store.size() == 0
    await assert_holds(store, await come_again(store, _asked("e", 3)))


async def test_a_disk_that_hangs_holds_back_and_loses_nothing(store: LogStore) -> None:
    """The database's process that appends is stopped in the midst of it, and goes on later."""
    dsn = store._database.dsn
    hangs = "IF NEW.leaf_index = 0 THEN PERFORM pg_sleep(4); END IF"
    async with failing(dsn, "events", hangs):
        first = appending(store, ["first"])
        pid = await eventually(lambda: store._database.fetchval(_APPENDING))
        os.kill(pid, signal.SIGSTOP)
        try:
            more = appending(store, [f"e-{n}" for n in range(9)])
            await eventually(more["e-8"].done)
            assert store.waiting == 8
            assert not any(task.done() for name, task in (first | more).items() if name != "e-8")
            assert await store.size() == 0
        finally:
            os.kill(pid, signal.SIGCONT)
        told = await in_time(answers(first | more), 60)
    assert isinstance(last := told["e-8"], RemitError)
    assert last.reason_name == "OVERLOADED"
    await assert_holds(store, await come_again(store, told))


async def test_no_statement_outlasts_its_time(database: OpenDatabase) -> None:
    slow = (await database("audit")).dsn
    async with Database.open(slow, statement_timeout_s=0.2) as impatient:
        store = LogStore(impatient, max_batch=4, max_queue=8)
        async with failing(slow, "leaves", "PERFORM pg_sleep(3600)"):
            told = await in_time(answers(appending(store, [f"e-{n}" for n in range(8)])), 30)
        for error in told.values():
            assert isinstance(error, RemitError)
            assert error.reason_name == "DEPENDENCY_UNAVAILABLE"
            assert "took too long" in error.message
        assert await store.size() == 0
    patient = LogStore(await database("audit"), max_batch=4, max_queue=8)
    await assert_holds(patient, await come_again(patient, told))


# ------------------------------------------------------------------------- refused


@pytest.mark.parametrize("table", ["leaves", "events", "nodes"])
@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("53100", "the disk of the database is full, and it takes nothing until it has room"),
        ("53200", "lacks memory or connections"),
        ("25006", "the database is read-only, as a standby is"),
        ("58030", "the disk of the database fails"),
    ],
    ids=["disk full", "out of memory", "read-only", "disk fails"],
)
async def test_what_cannot_be_written_is_refused_whole_and_goes_on_at_the_next_place(
    database: OpenDatabase, table: str, state: str, words: str
) -> None:
    store = LogStore(await database("audit"), max_batch=64, max_queue=1024)
    before = await come_again(store, _asked("b", 200))
    async with failing(store._database.dsn, table, f"RAISE SQLSTATE '{state}'"):
        # The last batch of these completes a node of the tree.
        told = await answers(appending(store, [f"e-{n}" for n in range(64)]))
        for error in told.values():
            assert isinstance(error, RemitError)
            assert error.reason_name == "DEPENDENCY_UNAVAILABLE"
            assert error.code is grpc.StatusCode.UNAVAILABLE
            assert words in error.message
            assert error.retry_after_s
            assert error.next_step
        for counted in ("leaves", "events"):
            assert await store._database.fetchval(f"SELECT count(*) FROM {counted}") == 200  # noqa: S608
        assert await store._database.fetchval("SELECT count(*) FROM nodes") == 0
    after = await come_again(store, told)
    assert sorted(after.values()) == list(range(200, 264))
    await assert_holds(store, before | after)


def _asked(prefix: str, count: int) -> dict[str, int | RemitError]:
    """Events that nobody has been answered about."""
    return dict.fromkeys([f"{prefix}-{n}" for n in range(count)], unavailable("not asked yet"))


# ------------------------------------------------------------------------- as callers see it


async def test_the_service_says_so_of_each_entry_and_still_answers_readers(audit: Audit) -> None:
    await audit.append(admin("a-0"))
    async with failing(audit.settings.dsn, "leaves", "RAISE SQLSTATE '53100'"):
        refused = await audit.append(intent("e-1"), admin("a-1"))
        assert reasons(refused) == ["DEPENDENCY_UNAVAILABLE"] * 2
        assert all(isinstance(each, RemitError) and each.retry_after_s for each in refused)
        assert (await audit.ask("GetCheckpoint", min_tree_size=1)).checkpoint.tree_size == 1
        with pytest.raises(RemitError, match="is full") as raised:
            await audit.list_events()  # what must leave an entry waits
        assert raised.value.reason_name == "DEPENDENCY_UNAVAILABLE"
    assert await audit.append(intent("e-1"), admin("a-1")) == [1, 2]
    assert [e.leaf_index for e in (await audit.list_events()).events] == [2, 1, 0]


async def test_a_call_ends_at_its_deadline_though_the_log_stands_still(audit: Audit) -> None:
    stub = audit.mesh.as_caller(TOOLS).stub(audit_service_pb2_grpc.AuditServiceStub)
    request = audit_service_pb2.AppendEventsRequest(entries=[intent("e-1")])
    async with held(audit.settings.dsn):
        with pytest.raises(RemitError) as raised:
            await in_time(stub.AppendEvents(request, timeout=0.3), 10)
        assert raised.value.reason_name == "DEADLINE_EXCEEDED"
        assert (await audit.ask("GetCheckpoint")).checkpoint.tree_size == 0

    async def placed() -> bool:
        results = read_results((await stub.AppendEvents(request)).results)
        return results == [0]

    await eventually(placed)
