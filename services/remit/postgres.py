"""PostgreSQL, the only store: pool, migrations, durability check and group commit.

Group commit is why the promise is affordable: while one transaction commits, the next batch
gathers, so many callers share one fsync, and each is answered only after its own commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeAlias, TypeVar
from urllib.parse import parse_qs, urlsplit

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from remit import telemetry
from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.calls import spawn
from remit.rpc.errors import RemitError
from remit.rpc.metrics import CommitMeter
from remit.settings import ServiceSettings

log = telemetry.logger(__name__)

Connection: TypeAlias = "asyncpg.Connection[Any] | PoolConnectionProxy[Any]"
Item = TypeVar("Item")
Result = TypeVar("Result")

_PACKAGE: Final = Path(__file__).parent
DATABASES: Final[dict[str, tuple[str, ...]]] = {
    "agent": ("agent/migrations",),
    "audit": ("audit/migrations",),
    "audit_keys": ("audit/keys_migrations",),
    "cost": ("cost/migrations",),
    "inference": ("effects/migrations", "inference/migrations"),
    "policy": ("policy/migrations",),
    "tools": ("effects/migrations", "tools/migrations"),
}
"""Every database `remit_<name>` and the folders of its migrations, applied in this order."""

_MIGRATION_LOCK: Final = 0x72656D6974  # "remit"
_CONNECT_RETRY_S: Final = 0.1
_MIGRATIONS_POLL_S: Final = 0.5
_LOCK_TIMEOUT_S: Final = 3.0
_RERUNS: Final = 5
NOT_STORABLE: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, TypeError, ValueError)
"""What a row meets that no later try would store. A database that is away is a RemitError."""
_GONE: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    # The driver met the end of a connection in a state that it did not expect.
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    # Disk full, out of memory, too many connections.
    asyncpg.InsufficientResourcesError,
    # A disk that fails.
    asyncpg.PostgresSystemError,
    # A primary that became a standby.
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)
_RERUN: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_DURABLE: Final = {
    "fsync": ("on",),
    "full_page_writes": ("on",),
    "synchronous_commit": ("on", "remote_apply", "remote_write", "local"),
}


def unavailable(message: str) -> RemitError:
    """DEPENDENCY_UNAVAILABLE about the database."""
    return RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, message)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turns a lost or missing database into DEPENDENCY_UNAVAILABLE; other errors pass."""
    try:
        yield
    except (*_GONE, asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError) as error:
        raise unavailable(f"{_what_it_lacks(error)} ({type(error).__name__})") from error


_LACKS: Final = (
    (
        asyncpg.DiskFullError,
        "the disk of the database is full, and it takes nothing until it has room",
    ),
    (asyncpg.InsufficientResourcesError, "the database lacks memory or connections"),
    (asyncpg.PostgresSystemError, "the disk of the database fails"),
    (asyncpg.ReadOnlySQLTransactionError, "the database is read-only, as a standby is"),
    (asyncpg.LockNotAvailableError, "the database waited too long for another transaction"),
    (asyncpg.QueryCanceledError, "the database took too long"),
)


def _what_it_lacks(error: BaseException) -> str:
    """What an operator must see to, where the database says it."""
    told = (text for kind, text in _LACKS if isinstance(error, kind))
    return next(told, "the database did not answer")


@contextlib.contextmanager
def usable(dsn: str) -> Iterator[None]:
    """Around a connect: what no waiting mends is CONFIGURATION_INVALID.

    The driver tells it as it tells that a database is away.
    """
    try:
        for file in parse_qs(urlsplit(dsn).query).get("sslrootcert", ()):
            _check_authorities(file)
        yield
    except ValueError as error:  # the driver's ClientConfigurationError is one
        raise _invalid(f"the database's DSN cannot be used: {error}") from error


def _check_authorities(file: str) -> None:
    try:
        ssl.create_default_context(cafile=file)
    except OSError as error:
        raise _invalid(f"the database's DSN names sslrootcert={file}: {error}") from error


def _invalid(message: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID, message)


