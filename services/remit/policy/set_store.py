"""Versions of the policies, and the epoch that they share with the grants. Only SQL and rows here.

Whoever begins an epoch holds the one lock of it, so that epochs are in the order of their commits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import asyncpg

from remit import names
from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_POLICY_VERSION_CONFLICT
from remit.idempotency import AdminChange, AdminRequest, known_change, remember
from remit.policy.grants import Grant, reason_of
from remit.policy.rule_sets import PolicySource
from remit.postgres import Connection, Database
from remit.rpc.errors import RemitError

Origin = Literal["FILES", "PUSH", "ROLLBACK", "UPGRADE"]

# Advisory lock of this database (store.py has the others).
_EPOCH_LOCK: Final = 1
_FACTS: Final = (
    "epoch AS version, digest, origin, author, message, create_time,"
    " coalesce(source_version, 0) AS source_version, policy_count"
)

# One statement reads epoch, policies and grants, so that they are of one moment.
_GRANTS: Final = (
    "SELECT coalesce(json_agg(json_build_object('id', grant_id, 'org', org, 'principal', principal,"
    " 'tool', tool, 'class', permission_class, 'policy', policy, 'author', author,"
    " 'expire_time', expire_time)), '[]') FROM tool_grants"
    " WHERE revoke_time IS NULL AND (expire_time IS NULL OR expire_time > now())"
)


@dataclass(frozen=True)
class Version:
    """A version of the policies, without their text."""

    version: int
    digest: bytes
    origin: Origin
    author: str
    message: str
    create_time: datetime
    source_version: int
    policy_count: int


@dataclass(frozen=True)
class StoredSet:
    """A version with its text."""

    facts: Version
    source: PolicySource


@dataclass(frozen=True)
class NewSet:
    """Checked policies that are to be put in force."""

    source: PolicySource
    policy_count: int
    origin: Origin
    author: str = ""
    message: str = ""
    source_version: int | None = None


@dataclass(frozen=True)
class InForce:
    """What is in force, read at one moment."""

    epoch: int
    stored: StoredSet
    grants: tuple[Grant, ...] = ()


class SetStore:
    """Rows in, rows out."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def newest_epoch(self) -> int:
        """Return the epoch in force; 0 before the first."""
        return int(
            await self._database.fetchval("SELECT coalesce(max(epoch), 0) FROM policy_epochs")
        )

    async def in_force(self) -> InForce:
        """Return what is in force. Raises LookupError before the first."""
        row = await self._database.fetchrow(
            f"SELECT {_FACTS}, files, schema, (SELECT max(epoch) FROM policy_epochs) AS in_force,"  # noqa: S608 - constants
            f" ({_GRANTS}) AS grants FROM policy_sets ORDER BY epoch DESC LIMIT 1"
        )
        if row is None:
            message = "no policies were accepted yet"
            raise LookupError(message)
        return InForce(row["in_force"], _stored(row), _grants(row["grants"]))

    async def version(self, version: int) -> StoredSet | None:
        """Return a version; None if it never was."""
        row = await self._database.fetchrow(
            f"SELECT {_FACTS}, files, schema FROM policy_sets WHERE epoch = $1",  # noqa: S608
            version,
        )
        return None if row is None else _stored(row)

    async def versions(self, limit: int, before: int) -> list[Version]:
        """Return versions lower than `before` (0: from the newest), newest first."""
        rows = await self._database.fetch(
            f"SELECT {_FACTS} FROM policy_sets WHERE $1 = 0 OR epoch < $1"  # noqa: S608
            " ORDER BY epoch DESC LIMIT $2",
            before,
            limit,
        )
        return [_version(row) for row in rows]

    async def governed_by_pushes(self) -> bool:
        """Whether anybody ever pushed: from then on the files of the service say nothing."""
        return bool(
            await self._database.fetchval(
                "SELECT EXISTS (SELECT 1 FROM policy_sets WHERE origin IN ('PUSH', 'ROLLBACK'))"
            )
        )

    async def accept(self, new: NewSet) -> int:
        """Put what a replica starts with in force unless it is already; return the epoch.

        Replicas that start together queue here, so one change makes one epoch.
        """
        async with self._database.transaction() as connection:
            await lock_epoch(connection)
            newest = await _newest(connection)
            if newest is None or newest.digest != new.source.digest:
                await _insert(connection, new)
            return int(await connection.fetchval("SELECT max(epoch) FROM policy_epochs"))

    async def push(
        self,
        request: AdminRequest,
        new: NewSet,
        expected: int,
        answer: Callable[[Version], bytes],
    ) -> AdminChange:
        """Put policies in force if `expected` is the version that is, and remember the request.

        Raises:
            RemitError: KEY_REUSED, or POLICY_VERSION_CONFLICT.

        """
        async with self._database.transaction() as connection:
            await lock_epoch(connection)
            known = await known_change(connection, request)
            if known is not None:
                return known
            newest = await _newest(connection)
            if newest is None or newest.version != expected:
                raise _conflict(newest, expected)
            if newest.digest != new.source.digest:
                newest = await _insert(connection, new)
            await end_shadow_of(connection, new.source.digest)
            return await remember(connection, request, answer(newest))


