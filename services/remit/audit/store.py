"""The log in PostgreSQL: append, read, prove. It inserts and selects, nothing else.

The index of an event is the last one plus one, given out under a transaction advisory lock that is
held until the commit: several replicas may append to one database, the index has no gaps, and a
reader that sees index n sees every index below it.

An effect waits for its intent, so an append is one statement, a transaction by itself: it takes
the lock if that is free, tells how the log stands, and inserts the batch where it was made to fit.
Where it does not, because another replica appends too or an event is a replay, the batch is made
again in a transaction that waits for the lock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

import asyncpg

from remit.api.errors.v1 import error_reason_pb2
from remit.audit import merkle
from remit.audit.filters import EventFilter, Walk
from remit.audit.merkle import Frontier, LeafRange, Node
from remit.audit.packing import PackingError, pack, unpack
from remit.audit.sealing import SealedEvent
from remit.postgres import Connection, Database, GroupCommit
from remit.rpc.errors import RemitError

APPEND_LOCK: Final = 0x6175646974  # "audit"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NS_PER_US: Final = 1000
MOST_AHEAD: Final = timedelta(days=1)
"""The bound of `AuditSettings.max_future_s`, whatever it was when an event was appended."""

# A statement of its own: the next one must not see the world before it.
_LOCK = "SELECT pg_advisory_xact_lock($1)"
_HEAD = "SELECT coalesce(max(leaf_index) + 1, 0) FROM leaves"
_KNOWN = "SELECT event_id, leaf_index, leaf_hash FROM leaves WHERE event_id = ANY($1::text[])"
_LEAF_HASHES = "SELECT leaf_index, leaf_hash FROM leaves WHERE leaf_index = ANY($1::bigint[])"
_NODE_HASHES = "SELECT position, hash FROM nodes WHERE level = $1 AND position = ANY($2::bigint[])"
_INDEX = "SELECT leaf_index FROM leaves WHERE event_id = $1"
_HASHES = """
    SELECT leaf_hash FROM leaves WHERE leaf_index >= $1 AND leaf_index < $2 ORDER BY leaf_index
"""
_LEAVES = """
    SELECT leaf_index, leaf FROM events
    WHERE leaf_index >= $1 AND leaf_index < $2 ORDER BY leaf_index
"""
# Every part sees the log as it was before the statement, so the answer is how the batch found it; a
# log that is locked has size -1. The lock may come after an append that the statement does not see:
# the key of `leaves` then refuses the second event of an index.
_APPEND = """
    WITH lock AS MATERIALIZED (SELECT pg_try_advisory_xact_lock($17) AS held),
    head AS (SELECT coalesce(max(leaf_index) + 1, 0) AS size FROM leaves),
    known AS (SELECT event_id, leaf_index, leaf_hash FROM leaves WHERE event_id = ANY($2::text[])),
    new AS (
        SELECT $1::bigint + ordinality - 1 AS leaf_index, event.*
        FROM unnest($2::text[], $3::bytea[], $4::timestamptz[], $5::text[], $6::bytea[], $7::text[],
                    $8::text[], $9::text[], $10::text[], $11::text[], $12::bytea[], $13::bytea[])
             WITH ORDINALITY
             AS event(event_id, leaf_hash, event_time, org, subject_pseudonym, kind, action, run,
                      claim, outcome, leaf, payload, ordinality)
        WHERE (SELECT held FROM lock) AND (SELECT size FROM head) = $1
          AND NOT EXISTS (SELECT FROM known)
    ),
    new_leaves AS (
        INSERT INTO leaves (leaf_index, event_id, leaf_hash)
        SELECT leaf_index, event_id, leaf_hash FROM new
    ),
    new_events AS (
        INSERT INTO events (leaf_index, append_time, event_time, org, subject_pseudonym, kind,
                            action, run, claim, outcome, leaf, payload)
        SELECT leaf_index, statement_timestamp(), event_time, org, subject_pseudonym, kind, action,
               run, claim, outcome, leaf, payload
        FROM new
    ),
    new_nodes AS (
        INSERT INTO nodes (level, position, hash)
        SELECT node.* FROM unnest($14::smallint[], $15::bigint[], $16::bytea[]) AS node
        WHERE EXISTS (SELECT FROM new)
    )
    SELECT CASE WHEN lock.held THEN head.size ELSE -1 END AS size,
           known.event_id, known.leaf_index, known.leaf_hash
    FROM lock CROSS JOIN head LEFT JOIN known ON true
