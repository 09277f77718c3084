"""A log over two databases that are emptied, not made anew, for each test: that is much faster."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg
import pytest

from remit.postgres import Database
from tests.audit.events import Log, make_log
from tests.conftest import OpenDatabase, PostgresCluster

_TABLES = {
    "audit": "leaves, nodes, events, checkpoints, archived_months",
    "audit_keys": "subject_keys",
}


@pytest.fixture(scope="session")
def made() -> dict[str, str]:
    """The databases of this session, by kind."""
    return {}


@pytest.fixture
async def database(postgres: PostgresCluster, made: dict[str, str]) -> AsyncIterator[OpenDatabase]:
    """Open the empty database of a kind, under its service role; once a test for each kind."""
    async with contextlib.AsyncExitStack() as stack:

        async def emptied(kind: str) -> Database:
            if kind not in made:
                made[kind] = await postgres.fresh(kind)
            owner = await asyncpg.connect(postgres.dsn(made[kind], f"remit_{kind}_owner"))
            await owner.execute(f"TRUNCATE {_TABLES[kind]}")
            if kind == "audit":
                await _forget_old_months(owner)
            await owner.close()
            dsn = postgres.dsn(made[kind], f"remit_{kind}")
            return await stack.enter_async_context(Database.open(dsn))

        yield emptied


async def _forget_old_months(owner: asyncpg.Connection[asyncpg.Record]) -> None:
    """Only this month's partition and the next one's are there, as in a new database."""
    months = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'events'::regclass"
    for row in await owner.fetch(months):
        if row[0] < f"events_{datetime.now(UTC):%Y_%m}":
            await owner.execute(f"DROP TABLE {row[0]}")


@pytest.fixture
async def dropper(log: Log) -> AsyncIterator[Database]:
    """The log's database, under the role that may drop archived months."""
    dsn = log.database.dsn.replace("remit_audit@", "remit_audit_archiver@")
    async with Database.open(dsn, pool_size=1) as database:
        yield database


@pytest.fixture
async def log(database: OpenDatabase) -> Log:
    return make_log(await database("audit"), await database("audit_keys"))


@pytest.fixture
async def destroyer(log: Log, postgres: PostgresCluster) -> AsyncIterator[Database]:
    """The same database of keys, under the role that may delete them."""
    name = await log.keys_database.fetchval("SELECT current_database()")
    dsn = postgres.dsn(name, "remit_audit_keys_eraser")
    async with Database.open(dsn, pool_size=1) as database:
        yield database