class Database:
    """A pool of connections to one area's database, under its service role."""

    def __init__(self, pool: asyncpg.Pool[Any], dsn: str) -> None:
        self._pool = pool
        self.dsn = dsn

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        dsn: str,
        *,
        pool_size: int = 8,
        statement_timeout_s: float = 5.0,
        connect_timeout_s: float = 30.0,
        allow_unsafe_durability: bool = False,
    ) -> AsyncIterator[Database]:
        """Connects, checks that acknowledged commits survive, and yields the pool.

        Waits up to `connect_timeout_s` for a database that is not there yet. Raises
        DEPENDENCY_UNAVAILABLE after that, and at once CONFIGURATION_INVALID for a DSN that cannot
        be used or unsafe durability settings.
        """
        with usable(dsn):
            pool = await _connected(dsn, pool_size, statement_timeout_s, connect_timeout_s)
        try:
            database = cls(pool, dsn)
            if not allow_unsafe_durability:
                await database.check_durability()
            yield database
        finally:
            await _closed(pool)

    @classmethod
    @contextlib.asynccontextmanager
    async def of(
        cls, settings: ServiceSettings, name: str, dsn: str | None = None
    ) -> AsyncIterator[Database]:
        """Opens a service's database `remit_<name>` as its settings say, once it is migrated.

        Waits for the migrations without end: who deploys the service runs them beside it. `dsn` is
        for a second database.
        """
        async with cls.open(
            settings.dsn if dsn is None else dsn,
            pool_size=settings.pool_size,
            statement_timeout_s=settings.statement_timeout_s,
            allow_unsafe_durability=settings.allow_unsafe_durability,
        ) as database:
            await database.until_migrated(name)
            yield database

    @contextlib.asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        """A connection. Raises DEPENDENCY_UNAVAILABLE when the database is away."""
        # A timer for each statement is only worth its price where there is something to wait for.
        limit_s = None if self._pool.get_idle_size() else _LOCK_TIMEOUT_S
        with translated():
            async with self._pool.acquire(timeout=limit_s) as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection in a transaction that commits when the body ends without an error."""
        async with self.acquire() as connection, connection.transaction():
            yield connection

    async def fetch(self, query: str, *args: object) -> list[asyncpg.Record]:
        """All rows of one statement."""
        async with self.acquire() as connection:
            return await connection.fetch(query, *args)

    async def fetchrow(self, query: str, *args: object) -> asyncpg.Record | None:
        """The first row of one statement, or None."""
        async with self.acquire() as connection:
            return await connection.fetchrow(query, *args)

    async def fetchval(self, query: str, *args: object) -> Any:  # noqa: ANN401 - any SQL type
        """The first column of the first row, or None."""
        async with self.acquire() as connection:
            return await connection.fetchval(query, *args)

    async def execute(self, query: str, *args: object) -> str:
        """Runs one statement and returns its command tag."""
        async with self.acquire() as connection:
            return await connection.execute(query, *args)

    async def ping(self) -> None:
        """Raises DEPENDENCY_UNAVAILABLE unless the database answers."""
        await self.fetchval("SELECT 1")

    async def until_migrated(self, name: str) -> None:
        """Returns when the database has every migration of this version, and maybe newer ones."""
        missing = await self.missing_migrations(name)
        if missing:
            log.warning("waiting_for_migrations", database=name, missing=missing)
        while missing:
            await asyncio.sleep(_MIGRATIONS_POLL_S)
            missing = await self.missing_migrations(name)

    async def missing_migrations(self, name: str) -> list[str]:
        """Migrations of this version that were not applied yet to the database `remit_<name>`."""
        try:
            rows = await self.fetch("SELECT name FROM schema_migrations")
        # No table before the first migration, no right to it before the first that gives it.
        except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError):
            rows = []
        applied = {row["name"] for row in rows}
        return [known for file in _migration_files(name) if (known := _name(file)) not in applied]

    async def check_durability(self) -> None:
        """Raises CONFIGURATION_INVALID if the database may lose what it acknowledged."""
        for setting, safe in _DURABLE.items():
            value = await self.fetchval("SELECT current_setting($1)", setting)
            if value not in safe:
                raise _invalid(
                    f"PostgreSQL runs with {setting} = {value}, so acknowledged commits can be"
                    f" lost; set it to {safe[0]}"
                )


async def _connected(
    dsn: str, pool_size: int, statement_timeout_s: float, connect_timeout_s: float
) -> asyncpg.Pool[Any]:
    loop = asyncio.get_running_loop()
    give_up = loop.time() + connect_timeout_s
    while True:
        try:
            return await asyncpg.create_pool(
                dsn,
                min_size=1,
                max_size=pool_size,
                timeout=_LOCK_TIMEOUT_S,
                reset=_keep_session,
                server_settings={
                    "application_name": "remit",
                    # Plans are kept, and those made while a table was empty would scan it for
                    # ever: services look rows up by their keys.
                    "enable_seqscan": "off",
                    "jit": "off",
                    "statement_timeout": f"{int(statement_timeout_s * 1000)}",
                    "lock_timeout": f"{int(_LOCK_TIMEOUT_S * 1000)}",
                    "idle_in_transaction_session_timeout": "10000",
                },
            )
        except asyncpg.ClientConfigurationError:
            raise  # one of `_GONE` too, but for good
        except _GONE as error:
            if loop.time() > give_up:
                reason = f"no database after {connect_timeout_s:.0f} s: {error}"
                raise unavailable(reason) from error
            await asyncio.sleep(_CONNECT_RETRY_S)


async def _keep_session(_connection: Connection) -> None:
    """Saves the round trip of a reset: nothing here changes a session but in a transaction."""


async def _closed(pool: asyncpg.Pool[Any]) -> None:
    """Closes politely, and by force when a connection does not come back."""
    try:
        await asyncio.wait_for(pool.close(), timeout=_LOCK_TIMEOUT_S)
    except (TimeoutError, *_GONE):
        pool.terminate()


# ---------------------------------------------------------------------------------- migrations


def migration_folders(database: str) -> tuple[Path, ...]:
    """Folders with the migrations of a database; raises KeyError for an unknown one."""
    return tuple(_PACKAGE / folder for folder in DATABASES[database])


def _migration_files(database: str) -> list[Path]:
    return [file for folder in migration_folders(database) for file in sorted(folder.glob("*.sql"))]


async def migrate(owner_dsn: str, database: str) -> list[str]:
    """Applies what is missing, each file in its own transaction, and returns the new names.

    Runs under the owner's role. Safe to run from several processes at once. Raises
    CONFIGURATION_INVALID if a file that was applied has changed since, if one does not fit what is
    there, or for an unusable DSN.
    """
    with translated(), usable(owner_dsn):
        connection = await asyncpg.connect(owner_dsn, timeout=_LOCK_TIMEOUT_S)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _MIGRATION_LOCK)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (name text PRIMARY KEY,"
            " digest bytea NOT NULL, apply_time timestamptz NOT NULL DEFAULT now())"
        )
        # The service looks there before it serves.
        await connection.execute(f"GRANT SELECT ON schema_migrations TO remit_{database}")
        rows = await connection.fetch("SELECT name, digest FROM schema_migrations")
        known: dict[str, bytes] = {row["name"]: row["digest"] for row in rows}
        return [
            file.name
            for file in _migration_files(database)
            if await _apply(connection, file, known)
        ]
    finally:
        await connection.close()


def _name(file: Path) -> str:
    return f"{file.parent.parent.name}/{file.parent.name}/{file.name}"


async def _apply(connection: asyncpg.Connection[Any], file: Path, known: dict[str, bytes]) -> bool:
    name = _name(file)
    script = file.read_text()  # noqa: ASYNC240 - a few kilobytes, once, before anything serves
    digest = hashlib.sha256(script.encode()).digest()
    if name in known:
        if known[name] != digest:
            raise _invalid(
                f"the migration {name} was applied in another form; migrations never change"
            )
        return False
    try:
        async with connection.transaction():
            await connection.execute(script)
            await connection.execute(
                "INSERT INTO schema_migrations (name, digest) VALUES ($1, $2)", name, digest
            )
    except asyncpg.PostgresError as error:
        if isinstance(error, _GONE):
            raise
        raise _invalid(
            f"the migration {name} does not fit the database, which is as it was before ({error});"
            " the database may be of another version of Remit: go on with that one"
        ) from error
    return True


# -------------------------------------------------------------------------------- group commit


@dataclass
class _Waiting(Generic[Item, Result]):
    item: Item
    answer: asyncio.Future[Result] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class GroupCommit(Generic[Item, Result]):
    """One writer that commits, in one transaction, all that arrived during the last commit.

    `write(connection, items)` runs inside the transaction and returns a result or a RemitError
    for each item, in order. An item's RemitError fails that item alone and undoes nothing: `write`
    must leave no trace of it. If `write` raises a database error that one bad row can cause, each
    item is tried alone. A deadlock reruns the batch. When the database is lost, whether the commit
    happened is unknown: every caller gets DEPENDENCY_UNAVAILABLE and asks again by its key.

    `opens(items)` saves round trips. It gives the SQL that opens the batch's transaction, such as
    `BEGIN; SELECT pg_advisory_xact_lock(7)`; an empty text says that `write` will make a single
    statement, which is a transaction by itself. Without `opens` a plain transaction is opened.
    """

    def __init__(
        self,
        database: Database,
        write: Callable[[Connection, Sequence[Item]], Awaitable[Sequence[Result | RemitError]]],
        *,
        name: str,
        opens: Callable[[Sequence[Item]], str] | None = None,
        max_batch: int = 256,
        max_queue: int = 4096,
    ) -> None:
        self._database = database
        self._write = write
        self._opens = opens
        self._name = name
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._queue: deque[_Waiting[Item, Result]] = deque()
        self._meter = CommitMeter(name, self._queue)
        self._writer: asyncio.Task[None] | None = None
        self.commits = 0
        """Transactions committed so far, for metrics and benchmarks."""

    async def submit(self, item: Item) -> Result:
        """The item's result, after its commit. Raises OVERLOADED when the queue is full."""
        if len(self._queue) >= self._max_queue:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_OVERLOADED,
                f"the {self._name} writer has {self._max_queue} items waiting, its limit",
            )
        waiting: _Waiting[Item, Result] = _Waiting(item)
        self._queue.append(waiting)
        if self._writer is None or self._writer.done():
            self._writer = spawn(self._drain(), name=f"group-commit-{self._name}")
        # The future is this caller's own: who leaves gives up the answer and no commit.
        return await waiting.answer

    @property
    def queue_length(self) -> int:
        """Items that wait for a commit."""
        return len(self._queue)

    async def _drain(self) -> None:
        while self._queue:
            count = min(len(self._queue), self._max_batch)
            batch = [self._queue.popleft() for _ in range(count)]
            try:
                await self._commit(batch)
            except BaseException:
                _fail([*batch, *self._queue], unavailable("the service is stopping"))
                self._queue.clear()
                raise

    async def _commit(self, batch: list[_Waiting[Item, Result]]) -> None:
        try:
            with self._meter.commit(len(batch)):
                results = await self._transact([waiting.item for waiting in batch])
        except RemitError as error:
            _fail(batch, error)
        except asyncpg.PostgresError as error:
            await self._isolate(batch, error)
        except Exception as error:  # noqa: BLE001 - a bug in `write` must reach its callers
            _fail(batch, error)
        else:
            _answer(batch, results)

    async def _isolate(
        self, batch: list[_Waiting[Item, Result]], error: asyncpg.PostgresError
    ) -> None:
        """One row broke the batch: every item gets a transaction of its own."""
        if len(batch) == 1:
            _fail(batch, error)
            return
        for waiting in batch:
            await self._commit([waiting])

    async def _transact(self, items: Sequence[Item]) -> Sequence[Result | RemitError]:
        for last in [False] * _RERUNS + [True]:
            try:
                async with self._opened(items) as connection:
                    results = await self._write(connection, items)
                    self._require_one_each(items, results)
            except _RERUN:
                if last:
                    raise
            else:
                self.commits += 1
                return results
        raise AssertionError  # pragma: no cover - the last round returns or raises

    @contextlib.asynccontextmanager
    async def _opened(self, items: Sequence[Item]) -> AsyncIterator[Connection]:
        if self._opens is None:
            async with self._database.transaction() as connection:
                yield connection
            return
        async with self._database.acquire() as connection:
            opening = self._opens(items)
            if not opening:
                yield connection
                return
            try:
                await connection.execute(opening)
                yield connection
            except BaseException:
                # Left open, the pool would roll it back too, but report it as a leak.
                if connection.is_in_transaction() and not connection.is_closed():
                    await connection.execute("ROLLBACK")
                raise
            if await connection.execute("COMMIT") != "COMMIT":
                message = f"the {self._name} writer went on after a failed statement"
                raise ValueError(message)

    def _require_one_each(
        self, items: Sequence[Item], results: Sequence[Result | RemitError]
    ) -> None:
        if len(results) != len(items):
            message = f"the {self._name} writer answered {len(results)} of {len(items)} items"
            raise ValueError(message)


def _answer(batch: list[_Waiting[Item, Result]], results: Sequence[Result | RemitError]) -> None:
    for waiting, result in zip(batch, results, strict=True):
        if waiting.answer.done():
            continue
        if isinstance(result, RemitError):
            waiting.answer.set_exception(result)
        else:
            waiting.answer.set_result(result)


def _fail(batch: list[_Waiting[Item, Result]], error: Exception) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
            waiting.answer.exception()  # a caller that left must not make a warning
