"""What runs write: creations and journal entries, many in one commit.

Each entry names the fencing token of its writer and the sequence that it follows. Both are checked
in the statement that writes it, under the run's row lock, so a worker that lost its lease writes
nothing, and an entry that was committed although its writer never heard so is not written twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypeAlias
from uuid import UUID

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
PAUSED: Final = "paused"
"""First word of `paused <run> <fencing token>`: its worker ends what is under way, and leaves."""
STOPPED: Final = "stopped"
"""First word of `stopped <run> <fencing token>`: whoever works on the run stops at once."""


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
    traceparent: str = ""
    """The trace that creates it."""
    schedule_time: datetime | None = None
    """When it may start; None: at once."""


@dataclass(frozen=True, slots=True)
class CreatedRun:
    """The run of a request: the new one, or the one that the same request created before."""

    name: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class Control:
    """A pause or its end, written with the entry that journals it. Either gives the lease back."""

    request: str
    """Who asked, by kind and request id, such as `pause r1`."""
    is_pause: bool


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
    control: Control | None = None

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
        max_scheduled_runs: int,
    ) -> None:
        self._origin = origin
        self._max_queued_runs = max_queued_runs
        self._max_scheduled_runs = max_scheduled_runs
        self._commit: GroupCommit[Item, Outcome] = GroupCommit(
            database,
            self._write,
            name="run journal",
            opens=lambda _: "",  # the batch is one statement
            max_batch=max_batch,
            max_queue=max_queue,
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
        refused = await self._refused(connection, items)
        batch = _Batch(self._origin)
        for item in items:
            if id(item) not in refused:
                batch.take(item)
        written = await batch.write(connection)
        return [
            refused[id(item)]
            if id(item) in refused
            else await _outcome(connection, item, written=_run_of(item) in written)
            for item in items
        ]

    async def _refused(
        self, connection: Connection, items: Sequence[Item]
    ) -> dict[int, RemitError]:
        """What cannot be written whatever the database holds, by identity."""
        refused = await self._refused_by_queue(connection, items)
        appended: set[UUID] = set()
        for item in items:
            if not isinstance(item, Entry):
                continue
            if item.run_id in appended:
                refused[id(item)] = fenced(item.summary.name)
            appended.add(item.run_id)
        return refused

    async def _refused_by_queue(
        self, connection: Connection, items: Sequence[Item]
    ) -> dict[int, RemitError]:
        waiting = [item for item in items if isinstance(item, NewRun) and not item.owner]
        if not waiting:
            return {}
        found = await connection.fetchrow(COUNT_WAITING)
        queued, scheduled = (found["queued"], found["scheduled"]) if found else (0, 0)
        due = [new for new in waiting if new.schedule_time is None]
        later = [new for new in waiting if new.schedule_time is not None]
        room, room_later = self._max_queued_runs - queued, self._max_scheduled_runs - scheduled
        full = {id(new): queue_full(self._max_queued_runs) for new in due[max(0, room) :]}
        return full | {
            id(new): schedule_full(self._max_scheduled_runs) for new in later[max(0, room_later) :]
        }


@dataclass
class _Batch:
    """The rows of one commit. Those of a run are written only if the run may be."""

    origin: str
    runs: list[NewRun] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    contents: dict[tuple[bytes, UUID], bytes] = field(default_factory=dict)
    notices: list[tuple[UUID, str]] = field(default_factory=list)

    def take(self, item: Item) -> None:
        run = _run_of(item)
        self._keep(run, item.offer)
        for event in item.events:
            row, content = encode_event(event)
            self.events.append(row)
            self._keep(run, content)
        if isinstance(item, NewRun):
            # The first event holds task and context too, so their content is kept with it.
            self.runs.append(item)
            if not item.owner:
                self.notices.append((run, QUEUED))
        else:
            self.entries.append(item)
            for artifact in item.artifacts:
                self._keep(run, artifact)
            self.notices += [(run, notice) for notice in _orders(item)]
        last = f"{run} {item.events[-1].sequence} {item.fencing_token} {self.origin}"
        self.notices.append((run, last))

    def _keep(self, run: UUID, content: Content | None) -> None:
        if content is not None:
            self.contents[content.digest, run] = content.data

    async def write(self, connection: Connection) -> set[UUID]:
        """The runs that were created or appended to; of the others nothing is written."""
        if not self.events:
            return set()
        contents = [(run, digest, data) for (digest, run), data in sorted(self.contents.items())]
        events = [
            (e.run, e.sequence, e.event_time, e.percent, e.payload, e.content_digest, e.digest)
            for e in self.events
        ]
        runs = sorted(self.runs, key=lambda n: (n.org, n.run.subject, n.request_id))
        rows = await connection.fetch(
            _WRITE,
            *_columns([_run_row(new) for new in runs], 17),
            *_columns([_update_row(entry) for entry in self.entries], 9),
            *_columns(contents, 3),
            *_columns(events, 7),
            *_columns(self.notices, 2),
            [new.traceparent or None for new in runs],
            [new.run.priority for new in runs],
            [new.schedule_time for new in runs],
            [entry.control.request if entry.control else None for entry in self.entries],
            [entry.control.is_pause if entry.control else None for entry in self.entries],
        )
        return {row["run"] for row in rows}


def _orders(entry: Entry) -> Iterator[str]:
    """What replicas must do beside reading the journal. Goes out before the raised token does."""
    if entry.cancel_request_id:
        yield f"{STOPPED} {entry.run_id} {entry.fencing_token}"
    if entry.control is not None:
        is_pause = entry.control.is_pause
        yield f"{PAUSED} {entry.run_id} {entry.fencing_token}" if is_pause else QUEUED


def _run_of(item: Item) -> UUID:
    return run_id(item.run.name) if isinstance(item, NewRun) else item.run_id


async def _outcome(connection: Connection, item: Item, *, written: bool) -> Outcome | RemitError:
    if isinstance(item, Entry):
        return None if written else fenced(item.summary.name)
    if written:
        return CreatedRun(item.run.name, is_new=True)
    return await _earlier(connection, item)


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
        entry.fencing_token,
        entry.follows,
        _stored_state(entry.summary.state),
        entry.summary.SerializeToString(deterministic=True),
        entry.events[-1].sequence,
        entry.offer.digest if entry.offer else None,
        entry.cancel_request_id or None,
        entry.summary.state in TERMINAL,
    )


def _stored_state(state: run_pb2.RunState.ValueType) -> int:
    """A paused run keeps a state of those that go on; `pause_time` says that it does not now."""
    return run_pb2.RUN_STATE_RUNNING if state == run_pb2.RUN_STATE_PAUSED else state


def _columns(rows: Sequence[tuple[object, ...]], width: int) -> list[list[object]]:
    return [[row[i] for row in rows] for i in range(width)]


def queue_full(limit: int) -> RemitError:
    """OVERLOADED about the queue of runs."""
    return RemitError(
        reasons.ERROR_REASON_OVERLOADED, f"the queue of runs holds {limit} runs, its limit"
    )


def schedule_full(limit: int) -> RemitError:
    """OVERLOADED about runs whose time has not come."""
    return RemitError(
        reasons.ERROR_REASON_OVERLOADED, f"{limit} runs wait for their time, the limit"
    )


IS_DUE: Final = "(schedule_time IS NULL OR schedule_time <= clock_timestamp())"
"""Condition on a run that it may start now."""

COUNT_WAITING: Final = f"""
SELECT count(*) FILTER (WHERE {IS_DUE}) AS queued,
       count(*) FILTER (WHERE NOT {IS_DUE}) AS scheduled
