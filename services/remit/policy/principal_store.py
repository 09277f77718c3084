"""Rows of principals, with what their API keys tell of them. Only SQL and rows here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import asyncpg

from remit.idempotency import AdminChange, AdminRequest, known_change, remember
from remit.policy.store import insert_principals, org_change
from remit.postgres import Connection, Database

_MOST_TEAMS: Final = 10
"""Of a principal that are shown."""
_WORKS: Final = "revoke_time IS NULL AND (expire_time IS NULL OR expire_time > now())"
_ROW: Final = (  # made of constants of this module
    "SELECT name, create_time, disable_time,"  # noqa: S608
    f" ARRAY(SELECT DISTINCT team FROM api_keys WHERE subject = name AND {_WORKS}"
    f" AND team IS NOT NULL ORDER BY team LIMIT {_MOST_TEAMS}) AS teams,"
    f" ARRAY(SELECT DISTINCT unnest(roles) AS role FROM api_keys WHERE subject = name AND {_WORKS}"
    " ORDER BY role) AS roles,"
    f" (SELECT count(*) FROM api_keys WHERE subject = name AND {_WORKS}) AS working_key_count,"
    " (SELECT max(last_use_time) FROM api_keys WHERE subject = name) AS last_use_time"
    " FROM principals"
)


@dataclass(frozen=True)
class PrincipalRow:
    """A user, with the teams and roles of those of their API keys that work."""

    name: str
    create_time: datetime
    disable_time: datetime | None
    teams: tuple[str, ...]
    roles: tuple[str, ...]
    working_key_count: int
    last_use_time: datetime | None


Answer = Callable[[PrincipalRow], bytes]


class PrincipalStore:
    """Rows in, rows out."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, org: str, size: int, after: str) -> list[PrincipalRow]:
        """Return users of an org after the name `after` (empty: from the start), by name."""
        rows = await self._database.fetch(
            f"{_ROW} WHERE org = $1 AND name > $2 AND kind = 'USER' ORDER BY name LIMIT $3",
            org,
            after,
            size,
        )
        return [_principal(row) for row in rows]

    async def set_disabled(
        self, request: AdminRequest, principal: str, answer: Answer, *, disabled: bool
    ) -> AdminChange:
        """Disable or enable a principal of the request's org, known or not, in one commit.

        Raises:
            RemitError: KEY_REUSED if the request id named another request.

        """
        async with org_change(self._database, request.org) as connection:
            known = await known_change(connection, request)
            if known is not None:
                return known
            await insert_principals(connection, request.org, (principal,))
            await connection.execute(
                "UPDATE principals SET disable_time ="
                " CASE WHEN $3 THEN coalesce(disable_time, now()) END"
                " WHERE name = $1 AND org = $2",
                principal,
                request.org,
                disabled,
            )
            return await remember(connection, request, answer(await _row(connection, principal)))


async def _row(connection: Connection, principal: str) -> PrincipalRow:
    row = await connection.fetchrow(f"{_ROW} WHERE name = $1", principal)
    assert row is not None  # noqa: S101 - whoever asks has just stored it
    return _principal(row)


def _principal(row: asyncpg.Record) -> PrincipalRow:
    values = dict(row.items())
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return PrincipalRow(**values | lists)