"""
_FIND = """
    SELECT leaf_index, append_time, subject_pseudonym, leaf, payload
    FROM leaves JOIN events USING (leaf_index) WHERE event_id = $1
"""


_Appended: TypeAlias = "tuple[list[int | RemitError], Frontier]"
"""Where events are, and the tree's right edge after them."""


@dataclass(frozen=True)
class StoredEvent:
    """A row of the log."""

    leaf_index: int
    append_time: datetime
    subject_pseudonym: bytes
    leaf: bytes
    payload: bytes


class LogStore:
    """The log's tables."""

    def __init__(self, database: Database, *, max_batch: int, max_queue: int) -> None:
        self._database = database
        self._commits: GroupCommit[SealedEvent, int] = GroupCommit(
            database,
            self._write,
            name="audit log",
            opens=lambda _: "",  # a batch that fits is one statement
            max_batch=max_batch,
            max_queue=max_queue,
        )
        self._edge = _Edge()
        self.refusal: RemitError | None = None
        """Why nothing may be appended now; None: all may."""

    @property
    def commits(self) -> int:
        """Transactions that this replica has committed."""
        return self._commits.commits

    @property
    def committed(self) -> Frontier:
        """The edge of what this replica knows to be committed: the log extends it for ever."""
        return self._edge.remembered()

    @property
    def waiting(self) -> int:
        """Events that wait for their commit to begin, `max_queue` of them at most."""
        return self._commits.queue_length

    async def append(self, event: SealedEvent) -> int:
        """Append an event and return its index once it is durable.

        An event that is in the log already keeps its index.

        Raises:
            RemitError: KEY_REUSED when its id belongs to another event, OVERLOADED when too many
                events wait, DEPENDENCY_UNAVAILABLE when the commit is not known to have happened,
                or the refusal that is in force.

        """
        if self.refusal is not None:
            raise self.refusal
        return await self._commits.submit(event)

    async def prepare_partitions(self) -> None:
        """Make the partitions of this month and the next, unless they exist."""
        await self._database.execute("SELECT prepare_partitions()")

    async def ping(self) -> None:
        """Return when the database answers; raise DEPENDENCY_UNAVAILABLE otherwise."""
        await self._database.ping()

    async def size(self) -> int:
        """Return the number of leaves."""
        return int(await self._database.fetchval(_HEAD))

    async def leaves(self, start: int, stop: int) -> list[bytes]:
        """Return the bytes of the leaves from `start` up to and without `stop`.

        Raises:
            RemitError: DATA_CORRUPT when one is missing or was changed beyond reading.

        """
        found = await self.present_leaves(start, stop)
        if len(found) != stop - start:
            raise _corrupt(f"leaves {start} to {stop - 1} are not all in the log's database")
        return list(found.values())

    async def present_leaves(self, start: int, stop: int) -> dict[int, bytes]:
        """Return the bytes of those leaves that are there, in order; of dropped months none are.

        Raises:
            RemitError: DATA_CORRUPT when one was changed beyond reading.

        """
        rows = await self._database.fetch(_LEAVES, start, stop)
        return {row["leaf_index"]: _unpacked(row["leaf_index"], row["leaf"]) for row in rows}

    async def list_events(
        self, wanted: EventFilter, walk: Walk, *, limit: int
    ) -> list[StoredEvent]:
        """Return the events that are wanted among those that a walk looks at, in its order.

        Raises:
            RemitError: DATA_CORRUPT when a leaf was changed beyond reading.

        """
        statement = walk.found(wanted, limit)
        rows = await self._database.fetch(statement.text, *statement.arguments)
        return [_stored(row) for row in rows]

    async def find(self, event_id: str) -> StoredEvent | None:
        """Return the event of an id, or None.

        Raises:
            RemitError: DATA_CORRUPT when its leaf was changed beyond reading.

        """
        rows = await self._database.fetch(_FIND, event_id)
        return _stored(rows[0]) if rows else None

    async def index_of(self, event_id: str) -> int | None:
        """Return the index of an event's leaf, whatever became of the event; None: no such id."""
        found = await self._database.fetchval(_INDEX, event_id)
        return None if found is None else int(found)

    async def leaf_hashes(self, start: int, stop: int) -> list[bytes]:
        """Return the hashes of the leaves from `start` up to and without `stop`, 32 bytes each."""
        return [row["leaf_hash"] for row in await self._database.fetch(_HASHES, start, stop)]

    async def walked_to(self, wanted: EventFilter, walk: Walk) -> int | None:
        """Return the index of the last event that a walk looks at; None if it comes to the end.

        A walk back in time ends where events are a day older than what is wanted: no event can be
        dated further ahead of its appending than that.
        """
        statement = walk.last(wanted)
        rows = await self._database.fetch(statement.text, *statement.arguments)
        if not rows:
            return None
        begin = wanted.start_time if walk.is_backward else None
        if begin is not None and rows[0]["append_time"] < begin - MOST_AHEAD:
            return None
        return int(rows[0]["leaf_index"])

    async def range_hashes(self, ranges: Sequence[LeafRange]) -> list[bytes]:
        """Return the Merkle tree hashes of ranges of leaves, all of which must be in the log.

        Raises:
            RemitError: DATA_CORRUPT when a stored hash is missing.

        """
        async with self._database.acquire() as connection:
            stored = await _stored_hashes(connection, merkle.needed_nodes(ranges))
        return [merkle.range_hash(leaves, stored) for leaves in ranges]

    async def root(self, tree_size: int) -> bytes:
        """Return the root of the first `tree_size` leaves, 32 bytes."""
        if tree_size == 0:
            return merkle.EMPTY_ROOT
        return (await self.range_hashes([LeafRange(0, tree_size)]))[0]

    async def put_back(
        self,
        start: int,
        batches: Iterable[Sequence[SealedEvent]],
        root: bytes | None = None,
        then: SealedEvent | None = None,
    ) -> None:
        """Append behind the first `start` leaves, whatever is refused now: all events, or none.

        `then` comes after those that lead to the root.

        Raises:
            RemitError: INVALID_STATE: the log does not end there; LOG_ROLLED_BACK: with what it has
                they do not lead to that root, where one is given.

        """
        async with self._database.transaction() as connection:
            await connection.execute(_LOCK, APPEND_LOCK)
            size = int(await connection.fetchval(_HEAD))
            frontier = Frontier(size, await _edge_hashes(connection, size))
            if size != start:
                raise _moved(size, start)
            for events in batches:
                await _append_new(connection, events, frontier)
            if root is not None and frontier.root() != root:
                raise rolled_back(f"the log of {frontier.size} leaves is not what was signed")
            if then is not None:
                await _append_new(connection, [then], frontier)

    async def _write(
        self, connection: Connection, events: Sequence[SealedEvent]
    ) -> Sequence[int | RemitError]:
        """Append a batch; each way of it has committed when it returns."""
        places, edge = await self._append_soon(connection, events) or await self._append_locked(
            connection, events
        )
        self._edge.remember(edge)
        return places

    async def _append_soon(
        self, connection: Connection, events: Sequence[SealedEvent]
    ) -> _Appended | None:
        """Append where the log is as this replica left it; None if it is not, or is locked."""
        frontier = self._edge.remembered()
        guess = _Found(frontier.size, {})
        try:
            places, found = await _append(connection, events, guess, frontier)
        except asyncpg.UniqueViolationError:  # another replica appended just before the lock
            return None
        return (places, frontier) if found == guess else None

    async def _append_locked(
        self, connection: Connection, events: Sequence[SealedEvent]
    ) -> _Appended:
        """Append in a transaction that waits for the lock and then looks how the log stands."""
        async with connection.transaction():
            await connection.execute(_LOCK, APPEND_LOCK)
            known = await connection.fetch(_KNOWN, [event.leaf.event_id for event in events])
            size = int(await connection.fetchval(_HEAD))
            if size < self._edge.size:
                raise rolled_back(f"the log has {size} leaves, and had {self._edge.size}")
            found = _Found(size, {row[0]: (row[1], row[2]) for row in known})
            frontier = await self._edge.load(connection, size)
            places, last = await _append(connection, events, found, frontier)
            if last != _Found(size, {}):
                raise _corrupt(f"the log changed at size {size}, under its lock")
        return places, frontier