FROM runs WHERE state = 1 AND pause_time IS NULL
"""  # noqa: S608 - made of constants

FIND_REQUEST: Final = """
SELECT run, body_digest FROM runs WHERE org = $1 AND subject = $2 AND request_id = $3
"""

# One statement, and so a transaction by itself: one round trip whatever the batch's size. `locked`
# locks rows in key order and reads their newest version; what is not in `written` leaves no trace.
_WRITE: Final = """
WITH fresh AS (
    INSERT INTO runs (
        run, org, subject, agent, agent_version, request_id, body_digest, state, create_time,
        deadline_time, summary, content_digest, last_sequence, offer_digest, fencing_token, owner,
        lease_expire_time, traceparent, priority, schedule_time
    )
    SELECT run, org, subject, agent, agent_version, request_id, body_digest, state, create_time,
           greatest(clock_timestamp(), schedule_time) + make_interval(secs => max_duration_s),
           summary, content_digest, last_sequence, offer_digest, fencing_token, owner,
           clock_timestamp() + make_interval(secs => lease_s), traceparent, priority, schedule_time
    FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[],
        $8::smallint[], $9::timestamptz[], $10::float8[], $11::bytea[], $12::bytea[],
        $13::bigint[], $14::bytea[], $15::bigint[], $16::text[], $17::float8[], $39::text[],
        $40::smallint[], $41::timestamptz[]
    ) AS new (
        run, org, subject, agent, agent_version, request_id, body_digest, state, create_time,
        max_duration_s, summary, content_digest, last_sequence, offer_digest, fencing_token, owner,
        lease_s, traceparent, priority, schedule_time
    )
    ON CONFLICT (org, subject, request_id) DO NOTHING
    RETURNING run
), entry AS MATERIALIZED (
    SELECT * FROM unnest(
        $18::uuid[], $19::bigint[], $20::bigint[], $21::smallint[], $22::bytea[], $23::bigint[],
        $24::bytea[], $25::text[], $26::boolean[], $42::text[], $43::boolean[]
    ) AS e (
        run, fencing_token, follows, state, summary, last_sequence, offer_digest,
        cancel_request_id, ends, control_request, pauses
    )
), locked AS MATERIALIZED (
    SELECT run, fencing_token, last_sequence, state FROM runs
    WHERE run = ANY($18::uuid[]) ORDER BY run FOR UPDATE
), held AS MATERIALIZED (
    SELECT entry.run FROM locked JOIN entry USING (run, fencing_token)
    WHERE locked.last_sequence = entry.follows AND locked.state < 3
), written AS MATERIALIZED (
    SELECT run FROM fresh UNION ALL SELECT run FROM held
), contents AS (
    INSERT INTO content (digest, bytes)
    SELECT DISTINCT ON (digest) digest, bytes
    FROM unnest($27::uuid[], $28::bytea[], $29::bytea[]) AS c (run, digest, bytes)
    JOIN written USING (run) ORDER BY digest
    ON CONFLICT (digest) DO NOTHING
), events AS (
    INSERT INTO run_events (
        run, sequence, event_time, percent, payload, content_digest, digest
    )
    SELECT e.* FROM unnest(
        $30::uuid[], $31::bigint[], $32::timestamptz[], $33::smallint[], $34::bytea[],
        $35::bytea[], $36::bytea[]
    ) AS e (run, sequence, event_time, percent, payload, content_digest, digest)
    JOIN written USING (run)
), updates AS (
    UPDATE runs SET
        state = e.state,
        summary = e.summary,
        last_sequence = e.last_sequence,
        offer_digest = coalesce(e.offer_digest, runs.offer_digest),
        cancel_request_id = coalesce(e.cancel_request_id, runs.cancel_request_id),
        control_request = coalesce(e.control_request, runs.control_request),
        deadline_time = runs.deadline_time
            + CASE WHEN e.pauses THEN interval '0'
                   ELSE coalesce(clock_timestamp() - runs.pause_time, interval '0') END,
        pause_time = CASE WHEN e.pauses THEN coalesce(runs.pause_time, clock_timestamp()) END,
        owner = CASE WHEN e.ends OR e.pauses IS NOT NULL THEN NULL ELSE runs.owner END,
        lease_expire_time =
            CASE WHEN e.ends OR e.pauses IS NOT NULL THEN NULL ELSE runs.lease_expire_time END
    FROM entry e JOIN held USING (run)
    WHERE runs.run = e.run
)
SELECT run, pg_notify('remit_runs', notice)
FROM unnest($37::uuid[], $38::text[]) WITH ORDINALITY AS n (run, notice, place)
     JOIN written USING (run)
ORDER BY place
"""
