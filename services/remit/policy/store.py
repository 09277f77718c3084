"""Policy's tables of API keys and signing keys; principal_store.py and others have theirs.

Only SQL and rows here. What a row means is decided by the cores and the services.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg

from remit import names
from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_RESOURCE_NOT_FOUND
from remit.idempotency import AdminChange, AdminRequest, known_change, remember
from remit.policy.entities import SERVICE_ACCOUNT, Principal
from remit.policy.signing import NewKey, StoredKey, is_due
from remit.postgres import Connection, Database
from remit.rpc.errors import RemitError

# Advisory locks of this database: replicas that start together do these things one at a time.
# 1 is the epoch's (set_store.py).
_SIGNING_LOCK: Final = 2
_ADMIN_LOCK: Final = 3

_KEY_COLUMNS: Final = (
    "key_id, org, subject, team, display_name, roles, digest, create_time, expire_time,"
    " revoke_time, last_use_time, scopes, replaced_by, (SELECT kind = 'SERVICE_ACCOUNT'"
    " FROM principals WHERE name = subject) AS of_service_account"
)


@dataclass(frozen=True)
class ApiKeyRow:
    """An API key without its secret; `digest` is what the secret must match."""

    key_id: str
    org: str
    subject: str
    team: str
    display_name: str
    roles: tuple[str, ...]
    digest: bytes
    create_time: datetime
    expire_time: datetime | None
    revoke_time: datetime | None
    last_use_time: datetime | None = None
    scopes: tuple[str, ...] = ()
    replaced_by: str | None = None
    of_service_account: bool = False

    @property
    def principal(self) -> Principal:
        """Who it speaks for, as the policies see them."""
        kind = (SERVICE_ACCOUNT,) if self.of_service_account else ()
        return Principal(self.subject, self.org, self.team, self.roles + kind)

    @property
    def name(self) -> str:
        """`orgs/{org}/apiKeys/{key}`."""
        return f"{self.org}/apiKeys/{self.key_id}"


@dataclass(frozen=True)
class NewApiKey:
    """An API key about to be stored."""

    key_id: str
    subject: str
    team: str
    display_name: str
    roles: tuple[str, ...]
    digest: bytes
    pepper_id: str
    expire_time: datetime | None
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServiceAccount:
    """A service account: the team of its API keys, which may be empty, and roles they may have."""

    name: str
    display_name: str
    team: str
    roles: tuple[str, ...]


class PolicyStore:
    """Rows in, rows out."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ------------------------------------------------------------------------------- API keys

    async def api_key(self, key_id: str) -> ApiKeyRow | None:
        """Return the key of that id, revoked and expired ones included."""
        row = await self._database.fetchrow(
            f"SELECT {_KEY_COLUMNS} FROM api_keys WHERE key_id = $1",  # noqa: S608 - constants
            key_id,
        )
        return None if row is None else _api_key(row)

    async def list_api_keys(self, org: str, limit: int, after: str) -> list[ApiKeyRow]:
        """Return the org's keys after the key id `after` (empty: from the start), newest first."""
        rows = await self._database.fetch(
            f"SELECT {_KEY_COLUMNS} FROM api_keys WHERE org = $1 AND ($2 = '' OR"  # noqa: S608
            " (create_time, key_id) < (SELECT create_time, key_id FROM api_keys"
            " WHERE key_id = $2 AND org = $1))"
            " ORDER BY create_time DESC, key_id DESC LIMIT $3",
            org,
            after,
            limit,
        )
        return [_api_key(row) for row in rows]

    async def know(self, principal: Principal) -> bool:
        """Keep who signed in, with their org and team, unless known; return if it is a person."""
        async with self._database.acquire() as connection:
            members = filter(None, (principal.user, principal.team))
            await insert_principals(connection, principal.org, members)
            kind = await connection.fetchval(
                "SELECT kind FROM principals WHERE name = $1", principal.user
            )
        return bool(kind == "USER")

    async def disabled_since(self, principals: Sequence[str]) -> tuple[str, datetime] | None:
        """The first of these that is disabled, and since when."""
        row = await self._database.fetchrow(
            "SELECT name, disable_time FROM principals"
            " WHERE name = ANY($1) AND disable_time IS NOT NULL ORDER BY disable_time LIMIT 1",
            list(principals),
        )
        return None if row is None else (row["name"], row["disable_time"])

    async def foreign_peppers(self, pepper_id: str) -> int:
        """Count the working keys that were made with another pepper."""
        return int(
            await self._database.fetchval(
                "SELECT count(*) FROM api_keys WHERE pepper_id <> $1 AND revoke_time IS NULL",
                pepper_id,
            )
        )

    async def revoked_count(self, subject: str, display_name: str) -> int:
        """Count the revoked keys of that name that speak for `subject`."""
        return int(
            await self._database.fetchval(
                "SELECT count(*) FROM api_keys WHERE subject = $1 AND display_name = $2"
                " AND revoke_time IS NOT NULL",
                subject,
                display_name,
            )
        )

    async def working_principals(self, org: str, limit: int) -> list[Principal]:
        """Whoever has a key of `org` that works now, admins first; at most `limit`."""
        rows = await self._database.fetch(
            "SELECT subject, org, coalesce(team, '') AS team,"
            " CASE kind WHEN 'SERVICE_ACCOUNT' THEN roles || $3::text ELSE roles END AS roles"
            " FROM api_keys JOIN principals USING (org)"
            " WHERE org = $1 AND name = subject AND disable_time IS NULL AND revoke_time IS NULL"
            " AND (expire_time IS NULL OR expire_time > now())"
            " GROUP BY subject, org, team, kind, roles"
            " ORDER BY 'admin' = ANY(roles) DESC, subject, team, roles LIMIT $2",
            org,
            limit,
            SERVICE_ACCOUNT,
        )
        return [
            Principal(row["subject"], row["org"], row["team"], tuple(row["roles"])) for row in rows
        ]

    async def first_org(self) -> str:
        """The org of the first principal: that of whoever set the mesh up; empty before."""
        return str(
            await self._database.fetchval(
                "SELECT coalesce((SELECT name FROM principals WHERE kind = 'ORG'"
                " ORDER BY create_time, name LIMIT 1), '')"
            )
        )

    async def create_api_key(
        self,
        request: AdminRequest,
        subject: str,
        make: Callable[[ServiceAccount | None], NewApiKey],
        answer: Callable[[ApiKeyRow], bytes],
    ) -> AdminChange:
        """Store a key, its principals and the request in one commit; a repetition changes nothing.

        `make` makes the key of the service account that `subject` is, None for a person, or
        refuses.

        Raises:
            RemitError: KEY_REUSED if the request id named another request, or whatever `make`
                raises.

        """
        async with org_change(self._database, request.org) as connection:
            known = await known_change(connection, request)
            if known is not None:
                return known
            key = make(await _service_account(connection, subject))
            await _insert_api_key(connection, request.org, key)
            row = await _api_key_row(connection, request.org, key.key_id)
            return await remember(connection, request, answer(row))

    async def revoke_api_key(
        self, request: AdminRequest, key_id: str, answer: Callable[[ApiKeyRow], bytes]
    ) -> AdminChange:
        """Revoke a key of the request's org; a key revoked before keeps its time.

        Raises:
            RemitError: KEY_REUSED, or RESOURCE_NOT_FOUND if the org has no such key.

        """
        async with org_change(self._database, request.org) as connection:
            known = await known_change(connection, request)
            if known is not None:
                return known
            await connection.execute(
                "UPDATE api_keys SET revoke_time = now()"
                " WHERE key_id = $1 AND org = $2 AND revoke_time IS NULL",
                key_id,
                request.org,
            )
            row = await _api_key_row(connection, request.org, key_id)
            return await remember(connection, request, answer(row))

    async def rotate_api_key(
        self,
        request: AdminRequest,
        key_id: str,
        replacement: Callable[[ApiKeyRow, datetime], NewApiKey],
        overlap: timedelta,
        answer: Callable[[ApiKeyRow, ApiKeyRow], bytes],
    ) -> AdminChange:
        """Store the key that replaces another, and when that one ends, in one commit.

        `replacement` makes the new key of the old one, at the database's time, or refuses; `answer`
        takes the new one and the old one.

        Raises:
            RemitError: KEY_REUSED, RESOURCE_NOT_FOUND, or whatever `replacement` raises.

        """
        async with org_change(self._database, request.org) as connection:
            known = await known_change(connection, request)
            if known is not None:
                return known
            now = await connection.fetchval("SELECT now()")
            new = replacement(await _api_key_row(connection, request.org, key_id), now)
            await _insert_api_key(connection, request.org, new)
            await connection.execute(
                "UPDATE api_keys SET replaced_by = $3, expire_time = least(expire_time, now() + $4)"
                " WHERE key_id = $1 AND org = $2",
                key_id,
                request.org,
                new.key_id,
                overlap,
            )
            made = await _api_key_row(connection, request.org, new.key_id)
            old = await _api_key_row(connection, request.org, key_id)
            return await remember(connection, request, answer(made, old))

    async def used(self, key_id: str) -> None:
        """Note that a key is used now, unless that was noted within the minute."""
        await self._database.execute(
            "UPDATE api_keys SET last_use_time = now() WHERE key_id = $1"
            " AND (last_use_time IS NULL OR last_use_time < now() - interval '60 seconds')",
            key_id,
        )

    async def known_change(self, request: AdminRequest) -> AdminChange | None:
        """Return what an identical earlier request did, or None if there was none.

        Raises:
            RemitError: KEY_REUSED if the request id named another request.

        """
        async with self._database.acquire() as connection:
            return await known_change(connection, request)

    # --------------------------------------------------------------------------- signing keys

    async def signing_keys(self) -> tuple[list[StoredKey], datetime]:
        """Return every signing key, and the database's time."""
        async with self._database.acquire() as connection:
            return await _signing_keys(connection)

    async def add_signing_key_if_due(self, period: timedelta, make: Callable[[], NewKey]) -> None:
        """Store a new signing key if the newest is older than `period` or there is none."""
        async with self._database.transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _SIGNING_LOCK)
            keys, now = await _signing_keys(connection)
            if not is_due(keys, now, period):
                return
            key = make()
            await connection.execute(
                "INSERT INTO signing_keys (key_id, public_key, sealed_private_key, seal_id)"
                " VALUES ($1, $2, $3, $4)",
                key.key_id,
                key.public_key,
                key.sealed_private_key,
                key.seal_id,
            )