class _Edge:
    """The tree's right edge, remembered from one batch to the next.

    Only an edge whose batch is known to be committed is remembered. The log never changes below its
    size, so a remembered edge is right exactly as long as the log still has that size.
    """

    def __init__(self) -> None:
        self._committed = Frontier()

    @property
    def size(self) -> int:
        """Leaves of the last batch known to be committed."""
        return self._committed.size

    def remembered(self) -> Frontier:
        """Return the edge of the last batch known to be committed, to grow a new one from."""
        return Frontier(self._committed.size, list(self._committed.hashes))

    def remember(self, committed: Frontier) -> None:
        """Keep the edge of a batch whose commit has been acknowledged."""
        if committed.size > self._committed.size:
            self._committed = committed

    async def load(self, connection: Connection, size: int) -> Frontier:
        """Return the edge at the size that this transaction found, holding the append lock."""
        if size == self._committed.size:
            return self.remembered()
        return Frontier(size, await _edge_hashes(connection, size))


@dataclass(frozen=True)
class _Found:
    """How a batch finds the log: its size, and index and leaf hash of the ids it has already."""

    size: int
    known: dict[str, tuple[int, bytes]]


async def _append_new(
    connection: Connection, events: Sequence[SealedEvent], frontier: Frontier
) -> None:
    """Append events of which the log has none. Raises LOG_ROLLED_BACK if it has one."""
    guess = _Found(frontier.size, {})
    _, found = await _append(connection, events, guess, frontier)
    if found != guess:
        raise rolled_back(f"the log has some of the entries from {guess.size} on already")


