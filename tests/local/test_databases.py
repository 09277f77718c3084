"""Roles and databases made by an administrator who is no superuser, as on a managed server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.local.databases import make_databases, owner_of, roles, service_role
from remit.local.postgres_server import EmbeddedPostgres
from remit.local.process import Supervised
from remit.local.progress import PlainReporter
from remit.postgres import DATABASES, Database, migrate
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from tests.scratch import scratch_folder

PASSWORDS = {role: f"{role}-of-the-test" for role in roles()}


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch_folder("remit-own-") as made:
        yield made


@pytest.fixture
async def own_server(folder: Path) -> AsyncIterator[str]:
    """DSN of an operator with CREATEROLE and CREATEDB on a server that has no roles of ours."""
    server = await EmbeddedPostgres.prepare(folder / "postgres")
    hba = folder / "postgres" / "pg_hba.conf"
    hba.write_text("local all all trust\n")
    with (folder / "output").open("w") as output:
        spec = server.spec(max_connections=20, log=folder / "log")
        process = Supervised(spec, PlainReporter(output), SystemClock())
        try:
            await process.start()
            dsn = f"postgresql://operator@/postgres?host={server.socket_folder}"
            connection = await asyncpg.connect(dsn.replace("operator@", "postgres@"))
            await connection.execute("CREATE ROLE operator LOGIN CREATEROLE CREATEDB")
            await connection.execute("CREATE ROLE nobody LOGIN")
            await connection.close()
            yield dsn
        finally:
            await process.stop()
            server.forget_socket_folder()


async def test_an_operator_without_superuser_makes_everything(own_server: str) -> None:
    with pytest.raises(RemitError, match="password of remit_cost"):
        await make_databases(own_server, PASSWORDS | {"remit_cost": "x'; DROP ROLE y; --aaaaaaaa"})
    with pytest.raises(RemitError, match="CREATEROLE") as caught:
        await make_databases(own_server.replace("operator@", "nobody@"), PASSWORDS)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
    assert await make_databases(own_server, PASSWORDS) == list(DATABASES)
    assert await make_databases(own_server, PASSWORDS) == []
    for name in ("cost", "audit_keys"):
        await check_rights(own_server.replace("operator@/postgres", "{}@/remit_" + name), name)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(own_server.replace("operator@/postgres", "remit_cost@/remit_audit"))


async def check_rights(dsn: str, name: str) -> None:
    """The owner migrates; the service uses what it is given and makes nothing."""
    assert await migrate(dsn.format(owner_of(name)), name)
    async with Database.open(dsn.format(service_role(name)), pool_size=1) as database:
        assert await database.fetchval("SELECT current_user") == service_role(name)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.execute("CREATE TABLE loot (a int)")