@contextlib.asynccontextmanager
async def org_change(database: Database, org: str) -> AsyncIterator[Connection]:
    """Open a transaction in which no other admin request of the org is being decided."""
    async with database.transaction() as connection:
        await connection.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", _ADMIN_LOCK, org)
        yield connection


async def _insert_api_key(connection: Connection, org: str, key: NewApiKey) -> None:
    await insert_principals(connection, org, filter(None, (key.subject, key.team)))
    await connection.execute(
        "INSERT INTO api_keys (key_id, org, subject, team, display_name, roles, digest, pepper_id,"
        " expire_time, scopes) VALUES ($1, $2, $3, nullif($4, ''), $5, $6, $7, $8, $9, $10)",
        key.key_id,
        org,
        key.subject,
        key.team,
        key.display_name,
        list(key.roles),
        key.digest,
        key.pepper_id,
        key.expire_time,
        list(key.scopes),
    )


async def _service_account(connection: Connection, name: str) -> ServiceAccount | None:
    row = await connection.fetchrow(
        "SELECT name, display_name, coalesce(team, '') AS team, roles FROM service_accounts"
        " WHERE name = $1",
        name,
    )
    if row is None:
        return None
    return ServiceAccount(row["name"], row["display_name"], row["team"], tuple(row["roles"]))


