"""Rows of principals, with what API keys and grants tell of them. Only SQL and rows here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import asyncpg

from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_PRINCIPAL_EXISTS
from remit.idempotency import AdminChange, AdminRequest, known_change, remember
from remit.policy.store import ServiceAccount, insert_principals, org_change
from remit.postgres import Connection, Database
from remit.rpc.errors import RemitError

_MOST_TEAMS: Final = 10
"""Of a principal that are shown."""
_COUNTS: Final = "revoke_time IS NULL AND (expire_time IS NULL OR expire_time > now())"
"""Of API keys, and of grants."""
_ROW: Final = (  # made of constants of this module
    "SELECT name, kind, create_time, disable_time, coalesce(display_name, '') AS display_name,"  # noqa: S608
    " service_accounts.team AS own_team, service_accounts.roles AS own_roles,"
    f" ARRAY(SELECT DISTINCT team FROM api_keys WHERE subject = name AND {_COUNTS}"
    f" AND team IS NOT NULL ORDER BY team LIMIT {_MOST_TEAMS}) AS teams,"
    f" ARRAY(SELECT DISTINCT unnest(roles) AS role FROM api_keys WHERE subject = name AND {_COUNTS}"
    " ORDER BY role) AS roles,"
    f" (SELECT count(*) FROM api_keys WHERE subject = name AND {_COUNTS}) AS working_key_count,"
    " (SELECT max(last_use_time) FROM api_keys WHERE subject = name) AS last_use_time"
    " FROM principals LEFT JOIN service_accounts USING (name)"
)


_TEAMS: Final = (  # made of constants of this module
    "SELECT name, create_time,"  # noqa: S608
    f" (SELECT count(DISTINCT subject) FROM api_keys WHERE team = name AND {_COUNTS})"
    " AS member_count,"
    f" (SELECT count(*) FROM api_keys WHERE team = name AND {_COUNTS}) AS working_key_count,"
    f" (SELECT count(*) FROM tool_grants WHERE principal = name AND {_COUNTS}) AS grant_count"
    " FROM (SELECT name, max(create_time) AS create_time FROM"
    " (SELECT name, create_time FROM principals WHERE org = $1 AND kind = 'TEAM'"
    " UNION SELECT principal, NULL FROM tool_grants WHERE org = $1"
    f" AND starts_with(principal, $1 || '/teams/') AND {_COUNTS}) AS named"
    " WHERE name > $2 GROUP BY name ORDER BY name LIMIT $3) AS teams ORDER BY name"
)


class Kind(StrEnum):
    """What a principal is that can act."""

    USER = "USER"
    SERVICE_ACCOUNT = "SERVICE_ACCOUNT"


@dataclass(frozen=True)
class PrincipalRow:
    """A user or a service account.

    Teams and roles of a user are those of their API keys that work.
    """

    name: str
    kind: Kind
    display_name: str
    create_time: datetime
    disable_time: datetime | None
    teams: tuple[str, ...]
    roles: tuple[str, ...]
    working_key_count: int
    last_use_time: datetime | None


@dataclass(frozen=True)
class TeamRow:
    """A team; `create_time` is None where only a grant names it."""

    name: str
    create_time: datetime | None
    member_count: int
    working_key_count: int
    grant_count: int


Answer = Callable[[PrincipalRow], bytes]


class PrincipalStore:
    """Rows in, rows out."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, org: str, size: int, after: str, kind: Kind | None = None
    ) -> list[PrincipalRow]:
        """Return principals of an org after the name `after` (empty: from the start), by name."""
        rows = await self._database.fetch(
            f"{_ROW} WHERE org = $1 AND name > $2 AND kind = ANY($4) ORDER BY name LIMIT $3",
            org,
            after,
            size,
            [*Kind] if kind is None else [kind],
        )
        return [_principal(row) for row in rows]

    async def teams(self, org: str, size: int, after: str) -> list[TeamRow]:
        """Return teams of an org after the name `after` (empty: from the start), by name."""
        rows = await self._database.fetch(_TEAMS, org, after, size)
        return [TeamRow(**dict(row.items())) for row in rows]

    async def create_service_account(
        self, request: AdminRequest, account: ServiceAccount, answer: Answer
    ) -> AdminChange:
        """Store a service account and the request in one commit; a repetition changes nothing.

        Raises:
            RemitError: KEY_REUSED if the request id named another request, or PRINCIPAL_EXISTS.

        """
        async with org_change(self._database, request.org) as connection:
            known = await known_change(connection, request)
            if known is not None:
                return known
            await insert_principals(connection, request.org, filter(None, (account.team,)))
            made = await connection.fetchval(
                "INSERT INTO principals (name, kind, org) VALUES ($1, $2, $3)"
                " ON CONFLICT DO NOTHING RETURNING name",
                account.name,
                Kind.SERVICE_ACCOUNT,
                request.org,
            )
            if made is None:
                raise await _taken(connection, account.name)
            await connection.execute(
                "INSERT INTO service_accounts (name, display_name, team, roles)"
                " VALUES ($1, $2, nullif($3, ''), $4)",
                account.name,
                account.display_name,
                account.team,
                list(account.roles),
            )
            return await remember(connection, request, answer(await _row(connection, made)))

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


async def _taken(connection: Connection, name: str) -> RemitError:
    kind = Kind((await _row(connection, name)).kind).name.replace("_", " ").lower()
    return RemitError(ERROR_REASON_PRINCIPAL_EXISTS, f"{name} is known already, as a {kind}")


async def _row(connection: Connection, principal: str) -> PrincipalRow:
    row = await connection.fetchrow(f"{_ROW} WHERE name = $1", principal)
    assert row is not None  # noqa: S101 - whoever asks knows that it is there
    return _principal(row)


def _principal(row: asyncpg.Record) -> PrincipalRow:
    values: dict[str, Any] = dict(row.items())
    own_team, own_roles = values.pop("own_team"), values.pop("own_roles")
    kind = Kind(values.pop("kind"))
    if kind is Kind.SERVICE_ACCOUNT:
        values |= {"teams": filter(None, [own_team]), "roles": own_roles}
    lists = {name: tuple(values[name]) for name in ("teams", "roles")}
    return PrincipalRow(**values | lists | {"kind": kind})
