"""What is read of runs: one run, pages of runs, stretches of a journal, content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg

from remit import names
from remit.agent.call_facts import CallFacts
from remit.agent.definitions import AgentDefinition
from remit.agent.history import Exchange, exchanges_of
from remit.agent.outbox import DELIVERY, fill
from remit.agent.records import (
    EventRow,
    Summary,
    conversation_id,
    decode_event,
    decode_run,
    erased_run,
    run_id,
)
from remit.agent.sealing import KEY_COLUMNS, Content, Key, KeyRef, Keys, key_ref, request_erased
from remit.agent.store import FIND_REQUEST, key_reused
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.postgres import Database
from remit.rpc.errors import RemitError
from remit.subject_keys import is_erased


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run with what only the service knows of it."""

    run: run_pb2.Run
    org: str
    cancel_request_id: str
    control_request: str
    """The pause or its end that was asked for last: its kind and request id."""
    fencing_token: int
    key: KeyRef
    """What it is sealed with."""
    is_deleted: bool = False
    """Whether its conversation, or that of a run above it, was deleted: nobody is shown it."""


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs to list; an empty field does not filter."""

    org: str
    subject: str = ""
    agent: str = ""
    state: run_pb2.RunState.ValueType = run_pb2.RUN_STATE_UNSPECIFIED
    parent: str = ""
    conversation: str = ""


class RunReader:
    """Reads runs.

    Every method raises DEPENDENCY_UNAVAILABLE when the database is away, or audit, which has the
    keys; and SUBJECT_ERASED where what is asked for cannot be read any more, unless it says
    otherwise.
    """

    def __init__(self, database: Database, keys: Keys) -> None:
        self._database = database
        self.keys = keys

    @property
    def database(self) -> Database:
        """Where runs are, for those who read them in another order."""
        return self._database

    async def run(self, name: str) -> StoredRun:
        """The run of a full name; if its subject was erased, what is left. Raises RUN_NOT_FOUND."""
        row = await self._database.fetchrow(f"{_SELECT_RUN} WHERE run = $1", run_id(name))
        if row is None:
            raise not_found(name)
        [run] = await self._shown([row])
        return StoredRun(
            run,
            row["org"],
            row["cancel_request_id"] or "",
            row["control_request"] or "",
            row["fencing_token"],
            key_ref(row),
            is_deleted=row["delete_time"] is not None,
        )

    async def run_of_request(
        self, org: str, subject: str, request_id: str, body_digest: bytes
    ) -> str | None:
        """The run that the same request created before, if any. Raises KEY_REUSED.

        Of a run that was erased nobody can say what was asked for: then SUBJECT_ERASED.
        """
        row = await self._database.fetchrow(FIND_REQUEST, org, subject, request_id)
        if row is None:
            return None
        if row["body_digest"] != body_digest:
            await self._check_same(subject, request_id, body_digest, row)
        return names.run_name(str(row["run"]))

    async def runs(self, only: RunFilter, *, limit: int, before: str = "") -> list[run_pb2.Run]:
        """Up to `limit` runs, newest first, older than the run `before`.

        Of one whose subject was erased what is left.
        """
        rows = await self._database.fetch(
            _LIST_RUNS,
            only.org,
            only.subject or None,
            only.agent or None,
            only.state or None,
            run_id(before) if before else None,
            limit,
            run_id(only.parent) if only.parent else None,
            conversation_id(only.conversation) if only.conversation else None,
        )
        return await self._shown(rows)

    async def unfinished_sub_runs(self, name: str) -> list[str]:
        """The sub-runs of a run that have not ended, the oldest first."""
        rows = await self._database.fetch(
            "SELECT run FROM runs WHERE parent = $1 AND state < 3 ORDER BY run", run_id(name)
        )
        return [names.run_name(str(row["run"])) for row in rows]

    async def lineage(self, name: str) -> list[str]:
        """The agents of a run and of those above it, `agents/{agent}`, its own first."""
        rows = await self._database.fetch(_LINEAGE, run_id(name))
        return [row["agent"] for row in rows]

    async def history(self, run: run_pb2.Run) -> tuple[Exchange, ...]:
        """What a run's model sees of what came before, oldest first: the same at every reading.

        Read from the journals of the earlier runs, of which nothing is copied. Raises DATA_CORRUPT.
        """
        found: list[Exchange] = []
        if run.history_runs:
            found = await self.exchanges(run.previous_run, limit=run.history_runs)
        if len(found) < run.history_runs:
            raise RemitError(
                reasons.ERROR_REASON_DATA_CORRUPT,
                f"{run.name}: {run.history_runs} runs came before it, and {len(found)} are found",
            )
        return tuple(reversed(found))

    async def exchanges(
        self, newest: str, *, limit: int, max_bytes: int | None = None
    ) -> list[Exchange]:
        """Up to `limit` exchanges, newest first: of that run, of the run before it, and so on.

        With `max_bytes` none is read whose newer ones have more than that, but for one kibibyte
        each. Raises DATA_CORRUPT for an end of a run that was changed or stands in the wrong place.
        """
        rows = await self._database.fetch(_SELECT_EXCHANGES, run_id(newest), limit, max_bytes)
        keys = {run: await self.keys.to_read(ref, run) for run, ref in _key_refs(rows).items()}
        ends = [_event(row, keys[row["run"]]) for row in rows]
        return exchanges_of(newest, ends)

    async def events(self, name: str, *, after: int, limit: int) -> list[run_pb2.RunEvent]:
        """Up to `limit` events after a sequence. Raises DATA_CORRUPT for a row that was changed."""
        rows = await self._database.fetch(_SELECT_EVENTS, run_id(name), after, limit)
        if not rows:
            return []
        key = await self.keys.to_read(key_ref(rows[0]), rows[0]["run"])
        return [_event(row, key) for row in rows]

    async def journal(self, name: str, *, page: int) -> list[run_pb2.RunEvent]:
        """The whole journal, read in pages. Raises DATA_CORRUPT."""
        events: list[run_pb2.RunEvent] = []
        while True:
            more = await self.events(name, after=len(events), limit=page)
            events += more
            if len(more) < page:
                return events

    async def offer(self, name: str) -> bytes | None:
        """The tools pinned for the run's model, or None before it was asked."""
        return await self._database.fetchval(_SELECT_OFFER, run_id(name))  # type: ignore[no-any-return]

    async def artifact(self, stored: StoredRun, digest: bytes) -> bytes:
        """The bytes of a file that a run made. Raises DATA_CORRUPT."""
        key = await self.keys.to_read(stored.key, run_id(stored.run.name))
        addresses = [digest] if key is None else [key.keyed(digest), digest]
        rows = await self._database.fetch(
            "SELECT digest, bytes FROM content WHERE digest = ANY($1::bytea[])", addresses
        )
        found = {row["digest"]: Content(row["digest"], row["bytes"]) for row in rows}
        for address in addresses:
            if address in found:
                data = found[address].data if key is None else key.opened(found[address])
                if hashlib.sha256(data).digest() == digest:
                    return data
        raise RemitError(
            reasons.ERROR_REASON_DATA_CORRUPT,
            f"content {digest.hex()} is missing or does not match its digest",
        )

    async def named_claims(self, name: str) -> list[str]:
        """The claims that a journal names in clear; it takes no key."""
        rows = await self._database.fetch(
            "SELECT claim FROM run_events WHERE run = $1 AND claim IS NOT NULL ORDER BY sequence",
            run_id(name),
        )
        return [names.claim_name(str(row["claim"])) for row in rows]

    async def _check_same(
        self, subject: str, request_id: str, body_digest: bytes, row: asyncpg.Record
    ) -> None:
        try:
            key = await self.keys.to_read(key_ref(row), row["run"])
        except RemitError as error:
            raise request_erased(request_id, subject) if is_erased(error) else error from error
        if key is None or not key.knows(row["body_digest"], body_digest):
            raise key_reused(request_id)

    async def _shown(self, rows: Sequence[asyncpg.Record]) -> list[run_pb2.Run]:
        """Runs as clients see them, in order."""
        keys = await self.keys.to_show(_key_refs(rows).items())
        return [_run(row, keys[row["run"]]) for row in rows]


