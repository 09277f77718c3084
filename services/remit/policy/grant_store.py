"""Rows of grants. Making and revoking one begins an epoch, under the epoch's lock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from remit import names
from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_RESOURCE_NOT_FOUND
from remit.idempotency import AdminChange, AdminRequest, known_change, remember
from remit.policy.set_store import begin_epoch, lock_epoch
from remit.postgres import Connection, Database
from remit.rpc.errors import RemitError, Violation, invalid_request

MOST_OF_PRINCIPAL: Final = 200
MOST_OF_ORG: Final = 2_000
"""Grants in force at most."""
_COLUMNS: Final = (
    "grant_id, org, principal, tool, permission_class, policy, author, epoch, create_time,"
    " expire_time, revoke_time"
)
_IN_FORCE: Final = "revoke_time IS NULL AND (expire_time IS NULL OR expire_time > now())"


@dataclass(frozen=True)
class NewGrant:
    """A grant about to be stored."""

    grant_id: str
    principal: str
    tool: str
    permission_class: int
    policy: str
    author: str
    expire_time: datetime | None


@dataclass(frozen=True)
class GrantRow:
    """A grant as it is stored."""

    grant_id: UUID
    org: str
    principal: str
    tool: str
    permission_class: int
    policy: str
    author: str
    epoch: int
    create_time: datetime
    expire_time: datetime | None
    revoke_time: datetime | None

    @property
    def name(self) -> str:
        """`orgs/{org}/grants/{grant}`."""
        return names.grant_name(self.org, str(self.grant_id))


class GrantStore:
    """Rows in, rows out."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, request: AdminRequest, new: NewGrant, answer: Callable[[GrantRow], bytes]
    ) -> AdminChange:
        """Store a grant and the request in one commit, which begins an epoch.

        Raises:
            RemitError: KEY_REUSED, or INVALID_REQUEST if there are too many grants already.

        """
        async with self._database.transaction() as connection:
            await lock_epoch(connection)
            known = await known_change(connection, request)
            if known is not None:
                return known
            await _check_room(connection, request.org, new.principal)
            row = await connection.fetchrow(
                "INSERT INTO tool_grants (grant_id, org, principal, tool, permission_class,"  # noqa: S608 - constants
                " policy, author, epoch, expire_time) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
                f" RETURNING {_COLUMNS}",
                UUID(new.grant_id),
                request.org,
                new.principal,
                new.tool,
                new.permission_class,
                new.policy,
                new.author,
                await begin_epoch(connection, "GRANT"),
                new.expire_time,
            )
            assert row is not None  # noqa: S101 - an insert of one row returns it
            return await remember(connection, request, answer(_grant(row)))

    async def revoke(
        self, request: AdminRequest, grant_id: str, answer: Callable[[GrantRow], bytes]
    ) -> AdminChange:
        """Revoke a grant of the request's org; one revoked before keeps its time and epoch.

        Raises:
            RemitError: KEY_REUSED, or RESOURCE_NOT_FOUND if the org has no such grant.

        """
        async with self._database.transaction() as connection:
            await lock_epoch(connection)
            known = await known_change(connection, request)
            if known is not None:
                return known
            found = await connection.execute(
                "UPDATE tool_grants SET revoke_time = now()"
                " WHERE grant_id = $1 AND org = $2 AND revoke_time IS NULL",
                UUID(grant_id),
                request.org,
            )
            if found != "UPDATE 0":
                await begin_epoch(connection, "GRANT")
            row = await connection.fetchrow(
                f"SELECT {_COLUMNS} FROM tool_grants WHERE grant_id = $1 AND org = $2",  # noqa: S608
                UUID(grant_id),
                request.org,
            )
            if row is None:
                raise RemitError(
                    ERROR_REASON_RESOURCE_NOT_FOUND, f"{request.resource} is not there"
                )
            return await remember(connection, request, answer(_grant(row)))

    async def list(self, org: str, principal: str, limit: int, after: str) -> list[GrantRow]:
        """Return grants of the org after the grant id `after` (empty: from the newest)."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM tool_grants WHERE org = $1"  # noqa: S608 - constants
            " AND ($2 = '' OR principal = $2) AND ($3::uuid IS NULL OR"
            " (create_time, grant_id) < (SELECT create_time, grant_id FROM tool_grants"
            " WHERE grant_id = $3 AND org = $1))"
            " ORDER BY create_time DESC, grant_id DESC LIMIT $4",
            org,
            principal,
            UUID(after) if after else None,
            limit,
        )
        return [_grant(row) for row in rows]


async def _check_room(connection: Connection, org: str, principal: str) -> None:
    row = await connection.fetchrow(
        "SELECT count(*) AS of_org, count(*) FILTER (WHERE principal = $2) AS of_principal"  # noqa: S608 - constants
        f" FROM tool_grants WHERE org = $1 AND {_IN_FORCE}",
        org,
        principal,
    )
    assert row is not None  # noqa: S101 - counting gives one row
    for who, count, most in (
        (principal, row["of_principal"], MOST_OF_PRINCIPAL),
        (org, row["of_org"], MOST_OF_ORG),
    ):
        if count >= most:
            fault = f"{who} has {most} grants already; revoke some, or write a policy"
            raise invalid_request([Violation("principal", fault)])


def _grant(row: asyncpg.Record) -> GrantRow:
    return GrantRow(**dict(row.items()))
