"""A database whose connections break where a test wants it, in the ways in which real ones do."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from remit.postgres import Connection, Database


class Break(Enum):
    """How a statement goes wrong."""

    FAILS = "22012"
    """It fails as a bad row would make it fail: the batch is tried one by one."""
    DEADLOCK = "40P01"
    """It loses a deadlock: the batch is tried again."""
    LOCKED = "55P03"
    """It waited too long for a lock: every caller is told to come again."""
    FULL = "53100"
    """The disk is full: every caller is told to come again."""
    CUT = "cut"
    """The connection ends before it is sent."""
    KILLED = "killed"
    """The server ends the session before it comes."""
    UNANSWERED = "unanswered"
    """It is carried out, and the connection ends before the answer."""


@dataclass
class Fault:
    """Breaks one statement, once: the one that comes after `skipped` others, or the commit."""

    kind: Break
    skipped: int
    has_struck: bool = False


class BreakingDatabase(Database):
    """A database that breaks as its `fault` says."""

    fault: Fault | None = None

    @contextlib.asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        """A connection that breaks if a fault is set."""
        async with super().acquire() as connection:
            yield _Breaking(connection, self, self.fault) if self.fault else connection  # type: ignore[misc]

    async def end_session(self, pid: int) -> None:
        """Ends a session as an administrator does."""
        async with super().acquire() as other:
            await other.execute("SELECT pg_terminate_backend($1, 60000)", pid)


class _Breaking:
    """Passes everything on to a connection until its fault is due."""

    def __init__(self, connection: Connection, database: BreakingDatabase, fault: Fault) -> None:
        self._connection = connection
        self._database = database
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def execute(self, query: str, *arguments: object) -> Any:
        return await self._sent(self._connection.execute, query, *arguments)

    async def fetch(self, query: str, *arguments: object) -> Any:
        return await self._sent(self._connection.fetch, query, *arguments)

    async def fetchrow(self, query: str, *arguments: object) -> Any:
        return await self._sent(self._connection.fetchrow, query, *arguments)

    async def _sent(self, send: Any, query: str, *arguments: object) -> Any:
        kind, is_due = self._fault.kind, self._is_due(query)
        if is_due:
            self._fault.has_struck = True
            await self._strike()
        answer = await send(query, *arguments)
        if is_due and kind is Break.UNANSWERED:
            self._connection.terminate()
            message = "the answer never came"
            raise ConnectionResetError(message)
        return answer

    def _is_due(self, query: str) -> bool:
        if self._fault.has_struck or query == "ROLLBACK":
            return False
        if self._fault.kind is Break.UNANSWERED:
            return query == "COMMIT"
        self._fault.skipped -= 1
        return self._fault.skipped < 0

    async def _strike(self) -> None:
        """Breaks the connection, or makes the transaction fail as the kind says."""
        kind = self._fault.kind
        if kind is Break.CUT:
            self._connection.terminate()
        elif kind is Break.KILLED:
            await self._database.end_session(self._connection.get_server_pid())
        elif kind is not Break.UNANSWERED:
            await self._connection.execute(
                f"DO $$ BEGIN RAISE EXCEPTION SQLSTATE '{kind.value}'; END $$"
            )