async def _append(
    connection: Connection, events: Sequence[SealedEvent], guess: _Found, frontier: Frontier
) -> tuple[list[int | RemitError], _Found]:
    """Append what is new if the log is as guessed; return the places, and how the log is found.

    All of `guess.known` is left out of the statement. If the log has another size, knows any of
    the rest, or is locked, nothing is inserted, and places and frontier mean nothing. The frontier
    grows by what is new. Raises asyncpg.UniqueViolationError where the size grew before the lock.
    """
    new: list[SealedEvent] = []
    known = dict(guess.known)
    places = [_place(event, known, guess.size, new) for event in events]
    found = _Found(guess.size, {})
    if new:
        nodes = _completed(frontier, new)
        rows = await connection.fetch(_APPEND, guess.size, *_columns(new), *nodes, APPEND_LOCK)
        found = _Found(rows[0]["size"], {row[1]: (row[2], row[3]) for row in rows if row[1]})
    return places, found


def _place(
    event: SealedEvent,
    known: dict[str, tuple[int, bytes]],
    first_free: int,
    new: list[SealedEvent],
) -> int | RemitError:
    """Return an event's index: the one it has, or the next one, when `new` takes it up."""
    event_id = event.leaf.event_id
    if event_id not in known:
        known[event_id] = (first_free + len(new), event.leaf_hash)
        new.append(event)
    index, hashed = known[event_id]
    if hashed == event.leaf_hash:
        return index
    return RemitError(
        error_reason_pb2.ERROR_REASON_KEY_REUSED,
        f"the event id {event_id} was used before for another event, at index {index}",
    )