class DefinitionStore:
    """Agent definitions by version, kept for the runs that began with them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(self, definitions: tuple[AgentDefinition, ...]) -> None:
        """Stores the versions that are not stored yet."""
        await self._database.execute(
            _SAVE_DEFINITIONS,
            [d.version for d in definitions],
            [d.full_name for d in definitions],
            [d.canonical() for d in definitions],
        )

    async def get(self, version: str) -> AgentDefinition:
        """The definition of a version. Raises DATA_CORRUPT if it is missing or changed."""
        canonical: bytes | None = await self._database.fetchval(
            "SELECT definition FROM agent_definitions WHERE version = $1", version
        )
        if canonical is None or hashlib.sha256(canonical).hexdigest() != version:
            raise RemitError(
                reasons.ERROR_REASON_DATA_CORRUPT,
                f"the agent definition {version} is missing or does not match its digest",
            )
        return AgentDefinition.from_canonical(canonical)


def not_found(name: str) -> RemitError:
    """RUN_NOT_FOUND; says the same whether the run is missing or another's."""
    return RemitError(reasons.ERROR_REASON_RUN_NOT_FOUND, f"{name} does not exist")


def run_erased(run: run_pb2.Run) -> RemitError:
    """SUBJECT_ERASED about a run of which nothing but its public facts is left."""
    return RemitError(
        reasons.ERROR_REASON_SUBJECT_ERASED,
        f"{run.subject} was erased, and with it what {run.name} was about",
    )


