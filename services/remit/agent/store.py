"""What runs write: creations and journal entries, many in one commit.

Each entry names the fencing token of its writer and the sequence that it follows. Both are checked
in the transaction that writes it, under the run's row lock, so a worker that lost its lease writes
nothing, and an entry that was committed although its writer never heard so is not written twice.
Batches lock runs, then insert content, each in key order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC
from typing import Final, TypeAlias
from uuid import UUID

import asyncpg

from remit import names
from remit.agent.journal import TERMINAL
from remit.agent.records import Content, EventRow, encode_event, encode_run, run_id
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.postgres import Connection, Database, GroupCommit
from remit.rpc.errors import RemitError

CHANNEL: Final = "remit_runs"
"""Postgres channel: every commit tells `<run> <last sequence> <fencing token> <origin>` on it."""
QUEUED: Final = "queued"
"""Payload on the channel that says a run waits for a worker."""


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to create with the first events of its journal."""

    org: str
    run: run_pb2.Run
    """The run after its events; its task and context are stored once."""
    request_id: str
    body_digest: bytes
    max_duration_s: float
    events: tuple[run_pb2.RunEvent, ...]
    owner: str = ""
    """The replica that works on it at once; empty: it is queued."""
    lease_s: float = 0.0
    fencing_token: int = 0
    offer: Content | None = None


@dataclass(frozen=True, slots=True)
class CreatedRun:
    """The run of a request: the new one, or the one that the same request created before."""

    name: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """Events to append to one run's journal, all or none."""

    summary: run_pb2.Run
    """The run after the events, without its task and context."""
    fencing_token: int
    events: tuple[run_pb2.RunEvent, ...]
    """In sequence, at least one."""
    offer: Content | None = None
    artifacts: tuple[Content, ...] = ()
    cancel_request_id: str = ""

    @property
    def run_id(self) -> UUID:
        """The run."""
        return run_id(self.summary.name)

    @property
    def follows(self) -> int:
        """The sequence that the first event follows."""
        return self.events[0].sequence - 1


Item: TypeAlias = NewRun | Entry
Outcome: TypeAlias = CreatedRun | None


class RunStore:
    """Writes runs and their journals by group commit."""

    def __init__(
        self,
        database: Database,
        *,
        origin: str,
        max_batch: int,
        max_queue: int,
        max_queued_runs: int,
    ) -> None:
        self._origin = origin
        self._max_queued_runs = max_queued_runs
        self._commit: GroupCommit[Item, Outcome] = GroupCommit(
            database, self._write, name="run journal", max_batch=max_batch, max_queue=max_queue
        )

    @property
    def commits(self) -> int:
        """Transactions committed so far."""
        return self._commit.commits

    async def create(self, new: NewRun) -> CreatedRun:
        """Stores a run with its first events.

        Raises KEY_REUSED if the request id belongs to another request, OVERLOADED if the queue of
        runs or of writes is full, DEPENDENCY_UNAVAILABLE if the commit is unknown.
        """
        created = await self._commit.submit(new)
        if created is None:
            raise TypeError(new)
        return created

    async def append(self, entry: Entry) -> None:
        """Appends to a journal.

        Raises FENCED if the writer does not own the run or the run has ended, OVERLOADED if the
        queue of writes is full, DEPENDENCY_UNAVAILABLE if the commit is unknown.
        """
        await self._commit.submit(entry)

    async def _write(
        self, connection: Connection, items: Sequence[Item]
    ) -> Sequence[Outcome | RemitError]:
        created = await self._insert_runs(connection, [i for i in items if isinstance(i, NewRun)])
        fenced = await _fenced(connection, [i for i in items if isinstance(i, Entry)])
        accepted = _Batch(self._origin)
        outcomes: list[Outcome | RemitError] = []
        for item in items:
            outcome = created[id(item)] if isinstance(item, NewRun) else fenced.get(id(item))
            outcomes.append(outcome)
            accepted.take(item, outcome)
        await accepted.write(connection)
        return outcomes

    async def _insert_runs(
        self, connection: Connection, new: list[NewRun]
    ) -> dict[int, CreatedRun | RemitError]:
        if not new:
            return {}
        refused = await self._refused_by_queue(connection, new)
        rest = sorted(
            (n for n in new if id(n) not in refused),
            key=lambda n: (n.org, n.run.subject, n.request_id),
        )
        inserted = await connection.fetch(_INSERT_RUNS, *_columns([_run_row(n) for n in rest], 17))
        fresh = {row["run"] for row in inserted}
        outcomes: dict[int, CreatedRun | RemitError] = dict(refused)
        for item in rest:
            outcomes[id(item)] = (
                CreatedRun(item.run.name, is_new=True)
                if run_id(item.run.name) in fresh
                else await _earlier(connection, item)
            )
        return outcomes

    async def _refused_by_queue(
        self, connection: Connection, new: list[NewRun]
    ) -> dict[int, RemitError]:
        queued = [n for n in new if not n.owner]
        if not queued:
            return {}
        length = await connection.fetchval("SELECT count(*) FROM runs WHERE state = 1")
        room = max(0, self._max_queued_runs - int(length))
        return {id(n): queue_full(self._max_queued_runs) for n in queued[room:]}


