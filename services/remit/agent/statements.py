"""The one statement that writes a batch of the run journal, and what stands in its columns.

One statement is a transaction by itself: one round trip whatever the batch's size. It writes the
rows of a run only where the run may be written to; of any other it leaves no trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Final, NamedTuple
from uuid import UUID

from remit.agent.entries import Entry, NewRun
from remit.agent.journal import TERMINAL
from remit.agent.records import (
    EventRow,
    Summary,
    conversation_id,
    encode_summary,
    run_id,
    split_run,
)
from remit.agent.sealing import other_keys
from remit.api.agent.v1 import run_pb2
from remit.columns import Column, arrays, names_of, unnests


@dataclass(frozen=True, slots=True)
class _Created:
    """A new run with its summary, made once."""

    new: NewRun
    summary: Summary
    content_digest: bytes
    content_bytes: int


@dataclass(frozen=True, slots=True)
class _Appended:
    """An entry with the run's new summary, made once."""

    entry: Entry
    summary: Summary


class ContentRow(NamedTuple):
    """Content that a run refers to."""

    run: UUID
    digest: bytes
    data: bytes


class Notice(NamedTuple):
    """What the channel is told when the run was written."""

    run: UUID
    text: str


_CREATED: Final[tuple[Column[_Created], ...]] = (
    Column("run", "uuid", lambda row: run_id(row.new.run.name)),
    Column("org", "text", lambda row: row.new.org),
    Column("subject", "text", lambda row: row.new.run.subject),
    Column("agent", "text", lambda row: row.new.run.agent),
    Column("agent_version", "text", lambda row: row.new.run.agent_version),
    Column("request_id", "text", lambda row: row.new.request_id),
    Column("body_digest", "bytea", lambda row: stored_digest(row.new)),
    Column("state", "smallint", lambda row: row.new.run.state),
    Column("create_time", "timestamptz", lambda row: row.new.run.create_time.ToDatetime(UTC)),
    Column("summary", "bytea", lambda row: row.summary.public),
    Column("sealed", "bytea", lambda row: row.summary.sealed),
    Column("key_id", "bytea", lambda row: row.new.key and row.new.key.key_id),
    Column("other_keys", "text", lambda row: other_keys(row.new.others)),
    Column("content_digest", "bytea", lambda row: row.content_digest),
    Column("content_bytes", "integer", lambda row: row.content_bytes),
    Column("last_sequence", "bigint", lambda row: row.new.run.last_sequence),
    Column("offer_digest", "bytea", lambda row: row.new.offer and row.new.offer.digest),
    Column("fencing_token", "bigint", lambda row: row.new.fencing_token),
    Column("owner", "text", lambda row: row.new.owner or None),
    Column("traceparent", "text", lambda row: row.new.traceparent or None),
    Column("priority", "smallint", lambda row: row.new.run.priority),
    Column("schedule_time", "timestamptz", lambda row: row.new.schedule_time),
    Column("parent", "uuid", lambda row: _run_or_none(row.new.run.parent)),
    Column("conversation", "uuid", lambda row: _conversation(row.new.run)),
    Column("previous_run", "uuid", lambda row: _run_or_none(row.new.run.previous_run)),
    Column("history_runs", "smallint", lambda row: row.new.run.history_runs),
)
"""Columns of a new run that are stored as they are."""

_DURATIONS: Final[tuple[Column[_Created], ...]] = (
    Column("max_duration_s", "float8", lambda row: row.new.max_duration_s),
    Column("lease_s", "float8", lambda row: row.new.lease_s if row.new.owner else None),
)
"""Of which the database's clock makes times."""

_CONDITIONS: Final[tuple[Column[_Created], ...]] = (
    Column("parent_token", "bigint", lambda row: row.new.parent_token),
    Column("last_run", "uuid", lambda row: _run_or_none(row.new.last_run)),
)
"""That decide whether a run is created."""

_NEW_RUNS: Final = _CREATED + _DURATIONS + _CONDITIONS