def _run(row: asyncpg.Record, key: Key | None) -> run_pb2.Run:
    summary = Summary(row["summary"], row["sealed"])
    if row["key_id"] is not None and key is None:
        run = erased_run(summary)
    else:
        run = decode_run(summary, Content(row["content_digest"], row["bytes"]), key)
    if row["delivery"] is not None:
        fill(run.webhook, row["delivery"], key)
    return run


def _event(row: asyncpg.Record, key: Key | None) -> run_pb2.RunEvent:
    return decode_event(_event_row(row), row["bytes"], key)


def _key_refs(rows: Sequence[asyncpg.Record]) -> dict[UUID, KeyRef]:
    return {row["run"]: key_ref(row) for row in rows}


def _event_row(row: asyncpg.Record) -> EventRow:
    claim, leaf = row["claim"], row["intent_leaf_index"]
    return EventRow(
        row["run"],
        row["sequence"],
        row["event_time"],
        row["percent"],
        row["payload"],
        row["content_digest"],
        row["digest"],
        CallFacts(claim, row["resource"], leaf) if claim is not None else None,
    )


_EVENT: Final = f"""
e.run, e.sequence, e.event_time, e.percent, e.payload, e.content_digest, e.digest, e.claim,
e.resource, e.intent_leaf_index, c.bytes, {KEY_COLUMNS}
"""

_SELECT_RUN: Final = f"""
SELECT runs.run, runs.org, {KEY_COLUMNS}, runs.summary, runs.sealed,
       runs.content_digest, runs.cancel_request_id, runs.control_request, runs.fencing_token,
       runs.delete_time, content.bytes, {DELIVERY}
FROM runs JOIN content ON content.digest = runs.content_digest
"""  # noqa: S608 - made of constants

_LIST_RUNS: Final = f"""
{_SELECT_RUN}
WHERE org = $1
  AND ($2::text IS NULL OR subject = $2)
  AND ($3::text IS NULL OR agent = $3)
  AND ($4::smallint IS NULL
       OR $4 = CASE WHEN state < 3 AND pause_time IS NOT NULL THEN 6 ELSE state END)
  AND ($5::uuid IS NULL OR run < $5)
  AND ($7::uuid IS NULL OR parent = $7)
  AND ($8::uuid IS NULL OR conversation = $8)
  AND delete_time IS NULL
ORDER BY run DESC LIMIT $6
"""

_LINEAGE: Final = """
WITH RECURSIVE line AS (
    SELECT run, parent, agent, 1 AS height FROM runs WHERE run = $1
    UNION ALL
    SELECT r.run, r.parent, r.agent, line.height + 1 FROM runs r JOIN line ON r.run = line.parent
)
SELECT agent FROM line ORDER BY height
"""

_SELECT_EVENTS: Final = f"""
SELECT {_EVENT}
FROM run_events e JOIN runs USING (run) LEFT JOIN content c ON c.digest = e.content_digest
WHERE e.run = $1 AND e.sequence > $2 ORDER BY e.sequence LIMIT $3
"""  # noqa: S608 - made of constants

_SELECT_EXCHANGES: Final = f"""
WITH RECURSIVE line AS (
    SELECT run, previous_run, last_sequence, 1 AS age FROM runs WHERE run = $1
    UNION ALL
    SELECT r.run, r.previous_run, r.last_sequence, line.age + 1
    FROM runs r JOIN line ON r.run = line.previous_run WHERE line.age < $2
), counted AS (
    -- How the task and its facts are stored takes less than 1024 bytes more than they have.
    SELECT line.*, sum(given - 1024) OVER (ORDER BY age) AS total, given - 1024 AS own
    FROM line JOIN runs USING (run) JOIN content c ON c.digest = runs.content_digest
         CROSS JOIN LATERAL coalesce(runs.content_bytes, octet_length(c.bytes)) AS given
)
SELECT {_EVENT}
FROM counted JOIN runs USING (run)
     JOIN run_events e ON e.run = counted.run AND e.sequence = counted.last_sequence
     LEFT JOIN content c ON c.digest = e.content_digest
WHERE $3::bigint IS NULL OR counted.total - counted.own <= $3
ORDER BY counted.age
"""  # noqa: S608 - made of constants

_SELECT_OFFER: Final = """
SELECT content.bytes FROM runs JOIN content ON content.digest = runs.offer_digest WHERE run = $1
"""

_SAVE_DEFINITIONS: Final = """
INSERT INTO agent_definitions (version, agent, definition)
SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[]) AS d ORDER BY 1
ON CONFLICT (version) DO NOTHING
"""