@dataclass
class _Batch:
    """The rows of the items that a transaction accepted."""

    origin: str
    events: list[EventRow] = field(default_factory=list)
    contents: dict[bytes, bytes] = field(default_factory=dict)
    updates: list[tuple[object, ...]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def take(self, item: Item, outcome: Outcome | RemitError) -> None:
        if isinstance(outcome, RemitError) or (outcome is not None and not outcome.is_new):
            return
        self._keep(item.offer)
        self._take_events(item.events)
        if isinstance(item, NewRun):
            # The first event holds task and context too, so their content is kept with it.
            run = run_id(item.run.name)
            if not item.owner:
                self.notices.append(QUEUED)
        else:
            run = item.run_id
            for artifact in item.artifacts:
                self._keep(artifact)
            self.updates.append(_update_row(item))
        self.notices.append(f"{run} {item.events[-1].sequence} {item.fencing_token} {self.origin}")

    def _take_events(self, events: Sequence[run_pb2.RunEvent]) -> None:
        for event in events:
            row, content = encode_event(event)
            self.events.append(row)
            self._keep(content)

    def _keep(self, content: Content | None) -> None:
        if content is not None:
            self.contents[content.digest] = content.data

    async def write(self, connection: Connection) -> None:
        if not self.events:
            return
        contents = sorted(self.contents.items())
        events = [
            (e.run, e.sequence, e.event_time, e.percent, e.payload, e.content_digest, e.digest)
            for e in self.events
        ]
        await connection.execute(
            _WRITE,
            *_columns(contents, 2),
            *_columns(events, 7),
            *_columns(self.updates, 7),
            sorted(set(self.notices)),
        )


async def _fenced(connection: Connection, entries: list[Entry]) -> dict[int, RemitError]:
    """The entries that may not be written, by identity; locks the rows of the others."""
    if not entries:
        return {}
    runs = sorted({entry.run_id for entry in entries})
    rows = await connection.fetch(_LOCK_RUNS, runs)
    held = {row["run"]: row for row in rows}
    refused: dict[int, RemitError] = {}
    written: set[UUID] = set()
    for entry in entries:
        run = entry.run_id
        if run in written or not _may_write(held.get(run), entry):
            refused[id(entry)] = fenced(entry.summary.name)
        else:
            written.add(run)
    return refused


def _may_write(row: asyncpg.Record | None, entry: Entry) -> bool:
    return (
        row is not None
        and row["fencing_token"] == entry.fencing_token
        and row["last_sequence"] == entry.follows
        and row["state"] not in TERMINAL
    )


def fenced(run: str) -> RemitError:
    """FENCED about a run."""
    return RemitError(
        reasons.ERROR_REASON_FENCED, f"{run} is owned by another worker now, or has ended"
    )


async def _earlier(connection: Connection, new: NewRun) -> CreatedRun | RemitError:
    row = await connection.fetchrow(FIND_REQUEST, new.org, new.run.subject, new.request_id)
    if row is None or row["body_digest"] != new.body_digest:
        return key_reused(new.request_id)
    return CreatedRun(names.run_name(str(row["run"])), is_new=False)


def key_reused(request_id: str) -> RemitError:
    """KEY_REUSED about a request id."""
    return RemitError(
        reasons.ERROR_REASON_KEY_REUSED, f"request_id {request_id} was used for another request"
    )


def _run_row(new: NewRun) -> tuple[object, ...]:
    run = new.run
    summary, given = encode_run(run)
    return (
        run_id(run.name),
        new.org,
        run.subject,
        run.agent,
        run.agent_version,
        new.request_id,
        new.body_digest,
        run.state,
        run.create_time.ToDatetime(UTC),
        new.max_duration_s,
        summary,
        given.digest,
        run.last_sequence,
        new.offer.digest if new.offer else None,
        new.fencing_token,
        new.owner or None,
        new.lease_s if new.owner else None,
    )


def _update_row(entry: Entry) -> tuple[object, ...]:
    return (
        entry.run_id,
        entry.summary.state,
        entry.summary.SerializeToString(deterministic=True),
        entry.events[-1].sequence,
        entry.offer.digest if entry.offer else None,
        entry.cancel_request_id or None,
        entry.summary.state in TERMINAL,
    )


def _columns(rows: Sequence[tuple[object, ...]], width: int) -> list[list[object]]:
    return [[row[i] for row in rows] for i in range(width)]


def queue_full(limit: int) -> RemitError:
    """OVERLOADED about the queue of runs."""
    return RemitError(
        reasons.ERROR_REASON_OVERLOADED, f"the queue of runs holds {limit} runs, its limit"
    )


FIND_REQUEST: Final = """
SELECT run, body_digest FROM runs WHERE org = $1 AND subject = $2 AND request_id = $3
"""

_INSERT_RUNS: Final = """
INSERT INTO runs (
    run, org, subject, agent, agent_version, request_id, body_digest, state, create_time,
    deadline_time, summary, content_digest, last_sequence, offer_digest, fencing_token, owner,
    lease_expire_time
)
SELECT run, org, subject, agent, agent_version, request_id, body_digest, state, create_time,
       clock_timestamp() + make_interval(secs => max_duration_s), summary, content_digest,
       last_sequence, offer_digest, fencing_token, owner,
       clock_timestamp() + make_interval(secs => lease_s)
FROM unnest(
    $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[],
    $8::smallint[], $9::timestamptz[], $10::float8[], $11::bytea[], $12::bytea[], $13::bigint[],
    $14::bytea[], $15::bigint[], $16::text[], $17::float8[]
) AS new (
    run, org, subject, agent, agent_version, request_id, body_digest, state, create_time,
    max_duration_s, summary, content_digest, last_sequence, offer_digest, fencing_token, owner,
    lease_s
)
ON CONFLICT (org, subject, request_id) DO NOTHING
RETURNING run
"""

_LOCK_RUNS: Final = """
SELECT run, fencing_token, last_sequence, state FROM runs
WHERE run = ANY($1::uuid[]) ORDER BY run FOR UPDATE
"""

# One statement, so that a batch costs few round trips whatever its size.
_WRITE: Final = """
WITH contents AS (
    INSERT INTO content (digest, bytes)
    SELECT * FROM unnest($1::bytea[], $2::bytea[])
    ON CONFLICT (digest) DO NOTHING
), events AS (
    INSERT INTO run_events (
        run, sequence, event_time, percent, payload, content_digest, digest
    )
    SELECT * FROM unnest(
        $3::uuid[], $4::bigint[], $5::timestamptz[], $6::smallint[], $7::bytea[], $8::bytea[],
        $9::bytea[]
    )
), updates AS (
    UPDATE runs SET
        state = u.state,
        summary = u.summary,
        last_sequence = u.last_sequence,
        offer_digest = coalesce(u.offer_digest, runs.offer_digest),
        cancel_request_id = coalesce(u.cancel_request_id, runs.cancel_request_id),
        owner = CASE WHEN u.ends THEN NULL ELSE runs.owner END,
        lease_expire_time = CASE WHEN u.ends THEN NULL ELSE runs.lease_expire_time END
    FROM unnest(
        $10::uuid[], $11::smallint[], $12::bytea[], $13::bigint[], $14::bytea[], $15::text[],
        $16::boolean[]
    ) AS u (run, state, summary, last_sequence, offer_digest, cancel_request_id, ends)
    WHERE runs.run = u.run
)
SELECT pg_notify('remit_runs', notice) FROM unnest($17::text[]) AS notice
"""
