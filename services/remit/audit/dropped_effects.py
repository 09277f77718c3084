"""What is left of effects in months that were dropped: the ids of their events say it.

`leaves` keeps every id for ever, and the id of an effect's event names claim, attempt and what it
tells: `{claim}-1-intent`, `{claim}-1-succeeded`, of the claim's UUID. So the check of completeness
sees into dropped months; what it cannot compare there is whose the effect was.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from remit.audit.archived_months import ArchivedMonths
from remit.audit.completeness import Key
from remit.audit.reading import OUTCOMES
from remit.audit.store import MOST_AHEAD
from remit.postgres import Database

_PREFIX: Final = "claims/"
_CLAIM_CHARS: Final = 36
"""Of a UUID."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ID: Final = re.compile(r"([0-9a-f-]{36})-([1-9][0-9]{0,9})-([a-z_]+)")
_INTENT: Final = "intent"
_OUTCOMES: Final = frozenset(word for word in OUTCOMES.values() if word)
_BEHIND: Final = "."
"""Sorts just behind the `-` that follows a claim in the ids of its events."""
# From claim to claim by the index, whatever number of events each has.
_CLAIMS: Final = f"""
    WITH RECURSIVE step(claim) AS (
        (SELECT left(event_id, {_CLAIM_CHARS}) FROM leaves
         WHERE event_id > $1 AND event_id < $2 ORDER BY event_id LIMIT 1)
        UNION ALL
        SELECT (SELECT left(event_id, {_CLAIM_CHARS}) FROM leaves
                WHERE event_id > step.claim || '{_BEHIND}' AND event_id < $2
                ORDER BY event_id LIMIT 1)
        FROM step WHERE step.claim IS NOT NULL
    )
    SELECT claim FROM step WHERE claim ~ '^[0-9a-f-]{{36}}$' LIMIT $3
"""  # noqa: S608 - texts of this module
_EVENTS: Final = f"""
    SELECT leaf_index, event_id, month
    FROM unnest($1::text[]) AS wanted(claim)
    JOIN leaves ON event_id > claim || '-' AND event_id < claim || '{_BEHIND}'
    JOIN archived_months ON leaf_index BETWEEN first_index AND last_index
    ORDER BY leaf_index
"""  # noqa: S608 - as above
_LEAVES: Final = """
    SELECT leaf_index, event_id FROM leaves
    JOIN archived_months ON leaf_index BETWEEN first_index AND last_index
    WHERE leaf_index = ANY($1::bigint[])
"""


class DroppedEvent(NamedTuple):
    """An event of an effect, as its id tells it; `outcome` is empty of an intent."""

    leaf_index: int
    key: Key
    outcome: str
    append_time: datetime
    """The beginning of the month in which the log took it."""


class DroppedEffects:
    """Reads effects of dropped months."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._months = ArchivedMonths(database)

    async def claims(self, after: str, through: str, most: int) -> list[str]:
        """The first claims of a span that may have events in dropped months, in order."""
        dropped = await self._months.all()
        if not dropped:
            return []
        # A claim is named after the moment at which it was made, before its first event.
        last = min(through.removeprefix(_PREFIX), _uuid_at(dropped[-1].end + MOST_AHEAD))
        start, end = after.removeprefix(_PREFIX), last + _BEHIND
        rows = await self._database.fetch(_CLAIMS, start, end, most)
        return [_PREFIX + row["claim"] for row in rows]

    async def events(self, claims: Sequence[str]) -> list[DroppedEvent]:
        """Events of claims that lie in dropped months, in the order of the log."""
        uuids = [claim.removeprefix(_PREFIX) for claim in claims]
        rows = await self._database.fetch(_EVENTS, uuids) if uuids else []
        found = [
            (row["leaf_index"], told, datetime.combine(row["month"], datetime.min.time(), UTC))
            for row in rows
            if (told := _told(row["event_id"])) is not None
        ]
        return [DroppedEvent(index, *told, time) for index, told, time in found]

    async def intents(self, indices: Sequence[int]) -> dict[int, Key]:
        """Whose intents these leaves are, those that are intents of dropped months."""
        rows = await self._database.fetch(_LEAVES, indices) if indices else []
        told = ((row["leaf_index"], _told(row["event_id"])) for row in rows)
        return {index: each[0] for index, each in told if each is not None and not each[1]}


def _told(event_id: str) -> tuple[Key, str] | None:
    """Attempt and outcome that an id names; None: it is no event of an effect."""
    match = _ID.fullmatch(event_id)
    if match is None:
        return None
    key, word = Key(_PREFIX + match[1], int(match[2])), match[3]
    if word == _INTENT:
        return key, ""
    return (key, word.upper()) if word.upper() in _OUTCOMES else None


def _uuid_at(time: datetime) -> str:
    """What no UUIDv7 made before a time sorts behind."""
    digits = f"{(time - _EPOCH) // timedelta(milliseconds=1):012x}"
    return f"{digits[:8]}-{digits[8:]}"