_ENTRIES: Final[tuple[Column[_Appended], ...]] = (
    Column("run", "uuid", lambda row: row.entry.run_id),
    Column("fencing_token", "bigint", lambda row: row.entry.fencing_token),
    Column("follows", "bigint", lambda row: row.entry.follows),
    Column("state", "smallint", lambda row: _stored_state(row.entry.summary.state)),
    Column("summary", "bytea", lambda row: row.summary.public),
    Column("sealed", "bytea", lambda row: row.summary.sealed),
    Column("key_id", "bytea", lambda row: row.entry.key and row.entry.key.key_id),
    Column("last_sequence", "bigint", lambda row: row.entry.events[-1].sequence),
    Column("offer_digest", "bytea", lambda row: row.entry.offer and row.entry.offer.digest),
    Column("cancel_request_id", "text", lambda row: row.entry.cancel_request_id or None),
    Column("ends", "boolean", lambda row: row.entry.summary.state in TERMINAL),
    Column("control_request", "text", lambda row: _control(row.entry, "request")),
    Column("pauses", "boolean", lambda row: _control(row.entry, "is_pause")),
    Column("tells", "boolean", lambda row: row.entry.tells),
    Column("untold", "bytea", lambda row: _untold(row.entry)),
)

_EVENTS: Final[tuple[Column[EventRow], ...]] = (
    Column("run", "uuid", lambda row: row.run),
    Column("sequence", "bigint", lambda row: row.sequence),
    Column("event_time", "timestamptz", lambda row: row.event_time),
    Column("percent", "smallint", lambda row: row.percent),
    Column("payload", "bytea", lambda row: row.payload),
    Column("content_digest", "bytea", lambda row: row.content_digest),
    Column("digest", "bytea", lambda row: row.digest),
    Column("claim", "uuid", lambda row: row.facts and row.facts.claim),
    Column("resource", "text", lambda row: row.facts and row.facts.resource),
    Column("intent_leaf_index", "bigint", lambda row: row.facts and row.facts.intent_leaf_index),
)

_CONTENTS: Final[tuple[Column[ContentRow], ...]] = (
    Column("run", "uuid", lambda row: row.run),
    Column("digest", "bytea", lambda row: row.digest),
    Column("bytes", "bytea", lambda row: row.data),
)

_NOTICES: Final[tuple[Column[Notice], ...]] = (
    Column("run", "uuid", lambda notice: notice.run),
    Column("notice", "text", lambda notice: notice.text),
)


def write_arguments(
    created: Sequence[NewRun],
    entries: Sequence[Entry],
    contents: Sequence[ContentRow],
    events: Sequence[EventRow],
    notices: Sequence[Notice],
) -> list[list[object]]:
    """The arguments of WRITE, in its order."""
    new = [_created(run) for run in created]
    appended = [_Appended(entry, encode_summary(entry.summary, entry.key)) for entry in entries]
    return [
        *arrays(_NEW_RUNS, new),
        *arrays(_ENTRIES, appended),
        *arrays(_CONTENTS, contents),
        *arrays(_EVENTS, events),
        *arrays(_NOTICES, notices),
    ]


def _created(new: NewRun) -> _Created:
    run, given = split_run(new.run)
    digest = new.key.keyed(given.digest) if new.key is not None else given.digest
    return _Created(new, encode_summary(run, new.key), digest, len(given.data))


def stored_digest(new: NewRun) -> bytes:
    """The digest of a request as it is stored."""
    return new.key.keyed(new.body_digest) if new.key is not None else new.body_digest


def _control(entry: Entry, field: str) -> object:
    return getattr(entry.control, field) if entry.control is not None else None


def _untold(entry: Entry) -> bytes | None:
    """Why the end of a run is told to nobody who was to be told; None where that is not so."""
    if not entry.is_burial or not entry.summary.HasField("webhook"):
        return None
    return entry.summary.error.SerializeToString()


def _run_or_none(name: str) -> UUID | None:
    return run_id(name) if name else None


def _conversation(run: run_pb2.Run) -> UUID | None:
    return conversation_id(run.conversation) if run.conversation else None


