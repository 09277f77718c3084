"""What the log has of effects, claim by claim, for the check of its completeness."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

import asyncpg

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.completeness import Key, Recorded
from remit.audit.dropped_effects import DroppedEffects, DroppedEvent
from remit.audit.leaf import Leaf, LeafError
from remit.audit.packing import PackingError, unpack
from remit.postgres import Database
from remit.rpc.errors import RemitError

_INTENT: Final = "INTENT"
_OUTCOME: Final = "OUTCOME"
_LAST_ATTEMPT: Final = 2**31 - 1
_HEAD: Final = """
    SELECT (SELECT coalesce(max(leaf_index) + 1, 0) FROM leaves) AS size, clock_timestamp() AS time
"""
_CLAIMS: Final = """
    SELECT DISTINCT claim FROM events
    WHERE claim <> '' AND claim >= $1 AND claim <= $2 ORDER BY claim LIMIT $3
"""
_EVENTS: Final = """
    SELECT leaf_index, append_time, leaf FROM events
    WHERE claim <> '' AND claim = ANY($1::text[]) ORDER BY leaf_index
"""
_LEAVES: Final = "SELECT leaf_index, leaf FROM events WHERE leaf_index = ANY($1::bigint[])"
AFTER_ALL: Final = Key("claims/~", _LAST_ATTEMPT)
"""Comes after every attempt that there can be."""


class Head(NamedTuple):
    """How far the log is, and its database's time."""

    tree_size: int
    time: datetime


class Page(NamedTuple):
    """Attempts of a span, and the last key of it where there is more."""

    recorded: dict[Key, Recorded]
    last: Key | None


class EffectEvents:
    """Reads the log's events of effects."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._dropped = DroppedEffects(database)

    async def head(self) -> Head:
        """How far the log is now."""
        row = await self._database.fetchrow(_HEAD)
        assert row is not None  # noqa: S101 - a select of aggregates has a row
        return Head(row["size"], row["time"])

    async def page(self, after: Key, through: Key, claims: int) -> Page:
        """The attempts after one key, up to another: those of `claims` claims at most.

        Raises DATA_CORRUPT for a leaf that was changed beyond reading.
        """
        rows = await self._database.fetch(_CLAIMS, after.claim, through.claim, claims + 1)
        dropped = await self._dropped.claims(after.claim, through.claim, claims + 1)
        every = sorted({*(row["claim"] for row in rows), *dropped})
        names = every[:claims]
        recorded: dict[Key, Recorded] = {}
        for row in await self._database.fetch(_EVENTS, names):
            _take(recorded, row)
        # Looked at last: a month that is dropped meanwhile is seen here.
        for event in await self._dropped.events(names):
            _take_dropped(recorded, event)
        found = {key: each for key, each in recorded.items() if after < key <= through}
        last = Key(names[-1], _LAST_ATTEMPT) if len(every) > claims else None
        return Page(found, last)

    async def intents(self, indices: Sequence[int]) -> dict[int, Key]:
        """Whose intents these leaves are, those that are intents. Raises DATA_CORRUPT."""
        rows = await self._database.fetch(_LEAVES, indices)
        leaves = ((row["leaf_index"], _leaf(row)) for row in rows)
        found = {i: Key(leaf.claim, leaf.attempt) for i, leaf in leaves if leaf.kind == _INTENT}
        there = {row["leaf_index"] for row in rows}
        return found | await self._dropped.intents([i for i in indices if i not in there])


def _take(recorded: dict[Key, Recorded], row: asyncpg.Record) -> None:
    index, leaf = row["leaf_index"], _leaf(row)
    if leaf.kind not in {_INTENT, _OUTCOME}:
        return
    found = recorded.setdefault(
        Key(leaf.claim, leaf.attempt), Recorded(leaf.org, leaf.run, row["append_time"])
    )
    if leaf.kind == _INTENT:
        found.intents.append(index)
    else:
        found.outcomes.append((index, leaf.outcome))


def _take_dropped(recorded: dict[Key, Recorded], event: DroppedEvent) -> None:
    """Take up an event of a dropped month, unless it stands in the database all the same."""
    found = recorded.setdefault(event.key, Recorded("", "", event.append_time))
    found.began = min(found.began, event.append_time)
    if not event.outcome and event.leaf_index not in found.intents:
        found.intents.insert(0, event.leaf_index)
    elif event.outcome and event.leaf_index not in [leaf for leaf, _ in found.outcomes]:
        found.outcomes.append((event.leaf_index, event.outcome))


def _leaf(row: asyncpg.Record) -> Leaf:
    try:
        return Leaf.decode(unpack(row["leaf"]))
    except (LeafError, PackingError) as error:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_DATA_CORRUPT, f"leaf {row['leaf_index']}: {error}"
        ) from error