async def end_shadow_of(connection: Connection, digest: bytes) -> None:
    """End the candidate in shadow if it is what was put in force just now."""
    await connection.execute(
        "UPDATE policy_shadows SET ended = 'PUSHED', end_time = clock_timestamp()"
        " WHERE end_time IS NULL AND digest = $1",
        digest,
    )


async def lock_epoch(connection: Connection) -> None:
    """Hold the lock of the epoch until the transaction ends."""
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _EPOCH_LOCK)


async def begin_epoch(connection: Connection, cause: Literal["POLICIES", "GRANT"]) -> int:
    """Begin the next epoch; its caller holds the lock."""
    epoch: int = await connection.fetchval(
        "INSERT INTO policy_epochs (epoch, cause)"
        " SELECT coalesce(max(epoch), 0) + 1, $1 FROM policy_epochs RETURNING epoch",
        cause,
    )
    return epoch


async def _newest(connection: Connection) -> Version | None:
    row = await connection.fetchrow(
        f"SELECT {_FACTS} FROM policy_sets ORDER BY epoch DESC LIMIT 1"  # noqa: S608 - constants
    )
    return None if row is None else _version(row)


async def _insert(connection: Connection, new: NewSet) -> Version:
    row = await connection.fetchrow(
        "INSERT INTO policy_sets (epoch, digest, files, schema, origin, author, message,"  # noqa: S608 - constants
        " source_version, policy_count) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
        f" RETURNING {_FACTS}",
        await begin_epoch(connection, "POLICIES"),
        new.source.digest,
        json.dumps(dict(new.source.files), sort_keys=True),
        new.source.schema,
        new.origin,
        new.author,
        new.message,
        new.source_version,
        new.policy_count,
    )
    assert row is not None  # noqa: S101 - an insert of one row returns it
    return _version(row)


def _conflict(newest: Version | None, expected: int) -> RemitError:
    version = newest.version if newest else 0
    return RemitError(
        ERROR_REASON_POLICY_VERSION_CONFLICT,
        f"version {version} of the policies is in force, not {expected}",
        metadata={"version": str(version)},
    )


def _version(row: asyncpg.Record) -> Version:
    return Version(**{name: row[name] for name in Version.__dataclass_fields__})


def _stored(row: asyncpg.Record) -> StoredSet:
    return StoredSet(_version(row), PolicySource(json.loads(row["files"]), row["schema"]))


def _grants(stated: str) -> tuple[Grant, ...]:
    return tuple(_grant(each) for each in json.loads(stated))


def _grant(stated: Mapping[str, Any]) -> Grant:
    expire_time = stated["expire_time"] and datetime.fromisoformat(stated["expire_time"])
    return Grant(
        name=names.grant_name(stated["org"], stated["id"]),
        principal=stated["principal"],
        tool=stated["tool"],
        permission_class=stated["class"],
        expire_time=expire_time,
        policy=stated["policy"],
        reason=reason_of(
            stated["author"], stated["principal"], stated["tool"], stated["class"], expire_time
        ),
    )
