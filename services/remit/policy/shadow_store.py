"""Candidates in shadow, in the database: one runs at most, replicas add what they counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

import asyncpg

from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_INVALID_STATE
from remit.idempotency import AdminChange, AdminRequest, known_change, remember
from remit.policy.rule_sets import PolicySource
from remit.policy.set_store import lock_epoch
from remit.policy.shadow_tally import MOST_CHANGES, ChangeKey, Example, Kind, Outcome, Tally
from remit.postgres import Connection, Database
from remit.rpc.errors import RemitError
from remit.rpc.ids import IdSource

_KEPT: Final = 20
_FACTS: Final = (
    "shadow, digest, author, message, policy_count, create_time, expire_time, end_time, ended,"
    " agreed, newly_denied, newly_allowed, newly_asked, failed, dropped, unlisted"
)
_COUNTED: Final = {outcome: outcome.value.lower() for outcome in Outcome}


class End(StrEnum):
    """Why a candidate sees no decisions any more."""

    STOPPED = "STOPPED"
    EXPIRED = "EXPIRED"
    PUSHED = "PUSHED"
    REPLACED = "REPLACED"
    BROKEN = "BROKEN"


@dataclass(frozen=True)
class NewShadow:
    """Checked policies that are to see decisions."""

    source: PolicySource
    policy_count: int
    author: str
    message: str
    lifetime_s: float


@dataclass(frozen=True)
class Running:
    """The candidate that sees decisions."""

    shadow: UUID
    files: Mapping[str, str]


@dataclass(frozen=True)
class ShadowRow:
    """A candidate with what it would have decided."""

    shadow: UUID
    digest: bytes
    author: str
    message: str
    policy_count: int
    create_time: datetime
    expire_time: datetime
    end_time: datetime | None
    ended: End | None
    agreed: int
    newly_denied: int
    newly_allowed: int
    newly_asked: int
    failed: int
    dropped: int
    unlisted: int
    changes: tuple[tuple[ChangeKey, int, Example], ...] = ()


Answer = Callable[[ShadowRow], bytes]


class ShadowStore:
    """Rows in, rows out."""

    def __init__(self, database: Database, ids: IdSource) -> None:
        self._database = database
        self._ids = ids

    async def start(self, request: AdminRequest, new: NewShadow, answer: Answer) -> AdminChange:
        """Let a candidate see decisions in the place of any other. Raises KEY_REUSED."""
        async with self._database.transaction() as connection:
            await lock_epoch(connection)
            known = await known_change(connection, request)
            if known is not None:
                return known
            await _end(connection, End.REPLACED)
            row = await connection.fetchrow(
                "INSERT INTO policy_shadows (shadow, digest, files, author, message, policy_count,"  # noqa: S608 - constants
                " expire_time) VALUES ($1, $2, $3, $4, $5, $6,"
                f" clock_timestamp() + make_interval(secs => $7::float8)) RETURNING {_FACTS}",
                UUID(self._ids.uuid7()),
                new.source.digest,
                json.dumps(dict(new.source.files), sort_keys=True),
                new.author,
                new.message,
                new.policy_count,
                new.lifetime_s,
            )
            await connection.execute(
                "DELETE FROM policy_shadows WHERE shadow NOT IN"
                " (SELECT shadow FROM policy_shadows ORDER BY create_time DESC LIMIT $1)",
                _KEPT,
            )
            return await remember(connection, request, answer(_row(row)))

    async def stop(self, request: AdminRequest, answer: Answer) -> AdminChange:
        """End the candidate that runs. Raises INVALID_STATE where none does, KEY_REUSED."""
        async with self._database.transaction() as connection:
            await lock_epoch(connection)
            known = await known_change(connection, request)
            if known is not None:
                return known
            ended = await _end(connection, End.STOPPED)
            if ended is None:
                raise RemitError(
                    ERROR_REASON_INVALID_STATE, "no candidate is in shadow that could be stopped"
                )
            return await remember(
                connection, request, answer(await _with_changes(connection, ended))
            )

    async def newest(self) -> ShadowRow | None:
        """Return the newest candidate; None before the first."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                f"SELECT {_FACTS} FROM policy_shadows ORDER BY create_time DESC LIMIT 1"  # noqa: S608
            )
            return None if row is None else await _with_changes(connection, _row(row))

    async def running(self) -> Running | None:
        """Return the candidate that sees decisions, and end it where its time is over."""
        row = await self._database.fetchrow(
            "SELECT shadow, files, expire_time <= clock_timestamp() AS is_late"
            " FROM policy_shadows WHERE end_time IS NULL"
        )
        if row is None:
            return None
        if row["is_late"]:
            await self.end(row["shadow"], End.EXPIRED)
            return None
        return Running(row["shadow"], json.loads(row["files"]))

    async def end(self, shadow: UUID, why: End) -> bool:
        """End a candidate; whether it ran."""
        ended = await self._database.fetchval(
            "UPDATE policy_shadows SET ended = $2, end_time = clock_timestamp()"
            " WHERE shadow = $1 AND end_time IS NULL RETURNING shadow",
            shadow,
            why,
        )
        return ended is not None

    async def add(self, shadow: UUID, tally: Tally) -> None:
        """Add what a replica counted; nothing happens where the candidate is kept no more."""
        async with self._database.transaction() as connection:
            counts = {_COUNTED[outcome]: n for outcome, n in tally.outcomes.items()}
            counts["unlisted"] = tally.unlisted
            names = sorted(counts)
            added = ", ".join(f"{name} = {name} + ${place + 2}" for place, name in enumerate(names))
            locked = await connection.fetchval(
                f"UPDATE policy_shadows SET {added} WHERE shadow = $1 RETURNING shadow",  # noqa: S608 - names of columns
                shadow,
                *(counts[name] for name in names),
            )
            if locked is not None:
                await _add_changes(connection, shadow, tally)


