"""Connections to PostgreSQL by TLS, with the secrets that `remit secrets make` writes.

The embedded server is built without TLS, so a process-local front answers PostgreSQL's SSLRequest,
speaks TLS with a certificate of its own, and passes what it reads on to the real server.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from remit.cli import main
from remit.local import certificates
from remit.local.installation import SECRETS_MOUNT
from remit.postgres import Database
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from tests.conftest import PostgresCluster

SSL_REQUEST = bytes.fromhex("0000000804d2162f")


@pytest.fixture
def server_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ca.pem, and a certificate for `localhost`."""
    monkeypatch.setattr(certificates, "dns_name", lambda _: "localhost")
    certificates.ensure_leaves(tmp_path / "ca", {"db": tmp_path / "db"}, SystemClock())
    return tmp_path / "db"


@pytest.fixture
async def port(postgres: PostgresCluster, server_certificate: Path) -> AsyncIterator[int]:
    """Where the front listens."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(server_certificate / "cert.pem", server_certificate / "key.pem")
    socket = f"{postgres._socket_dir.split('&')[0]}/.s.PGSQL.5432"

    async def front(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(SSL_REQUEST)) == SSL_REQUEST
        writer.write(b"S")
        with contextlib.suppress(OSError):  # a client that does not trust us goes
            await writer.start_tls(tls)
            behind = await asyncio.open_unix_connection(socket)
            await asyncio.gather(passed_on(reader, behind[1]), passed_on(behind[0], writer))
        writer.close()

    async with await asyncio.start_server(front, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def dsn_of(folder: Path, port: int, authority: Path, database: str) -> str:
    """The DSN that cost is given, with the folder where a container mounts it."""
    words = ["--database", f"localhost:{port}", "--sslmode", "verify-full"]
    words += ["--sslrootcert", str(authority)]
    assert await asyncio.to_thread(main.run, ["secrets", "make", str(folder), *words]) == 0
    secrets = folder / "cost" / "secrets"
    dsn = (secrets / "REMIT_COST_DSN").read_text().strip()
    assert quote(str(SECRETS_MOUNT), safe="") in dsn
    dsn = dsn.replace(quote(str(SECRETS_MOUNT), safe=""), quote(str(secrets), safe=""))
    return dsn.replace("/remit_cost?", f"/{database}?")


async def test_a_service_verifies_the_database_with_its_own_secrets(
    tmp_path: Path,
    port: int,
    server_certificate: Path,
    postgres: PostgresCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")  # as in the image
    database = await postgres.fresh("cost")
    authority = server_certificate / "ca.pem"
    dsn = await dsn_of(tmp_path / "good", port, authority, database)
    async with Database.open(dsn, pool_size=1) as opened:
        assert await opened.missing_migrations("cost") == []
    certificates.ensure_leaves(tmp_path / "other", {"db": tmp_path / "unused"}, SystemClock())
    dsn = await dsn_of(tmp_path / "bad", port, tmp_path / "other" / "ca.pem", database)
    with pytest.raises(RemitError, match="certificate verify failed"):
        async with Database.open(dsn, connect_timeout_s=0.1):
            pass