async def insert_principals(connection: Connection, org: str, members: Iterable[str]) -> None:
    """Keep an org and names of its members, those that are not known."""
    rows = [(org, "ORG"), *sorted((name, _kind(name)) for name in members)]
    await connection.execute(
        "INSERT INTO principals (name, kind, org) SELECT name, kind, $3"
        " FROM unnest($1::text[], $2::text[]) AS given (name, kind) ON CONFLICT DO NOTHING",
        [name for name, _ in rows],
        [kind for _, kind in rows],
        org,
    )


def _kind(name: str) -> str:
    return "TEAM" if names.is_name("team", name) else "USER"


async def _api_key_row(connection: Connection, org: str, key_id: str) -> ApiKeyRow:
    row = await connection.fetchrow(
        f"SELECT {_KEY_COLUMNS} FROM api_keys WHERE key_id = $1 AND org = $2",  # noqa: S608
        key_id,
        org,
    )
    if row is None:
        raise RemitError(ERROR_REASON_RESOURCE_NOT_FOUND, f"{org}/apiKeys/{key_id} does not exist")
    return _api_key(row)


async def _signing_keys(connection: Connection) -> tuple[list[StoredKey], datetime]:
    now = await connection.fetchval("SELECT clock_timestamp()")
    rows = await connection.fetch(
        "SELECT key_id, public_key, sealed_private_key, seal_id, create_time FROM signing_keys"
    )
    return [StoredKey(**_plain(row)) for row in rows], now


def _api_key(row: asyncpg.Record) -> ApiKeyRow:
    return ApiKeyRow(
        **_plain(row)
        | {
            "team": row["team"] or "",
            "roles": tuple(row["roles"]),
            "scopes": tuple(row["scopes"]),
        },
    )


def _plain(row: asyncpg.Record) -> dict[str, Any]:
    return dict(row.items())