async def _end(connection: Connection, why: End) -> ShadowRow | None:
    row = await connection.fetchrow(
        "UPDATE policy_shadows SET ended = $1, end_time = clock_timestamp()"  # noqa: S608 - constants
        f" WHERE end_time IS NULL RETURNING {_FACTS}",
        why,
    )
    return None if row is None else _row(row)


async def _add_changes(connection: Connection, shadow: UUID, tally: Tally) -> None:
    """Add to changes of a kind that is listed; list others while there is room.

    The candidate's row is locked, so replicas list no more than there is room for.
    """
    without_room = 0
    for key, (count, example) in tally.changes.items():
        stored = await connection.fetchval(
            _ADD_CHANGE,
            shadow,
            key.action,
            key.policy_id,
            key.before,
            key.after,
            count,
            example.decision_id,
            example.decision_time,
            example.resource,
            list(example.policy_ids_before),
            list(example.policy_ids_after),
            example.reason,
            MOST_CHANGES,
        )
        without_room += 0 if stored else count
    if without_room:
        await connection.execute(
            "UPDATE policy_shadows SET unlisted = unlisted + $2 WHERE shadow = $1",
            shadow,
            without_room,
        )


_KEY: Final = "shadow, action, policy_id, before, after"
_EXAMPLE: Final = (
    "decision_id, decision_time, resource, policy_ids_before, policy_ids_after, reason"
)
_ADD_CHANGE: Final = f"""
INSERT INTO policy_shadow_changes AS c ({_KEY}, count, {_EXAMPLE})
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12
WHERE (SELECT count(*) FROM policy_shadow_changes WHERE shadow = $1) < $13
    OR EXISTS (SELECT FROM policy_shadow_changes WHERE ({_KEY}) = ($1, $2, $3, $4, $5))
ON CONFLICT ({_KEY}) DO UPDATE SET count = c.count + excluded.count,
    {", ".join(f"{name} = excluded.{name}" for name in _EXAMPLE.split(", "))}
RETURNING count
"""  # noqa: S608 - made of constants


async def _with_changes(connection: Connection, row: ShadowRow) -> ShadowRow:
    found = await connection.fetch(
        "SELECT * FROM policy_shadow_changes WHERE shadow = $1"
        " ORDER BY count DESC, action, policy_id, before, after",
        row.shadow,
    )
    return ShadowRow(**vars(row) | {"changes": tuple(_change(each) for each in found)})


def _row(row: asyncpg.Record | None) -> ShadowRow:
    assert row is not None  # noqa: S101 - what was inserted or found just now
    facts = dict(row)
    facts["ended"] = End(facts["ended"]) if facts["ended"] else None
    return ShadowRow(**facts)


def _change(row: asyncpg.Record) -> tuple[ChangeKey, int, Example]:
    key = ChangeKey(row["action"], row["policy_id"], Kind(row["before"]), Kind(row["after"]))
    example = Example(
        row["decision_id"],
        row["decision_time"],
        row["resource"],
        tuple(row["policy_ids_before"]),
        tuple(row["policy_ids_after"]),
        row["reason"],
    )
    return key, row["count"], example
