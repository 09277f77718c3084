"""What runs write: creations and journal entries, many in one commit.

Each entry names the fencing token of its writer and the sequence that it follows. Both are checked
in the statement that writes it, under the run's row lock, so a worker that lost its lease writes
nothing, and an entry that was committed although its writer never heard so is not written twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from uuid import UUID

from remit import names
from remit.agent.concurrency import opening, refused_by_concurrency
from remit.agent.entries import CreatedRun, Entry, Item, NewRun, run_of
from remit.agent.journal import TERMINAL
from remit.agent.records import EventRow, encode_event
from remit.agent.sealing import KEY_COLUMNS, Content
from remit.agent.statements import WRITE, ContentRow, Notice, stored_digest, write_arguments
from remit.agent.threads import not_continued
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.postgres import Connection, Database, GroupCommit, unavailable
from remit.rpc.errors import RemitError

CHANNEL: Final = "remit_runs"
"""Postgres channel: every commit tells `<run> <last sequence> <fencing token> <origin>` on it."""
QUEUED: Final = "queued"
"""Payload on the channel that says a run waits for a worker."""
PAUSED: Final = "paused"
"""First word of `paused <run> <fencing token>`: its worker ends what is under way, and leaves."""
TOLD: Final = "told"
"""Payload on the channel that says that the end of a run is to be told."""
STOPPED: Final = "stopped"
"""First word of `stopped <run> <fencing token>`: whoever works on the run stops at once."""

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
            opens=opening,  # mostly nothing: then the batch is one statement
            max_batch=max_batch,
            max_queue=max_queue,
        )

    @property
    def commits(self) -> int:
        """Transactions committed so far."""
        return self._commit.commits

    async def create(self, new: NewRun) -> CreatedRun:
        """Stores a run with its first events.

        Raises KEY_REUSED if the request id belongs to another request, CONCURRENCY_LIMITED if its
        user or org has as many unfinished runs as it may, OVERLOADED if the queue of runs or of
        writes is full, DEPENDENCY_UNAVAILABLE if the commit is unknown.
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
            else await _outcome(connection, item, written=run_of(item) in written)
            for item in items
        ]

    async def _refused(
        self, connection: Connection, items: Sequence[Item]
    ) -> dict[int, RemitError]:
        """What cannot be written whatever the database holds, by identity."""
        refused = await self._refused_by_queue(connection, items)
        rest = [item for item in items if id(item) not in refused]
        refused |= await refused_by_concurrency(connection, rest)
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
    notices: list[Notice] = field(default_factory=list)
    conversations: set[str] = field(default_factory=set)

    def take(self, item: Item) -> None:
        run = run_of(item)
        if isinstance(item, NewRun) and item.run.conversation:
            if item.run.conversation in self.conversations:
                return  # one run at a time: it came second
            self.conversations.add(item.run.conversation)
        self._keep(run, item.offer)
        for event in item.events:
            row, content = encode_event(event, item.key)
            self.events.append(row)
            self._keep(run, content)
        if isinstance(item, NewRun):
            # The first event holds task and context too, so their content is kept with it.
            self.runs.append(item)
            if not item.owner:
                self.notices.append(Notice(run, QUEUED))
        else:
            self.entries.append(item)
            for artifact in item.artifacts:
                self._keep(run, item.key.sealed(artifact) if item.key else artifact)
            self.notices += [Notice(run, order) for order in _orders(item)]
        last = f"{run} {item.events[-1].sequence} {item.fencing_token} {self.origin}"
        self.notices.append(Notice(run, last))

    def _keep(self, run: UUID, content: Content | None) -> None:
        if content is not None:
            self.contents[content.digest, run] = content.data

    async def write(self, connection: Connection) -> set[UUID]:
        """The runs that were created or appended to; of the others nothing is written."""
        if not self.events:
            return set()
        contents = [
            ContentRow(run, digest, data) for (digest, run), data in sorted(self.contents.items())
        ]
        created = sorted(self.runs, key=lambda n: (n.org, n.run.subject, n.request_id))
        arguments = write_arguments(created, self.entries, contents, self.events, self.notices)
        rows = await connection.fetch(WRITE, *arguments)
        return {row["run"] for row in rows}


def _orders(entry: Entry) -> Iterator[str]:
    """What replicas must do beside reading the journal. Goes out before the raised token does."""
    if entry.summary.state in TERMINAL and entry.summary.parent:
        yield QUEUED  # its parent may go on
    if entry.tells:
        yield TOLD
    if entry.cancel_request_id:
        yield f"{STOPPED} {entry.run_id} {entry.fencing_token}"
    if entry.control is not None:
        is_pause = entry.control.is_pause
        yield f"{PAUSED} {entry.run_id} {entry.fencing_token}" if is_pause else QUEUED


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
    if row is None and new.run.parent:
        return fenced(new.run.parent)
    if row is None and new.run.conversation:
        return await not_continued(connection, new.run.conversation)
    if row is not None and new.key is not None and row["key_id"] not in {None, new.key.key_id}:
        # Whether it is the same request, whoever asks again is told under the other key.
        return unavailable(f"the key of {new.run.subject} has just changed")
    if row is None or row["body_digest"] not in {stored_digest(new), new.body_digest}:
        return key_reused(new.request_id)
    return CreatedRun(names.run_name(str(row["run"])), is_new=False)


def key_reused(request_id: str) -> RemitError:
    """KEY_REUSED about a request id."""
    return RemitError(
        reasons.ERROR_REASON_KEY_REUSED, f"request_id {request_id} was used for another request"
    )


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

FIND_REQUEST: Final = f"""
SELECT run, body_digest, {KEY_COLUMNS} FROM runs
WHERE org = $1 AND subject = $2 AND request_id = $3
"""  # noqa: S608 - made of constants