def _stored_state(state: run_pb2.RunState.ValueType) -> int:
    """A paused run keeps a state of those that go on; `pause_time` says that it does not now."""
    return run_pb2.RUN_STATE_RUNNING if state == run_pb2.RUN_STATE_PAUSED else state


_NEW, _ENTRY, _CONTENT, _EVENT, _NOTICE = unnests(_NEW_RUNS, _ENTRIES, _CONTENTS, _EVENTS, _NOTICES)

# `locked` locks rows in key order and reads their newest version; what is not in `written` leaves
# no trace.
WRITE: Final = f"""
WITH new AS MATERIALIZED (
    SELECT * FROM {_NEW} AS n ({names_of(_NEW_RUNS)})
), entry AS MATERIALIZED (
    SELECT * FROM {_ENTRY} AS e ({names_of(_ENTRIES)})
), locked AS MATERIALIZED (
    SELECT run, fencing_token, last_sequence, state FROM runs
    WHERE run = ANY(ARRAY(
        SELECT run FROM entry UNION SELECT parent FROM new WHERE parent IS NOT NULL
    ))
    ORDER BY run FOR UPDATE
), thread AS MATERIALIZED (
    SELECT conversation, last_run FROM conversations
    WHERE conversation = ANY(ARRAY(SELECT conversation FROM new WHERE conversation IS NOT NULL))
      AND delete_time IS NULL AND (SELECT count(*) FROM locked) >= 0  -- runs are locked first
    ORDER BY conversation FOR UPDATE
), fresh AS (
    INSERT INTO runs ({names_of(_CREATED)}, deadline_time, lease_expire_time)
    SELECT {names_of(_CREATED)},
           greatest(clock_timestamp(), schedule_time) + make_interval(secs => max_duration_s),
           clock_timestamp() + make_interval(secs => lease_s)
    FROM new
    WHERE (parent IS NULL OR EXISTS (
        SELECT FROM locked
        WHERE locked.run = new.parent AND locked.fencing_token = new.parent_token
          AND locked.state < 3
    )) AND (conversation IS NULL OR EXISTS (
        SELECT FROM thread
        WHERE thread.conversation = new.conversation
          AND thread.last_run IS NOT DISTINCT FROM new.last_run
    ))
    ON CONFLICT (org, subject, request_id) DO NOTHING
    RETURNING run, conversation, create_time
), continued AS (
    UPDATE conversations
    SET last_run = fresh.run, update_time = fresh.create_time, runs = conversations.runs + 1
    FROM fresh WHERE conversations.conversation = fresh.conversation
), held AS MATERIALIZED (
    SELECT entry.run FROM locked JOIN entry USING (run, fencing_token)
    WHERE locked.last_sequence = entry.follows AND locked.state < 3
), written AS MATERIALIZED (
    SELECT run FROM fresh UNION ALL SELECT run FROM held
), told AS (
    INSERT INTO webhook_deliveries (run)
    SELECT run FROM entry JOIN held USING (run) WHERE entry.tells
), untold AS (
    INSERT INTO webhook_deliveries (run, state, end_time, error)
    SELECT run, 4, clock_timestamp(), entry.untold FROM entry JOIN held USING (run)
    WHERE entry.untold IS NOT NULL
), contents AS (
    INSERT INTO content (digest, bytes)
    SELECT DISTINCT ON (digest) digest, bytes
    FROM {_CONTENT} AS c ({names_of(_CONTENTS)})
    JOIN written USING (run) ORDER BY digest
    ON CONFLICT (digest) DO NOTHING
), events AS (
    INSERT INTO run_events ({names_of(_EVENTS)})
    SELECT e.* FROM {_EVENT} AS e ({names_of(_EVENTS)})
    JOIN written USING (run)
), updates AS (
    UPDATE runs SET
        state = e.state,
        summary = e.summary,
        sealed = e.sealed,
        key_id = coalesce(runs.key_id, e.key_id),
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
FROM {_NOTICE} WITH ORDINALITY AS n (run, notice, place)
     JOIN written USING (run)
ORDER BY place
"""  # noqa: S608 - made of constants
