"""What an enforcement service tells of its attempts, for ledger and log to be compared with.

Only claims say an effect's state, so whoever checks or explains asks here. Reading changes nothing:
no look, however late, closes an attempt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from remit import names
from remit.api.audit.v1 import event_pb2
from remit.api.effects.v1 import attempt_pb2
from remit.api.usage.v1 import usage_pb2
from remit.effects.settings import EffectSettings
from remit.postgres import Database
from remit.rpc.errors import Violation, invalid_request

MAX_KEYS: Final = 256
DEFAULT_PAGE_SIZE: Final = 256
MAX_PAGE_SIZE: Final = 1000
_MAX_ATTEMPT: Final = 2**31 - 1

_COLUMNS: Final = """
    a.claim, a.attempt, c.org, a.state, a.outcome, a.hold_nanos, a.cost_nanos, a.used,
    a.create_time, a.run, a.action, a.resource, a.intent_leaf, a.decision_id,
    clock_timestamp() - a.create_time AS age,
    CASE WHEN a.outcome IS NULL THEN clock_timestamp() - a.lease_expires END AS lapsed_for,
    CASE WHEN a.outcome IS NOT NULL THEN clock_timestamp() - a.update_time END AS ended_for,
    clock_timestamp() - a.closed_time AS closed_for
"""
_SELECT_THESE: Final = f"""
    SELECT {_COLUMNS}
    FROM unnest($1::uuid[], $2::int[]) AS asked (claim, attempt)
    JOIN effect_attempts a USING (claim, attempt) JOIN effect_claims c USING (claim)
"""  # noqa: S608 - constants of this module
_SELECT_SPAN: Final = f"""
    SELECT {_COLUMNS}
    FROM effect_attempts a JOIN effect_claims c USING (claim)
    WHERE (a.claim, a.attempt) > ($1::uuid, $2::int)
        AND (a.claim, a.attempt) <= ($3::uuid, $4::int)
    ORDER BY a.claim, a.attempt LIMIT $5
"""  # noqa: S608 - constants of this module

Attempt = attempt_pb2.Attempt
AttemptKey = attempt_pb2.AttemptKey


class Page(NamedTuple):
    """Attempts of a span, whether it has more, and when it was read."""

    attempts: list[Attempt]
    has_more: bool
    read_time: Timestamp


class AttemptReader:
    """Reads the attempts of one enforcement service."""

    def __init__(self, database: Database, settings: EffectSettings) -> None:
        self._database = database
        self.closing_bound = Duration()
        """Until money of what ended, or whose owner is gone, is where it belongs."""
        self.closing_bound.FromTimedelta(timedelta(seconds=settings.closing_bound_s))

    async def these(self, keys: Sequence[AttemptKey]) -> list[Attempt]:
        """One answer a key, in order. Raises INVALID_REQUEST for what is no batch of keys."""
        asked = checked_keys(keys)
        rows = await self._database.fetch(
            _SELECT_THESE, [claim for claim, _ in asked], [attempt for _, attempt in asked]
        )
        found = {(row["claim"], row["attempt"]): row for row in rows}
        return [
            attempt_of(found[place]) if place in found else unknown(key)
            for place, key in zip(asked, keys, strict=True)
        ]

    async def between(self, after: AttemptKey, through: AttemptKey, page_size: int) -> Page:
        """The next attempts after one key, up to another; a key without a claim is no limit.

        Raises INVALID_REQUEST.
        """
        first = _place(after, "after", (UUID(int=0), 0))
        last = _place(through, "through", (UUID(int=2**128 - 1), _MAX_ATTEMPT))
        if page_size < 0:
            raise invalid_request([Violation("page_size", f"is {page_size}; it is at least 0")])
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        read_time = Timestamp()
        read_time.FromDatetime(await self._database.fetchval("SELECT clock_timestamp()"))
        rows = await self._database.fetch(_SELECT_SPAN, *first, *last, size + 1)
        return Page([attempt_of(row) for row in rows[:size]], len(rows) > size, read_time)


def checked_keys(keys: Sequence[AttemptKey]) -> list[tuple[UUID, int]]:
    """The places of keys in the order of attempts. Raises INVALID_REQUEST with every fault."""
    if len(keys) > MAX_KEYS:
        raise invalid_request(
            [Violation("keys", f"has {len(keys)} keys; at most {MAX_KEYS} are allowed")]
        )
    faults = [fault for number, key in enumerate(keys) for fault in _faults(key, f"keys[{number}]")]
    if faults:
        raise invalid_request(faults)
    return [_placed(key) for key in keys]


def attempt_of(row: asyncpg.Record | Mapping[str, Any]) -> Attempt:
    """The message of a row."""
    attempt = Attempt(
        key=AttemptKey(claim=names.claim_name(str(row["claim"])), attempt=row["attempt"]),
        state=Attempt.State.Value(f"STATE_{row['state']}"),
        org=row["org"],
        hold_nanos=row["hold_nanos"],
        cost_nanos=row["cost_nanos"] or 0,
        used=usage_pb2.Usage.FromString(row["used"]) if row["used"] is not None else None,
        run=row["run"],
        action=row["action"],
        resource=row["resource"],
        intent_leaf_index=row["intent_leaf"],
        decision=row["decision_id"] or "",
    )
    attempt.create_time.FromDatetime(row["create_time"])
    if row["outcome"] is not None:
        attempt.outcome = event_pb2.Outcome.Value(f"OUTCOME_{row['outcome']}")
    for field in ("age", "lapsed_for", "ended_for", "closed_for"):
        since: timedelta | None = row[field]
        if since is not None and (since >= timedelta(0) or field != "lapsed_for"):
            getattr(attempt, field).FromTimedelta(max(since, timedelta(0)))
    return attempt


def unknown(key: AttemptKey) -> Attempt:
    """The answer for a key that no attempt has."""
    return Attempt(key=key, state=Attempt.STATE_UNKNOWN)


def _place(key: AttemptKey, field: str, without: tuple[UUID, int]) -> tuple[UUID, int]:
    if not key.claim:
        return without
    faults = _faults(key, field)
    if faults:
        raise invalid_request(faults)
    return _placed(key)


def _placed(key: AttemptKey) -> tuple[UUID, int]:
    return UUID(names.parse("claim", key.claim)[0]), key.attempt


def _faults(key: AttemptKey, field: str) -> list[Violation]:
    faults = []
    if not names.is_name("claim", key.claim):
        fault = "must be the name of a claim, claims/{claim}"
        faults.append(Violation(f"{field}.claim", fault))
    if key.attempt < 1:
        faults.append(Violation(f"{field}.attempt", f"is {key.attempt}; it is at least 1"))
    return faults