def _completed(frontier: Frontier, events: Sequence[SealedEvent]) -> list[list[object]]:
    """Grow the frontier by events; return the nodes to store that they complete, as columns.

    One leaf in 256 completes one.
    """
    completed = [pair for event in events for pair in frontier.append(event.leaf_hash)]
    nodes = [(node, value) for node, value in completed if node.level and merkle.is_stored(node)]
    return [
        [node.level for node, _ in nodes],
        [node.position for node, _ in nodes],
        [value for _, value in nodes],
    ]


def _columns(events: Sequence[SealedEvent]) -> list[list[object]]:
    rows = [
        (
            event.leaf.event_id,
            event.leaf_hash,
            _EPOCH + timedelta(microseconds=event.leaf.event_time_ns // _NS_PER_US),
            event.leaf.org,
            event.leaf.subject_pseudonym,
            event.leaf.kind,
            event.leaf.action,
            event.leaf.run,
            event.leaf.claim,
            event.leaf.outcome,
            pack(event.leaf_bytes),
            event.payload,
        )
        for event in events
    ]
    return [list(column) for column in zip(*rows, strict=True)]


async def _edge_hashes(connection: Connection, tree_size: int) -> list[bytes]:
    nodes = merkle.complete_nodes(LeafRange(0, tree_size))
    ranges = [LeafRange(n.position << n.level, (n.position + 1) << n.level) for n in nodes]
    stored = await _stored_hashes(connection, merkle.needed_nodes(ranges))
    return [merkle.range_hash(leaves, stored) for leaves in ranges]


async def _stored_hashes(connection: Connection, nodes: Collection[Node]) -> dict[Node, bytes]:
    """Return the hashes of stored nodes; level 0 are the leaves themselves."""
    stored: dict[Node, bytes] = {}
    for level in sorted({node.level for node in nodes}):
        positions = [node.position for node in nodes if node.level == level]
        rows = await _level(connection, level, positions)
        stored |= {Node(level, position): value for position, value in rows}
    if len(stored) != len(nodes):
        missing = min(set(nodes) - stored.keys())
        raise _corrupt(f"the tree has no node {missing.position} at level {missing.level}")
    return stored


async def _level(connection: Connection, level: int, positions: list[int]) -> list[asyncpg.Record]:
    if level == 0:
        return await connection.fetch(_LEAF_HASHES, positions)
    return await connection.fetch(_NODE_HASHES, level, positions)


def _stored(row: asyncpg.Record) -> StoredEvent:
    return StoredEvent(
        leaf_index=row["leaf_index"],
        append_time=row["append_time"],
        subject_pseudonym=row["subject_pseudonym"],
        leaf=_unpacked(row["leaf_index"], row["leaf"]),
        payload=row["payload"],
    )


def _unpacked(leaf_index: int, stored: bytes) -> bytes:
    try:
        return unpack(stored)
    except PackingError as error:
        raise _corrupt(f"leaf {leaf_index} {error}") from error


def rolled_back(fault: str) -> RemitError:
    """LOG_ROLLED_BACK with what was seen and what it means."""
    return RemitError(
        error_reason_pb2.ERROR_REASON_LOG_ROLLED_BACK,
        f"{fault}: its database was restored from a backup, or is another one; nothing is appended,"
        " so no effect starts",
    )


def _moved(size: int, start: int) -> RemitError:
    fault = f"the log has {size} leaves, and had {start} a moment ago: look at it again"
    return RemitError(error_reason_pb2.ERROR_REASON_INVALID_STATE, fault)


def _corrupt(fault: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_DATA_CORRUPT, fault)
