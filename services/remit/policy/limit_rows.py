"""The table of limits that administrators set. Only SQL and rows here."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import asyncpg

from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_RESOURCE_NOT_FOUND
from remit.idempotency import AdminChange, AdminRequest, known_change, remember
from remit.policy.limits import Limit
from remit.postgres import Connection, Database
from remit.rpc.errors import RemitError

# Advisory lock of this database, beside those of store.py: changes of an org's limits, in turn.
_LIMITS_LOCK: Final = 44
_COLUMNS: Final = "principal, max_runs, window_s, max_unfinished_runs, create_time, update_time"


@dataclass(frozen=True)
class LimitRow:
    """A limit that was set; 0 runs are no limit."""

    principal: str
    max_runs: int
    window_s: int
    max_unfinished_runs: int
    create_time: datetime
    update_time: datetime

    @property
    def limit(self) -> Limit | None:
        """What it allows; None: anything."""
        return Limit(self.max_runs, self.window_s) if self.max_runs else None


@dataclass(frozen=True)
class WantedLimit:
    """A limit to be set."""

    principal: str
    max_runs: int
    window_s: int
    max_unfinished_runs: int


Answer = Callable[[LimitRow], bytes]


class LimitRows:
    """Rows in, rows out."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, principals: Sequence[str]) -> Mapping[str, LimitRow]:
        """Return what was set for these, by their names."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM rate_limits WHERE principal = ANY($1)",  # noqa: S608 - constants
            list(principals),
        )
        return {row["principal"]: _limit_row(row) for row in rows}

    async def page(self, org: str, size: int, after: str) -> list[LimitRow]:
        """Return limits of an org after the principal `after` (empty: from the start)."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM rate_limits WHERE org = $1 AND principal > $2"  # noqa: S608
            " ORDER BY principal LIMIT $3",
            org,
            after,
            size,
        )
        return [_limit_row(row) for row in rows]

    async def set(self, request: AdminRequest, wanted: WantedLimit, answer: Answer) -> AdminChange:
        """Set a limit and remember the request in one commit; a repetition changes nothing.

        Raises:
            RemitError: KEY_REUSED if the request id named another request.

        """
        async with self._change(request.org) as connection:
            known = await known_change(connection, request)
            if known is not None:
                return known
            row = await connection.fetchrow(
                "INSERT INTO rate_limits"  # noqa: S608 - constants
                " (principal, org, max_runs, window_s, max_unfinished_runs)"
                " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (principal) DO UPDATE SET max_runs = $3,"
                " window_s = $4, max_unfinished_runs = $5, update_time = now()"
                f" RETURNING {_COLUMNS}",
                wanted.principal,
                request.org,
                wanted.max_runs,
                wanted.window_s,
                wanted.max_unfinished_runs,
            )
            return await remember(connection, request, answer(_found(row, wanted.principal)))

    async def delete(self, request: AdminRequest, principal: str, answer: Answer) -> AdminChange:
        """Delete a limit of the request's org and remember the request in one commit.

        Raises:
            RemitError: KEY_REUSED, or RESOURCE_NOT_FOUND if no limit is set for it.

        """
        async with self._change(request.org) as connection:
            known = await known_change(connection, request)
            if known is not None:
                return known
            row = await connection.fetchrow(
                f"DELETE FROM rate_limits WHERE principal = $1 AND org = $2 RETURNING {_COLUMNS}",  # noqa: S608
                principal,
                request.org,
            )
            return await remember(connection, request, answer(_found(row, principal)))

    @contextlib.asynccontextmanager
    async def _change(self, org: str) -> AsyncIterator[Connection]:
        async with self._database.transaction() as connection:
            await connection.execute(
                "SELECT pg_advisory_xact_lock($1, hashtext($2))", _LIMITS_LOCK, org
            )
            yield connection


def _found(row: asyncpg.Record | None, principal: str) -> LimitRow:
    if row is None:
        raise RemitError(
            ERROR_REASON_RESOURCE_NOT_FOUND,
            f"no rate limit is set for {principal}; what settings say applies to it",
        )
    return _limit_row(row)


def _limit_row(row: asyncpg.Record) -> LimitRow:
    return LimitRow(**dict(row.items()))
