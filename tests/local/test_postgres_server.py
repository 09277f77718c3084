"""The embedded PostgreSQL: durable, private, and least rights for each role."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.local import postgres_server
from remit.local.databases import FURTHER
from remit.local.postgres_server import Account, EmbeddedPostgres
from remit.local.process import Supervised
from remit.local.progress import PlainReporter
from remit.postgres import DATABASES, Database
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from tests.scratch import scratch_folder


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with scratch_folder("remit-pgtest-") as made:
        yield made


@pytest.fixture
async def running(folder: Path) -> AsyncIterator[EmbeddedPostgres]:
    """The same cluster for every test, started anew as a second `remit up` does."""
    server = await EmbeddedPostgres.prepare(folder / "postgres")
    with (folder / "output").open("w") as output:
        spec = server.spec(max_connections=50, log=folder / "log")
        process = Supervised(spec, PlainReporter(output), SystemClock())
        try:
            await process.start()
            yield server
        finally:
            await process.stop()


async def test_each_role_reaches_its_own_database_and_may_make_nothing(
    running: EmbeddedPostgres,
) -> None:
    dsns = await running.provision()
    assert set(dsns) == {*DATABASES, *FURTHER}
    async with Database.open(dsns["cost"], pool_size=1) as database:
        assert await database.fetchval("SELECT current_user") == "remit_cost"
        assert (
            await database.fetchval(
                "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
            )
            > 0
        )
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.execute("CREATE TABLE loot (a int)")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.execute("CREATE ROLE thief SUPERUSER")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(dsns["cost"].replace("/remit_cost?", "/remit_audit?"))


async def test_no_role_gets_in_without_the_password_of_this_start(
    running: EmbeddedPostgres,
) -> None:
    first = await running.provision()
    second = await running.provision()
    assert first["cost"] != second["cost"]
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(first["cost"])
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(
            host=str(running.socket_folder), user="remit_cost", database="remit_cost"
        )


async def test_what_was_acknowledged_is_durable_and_nothing_listens_on_the_network(
    running: EmbeddedPostgres,
) -> None:
    dsns = await running.provision()
    connection = await asyncpg.connect(dsns["audit"])
    settings = {
        name: await connection.fetchval("SELECT current_setting($1)", name)
        for name in ("fsync", "synchronous_commit", "full_page_writes", "listen_addresses")
    }
    await connection.close()
    assert settings == {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "listen_addresses": "",
    }


@pytest.mark.usefixtures("running")
def test_its_folders_are_private(folder: Path) -> None:
    for private in (folder / "postgres", folder / "run"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "postgres" / "pg_hba.conf").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", error_reason_pb2.ERROR_REASON_DATA_CORRUPT),
        (b"\xff", error_reason_pb2.ERROR_REASON_DATA_CORRUPT),
        (b"17\n", error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID),
    ],
)
async def test_a_folder_that_is_not_ours_is_named(
    folder: Path, content: bytes, reason: int
) -> None:
    damaged = folder / "damaged" / "postgres"
    damaged.mkdir(parents=True, exist_ok=True)
    (damaged / "PG_VERSION").write_bytes(content)
    with pytest.raises(RemitError) as caught:
        await EmbeddedPostgres.prepare(damaged)
    assert caught.value.reason == reason
    assert str(damaged) in caught.value.message
    assert (damaged / "PG_VERSION").read_bytes() == content


async def test_a_cluster_that_was_half_made_is_made_again(folder: Path) -> None:
    half = folder / "half"
    (half / "postgres.new" / "base").mkdir(parents=True)
    server = await EmbeddedPostgres.prepare(half / "postgres")
    assert server.is_initialised
    assert not (half / "postgres.new").exists()


async def test_a_long_path_gets_its_socket_elsewhere(folder: Path) -> None:
    long = folder / ("x" * 100)
    long.mkdir()
    shutil.copytree(folder / "half" / "postgres", long / "postgres")
    server = await EmbeddedPostgres.prepare(long / "postgres")
    assert not server.socket_folder.is_relative_to(folder)
    assert stat.S_IMODE(server.socket_folder.stat().st_mode) == 0o700
    server.forget_socket_folder()
    assert not server.socket_folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
async def test_as_root_a_closed_parent_is_named_and_not_opened(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(RemitError, match=str(closed)) as caught:
        await EmbeddedPostgres.prepare(closed / "state" / "postgres")
    assert "--state" in caught.value.message
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
async def test_as_root_programs_out_of_reach_are_copied(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = folder / "copied"
    state.mkdir(mode=0o711)
    reach = postgres_server._unreachable

    def closed(path: Path, account: Account) -> Path | None:
        return path if "site-packages" in str(path) else reach(path, account)

    monkeypatch.setattr(postgres_server, "_unreachable", closed)
    server = await EmbeddedPostgres.prepare(state / "postgres")
    command = server.spec(max_connections=10, log=folder / "log").command
    assert Path(command[0]).is_relative_to(state)
    assert server.is_initialised  # initdb ran from the copy
