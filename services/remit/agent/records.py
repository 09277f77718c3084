"""How events and runs are stored: small sealed rows, and large content once by its digest.

The task and its context stand in three places of a run (its first event, its last, its row) and are
stored once; so are arguments and results beyond a few hundred bytes.

With a key, an event is sealed but for the facts that name an effect, and a run but for what says
nothing of its content. Without one both are stored as they are: so they were before there were
keys, and so is the end of a run whose key is gone.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from google.protobuf import field_mask_pb2, struct_pb2

from remit import names
from remit.agent.call_facts import CallFacts, facts_of, leave_out, put_back
from remit.agent.sealing import SEALED, Content, Key
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError

INLINE_BYTES: Final = 512
"""Arguments and results up to this size stay in their row: a reference would cost as much."""

PRIVATE: Final = ("artifacts", "confidence", "error", "result")
"""Fields of a run that say something of its content; and its task, its context and the address
where its end is told."""

_PRIVATE: Final = field_mask_pb2.FieldMask(paths=[*PRIVATE, "webhook.url"])
_SEALED: Final = bytes([SEALED])
_KNOWN_RUNS: Final = 1024
"""Names whose identifiers are kept: every event asks for its run's several times."""
_SUMMARY: Final = "summary"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class EventRow:
    """One row of the journal."""

    run: UUID
    sequence: int
    event_time: datetime
    percent: int
    payload: bytes
    content_digest: bytes | None
    digest: bytes
    facts: CallFacts | None = None
    """In clear, where the payload is sealed."""

    @property
    def is_sealed(self) -> bool:
        """Whether it takes a key to read."""
        return self.payload[:1] == _SEALED


@dataclass(frozen=True, slots=True)
class Summary:
    """A run as its row holds it, without task and context."""

    public: bytes
    """What says nothing of its content; all of it, without a key."""
    sealed: bytes | None
    """The rest, if there is any."""


@functools.lru_cache(_KNOWN_RUNS)
def run_id(name: str) -> UUID:
    """The identifier of a run's full name. Raises ValueError."""
    return UUID(names.parse("run", name)[0])


def conversation_id(name: str) -> UUID:
    """The identifier of a conversation's full name. Raises ValueError."""
    return UUID(names.parse("conversation", name)[0])


def encode_event(
    event: run_pb2.RunEvent, key: Key | None = None
) -> tuple[EventRow, Content | None]:
    """An event as its row, and its large part, both as they are stored."""
    slim = _without_columns(event)
    content, facts = _split_event(slim), None
    if key is not None:
        facts = facts_of(slim)
        leave_out(slim)
        content = key.sealed(content) if content else None
    payload = slim.SerializeToString(deterministic=True)
    if key is not None:
        payload = key.seal(str(event.sequence), payload)
    row = EventRow(
        run_id(event.run),
        event.sequence,
        event.event_time.ToDatetime(UTC),
        event.percent,
        payload,
        content.digest if content else None,
        b"",
        facts,
    )
    return replace(row, digest=_digest_of(row)), content


def decode_event(row: EventRow, content: bytes | None, key: Key | None = None) -> run_pb2.RunEvent:
    """The event of a row. Raises DATA_CORRUPT that names the row."""
    if _digest_of(row) != row.digest:
        raise _corrupt(row, "does not match its digest")
    event = run_pb2.RunEvent.FromString(_payload(row, key))
    if row.content_digest is not None:
        stored = Content(row.content_digest, content or b"")
        _JOIN[event.WhichOneof("event") or ""](event, _content(row, stored, key))
    if row.facts is not None:
        put_back(event, row.facts)
    event.run = names.run_name(str(row.run))
    event.sequence = row.sequence
    event.percent = row.percent
    event.event_time.FromDatetime(row.event_time)
    return event


def encode_summary(run: run_pb2.Run, key: Key | None = None) -> Summary:
    """A run without task and context, as its row holds it."""
    if key is None or not _has_private(run):
        return Summary(run.SerializeToString(deterministic=True), None)
    public, private = run_pb2.Run(), run_pb2.Run()
    public.CopyFrom(run)
    _PRIVATE.MergeMessage(run, private)
    for field in PRIVATE:
        public.ClearField(field)
    if run.HasField("webhook"):
        public.webhook.ClearField("url")
    sealed = key.seal(_SUMMARY, private.SerializeToString(deterministic=True))
    return Summary(public.SerializeToString(deterministic=True), sealed)


def split_run(run: run_pb2.Run) -> tuple[run_pb2.Run, Content]:
    """A run without task and context, and these."""
    slim = run_pb2.Run()
    slim.CopyFrom(run)
    return slim, _split_run(slim)


def decode_run(summary: Summary, given: Content, key: Key | None = None) -> run_pb2.Run:
    """The run of its summary, and of its task with context as they are stored.

    Raises DATA_CORRUPT.
    """
    run = run_pb2.Run.FromString(summary.public)
    try:
        if summary.sealed is not None:
            run.MergeFromString(_required(key).open(_SUMMARY, summary.sealed))
        run.MergeFromString(given.data if key is None else key.opened(given))
    except RemitError as error:
        raise _corrupt_run(run.name, error) from error
    return run


def erased_run(summary: Summary) -> run_pb2.Run:
    """What is left of a run whose key is gone."""
    run = run_pb2.Run.FromString(summary.public)
    run.erased = True
    return run


def _has_private(run: run_pb2.Run) -> bool:
    return bool(
        run.result
        or run.artifacts
        or run.HasField("error")
        or run.HasField("confidence")
        or run.webhook.url
    )


def _payload(row: EventRow, key: Key | None) -> bytes:
    if not row.is_sealed:
        return row.payload
    try:
        return _required(key).open(str(row.sequence), row.payload)
    except RemitError as error:
        raise _corrupt(row, f"cannot be opened: {error.message}") from error


def _content(row: EventRow, stored: Content, key: Key | None) -> bytes:
    try:
        if stored.is_plain:
            return stored.data
        return _required(key).opened(stored)
    except RemitError as error:
        raise _corrupt(row, "refers to content that is missing or changed") from error


def _required(key: Key | None) -> Key:
    if key is None:
        raise RemitError(reasons.ERROR_REASON_DATA_CORRUPT, "its run has no key")
    return key


def _without_columns(event: run_pb2.RunEvent) -> run_pb2.RunEvent:
    slim = run_pb2.RunEvent()
    slim.CopyFrom(event)
    for column in ("run", "sequence", "event_time", "percent"):
        slim.ClearField(column)
    return slim


def _split_event(slim: run_pb2.RunEvent) -> Content | None:
    split = _SPLIT.get(slim.WhichOneof("event") or "")
    return split(slim) if split else None


def _split_run(slim: run_pb2.Run) -> Content:
    given = run_pb2.Run(task=slim.task, context=slim.context)
    slim.ClearField("task")
    slim.ClearField("context")
    return Content.of(given.SerializeToString(deterministic=True))


def _split_arguments(started: run_pb2.ToolCallStarted) -> Content | None:
    content = _large(started.arguments)
    if content is not None:
        started.ClearField("arguments")
    return content


def _split_result(ended: run_pb2.ToolCallEnded) -> Content | None:
    content = _large(ended.result)
    if content is not None:
        ended.ClearField("result")
    return content


def _large(value: struct_pb2.Struct) -> Content | None:
    if value.ByteSize() <= INLINE_BYTES:
        return None
    return Content.of(value.SerializeToString(deterministic=True))


_SPLIT: Final[Mapping[str, Callable[[run_pb2.RunEvent], Content | None]]] = {
    "created": lambda event: _split_run(event.created.run),
    "ended": lambda event: _split_run(event.ended.run),
    "tool_call_started": lambda event: _split_arguments(event.tool_call_started),
    "tool_call_ended": lambda event: _split_result(event.tool_call_ended),
}

_JOIN: Final[Mapping[str, Callable[[run_pb2.RunEvent, bytes], object]]] = {
    "created": lambda event, data: event.created.run.MergeFromString(data),
    "ended": lambda event, data: event.ended.run.MergeFromString(data),
    "tool_call_started": lambda event, data: event.tool_call_started.arguments.MergeFromString(
        data
    ),
    "tool_call_ended": lambda event, data: event.tool_call_ended.result.MergeFromString(data),
}


def _digest_of(row: EventRow) -> bytes:
    """SHA-256 over all other columns of a row as they are stored: it takes no key to check."""
    micros = (row.event_time - _EPOCH) // _MICROSECOND
    head = struct.pack(">16sQqB", row.run.bytes, row.sequence, micros, row.percent)
    said = _said(row.facts) if row.facts is not None else b""
    parts = head + (row.content_digest or bytes(32)) + said + row.payload
    return hashlib.sha256(parts).digest()


def _said(facts: CallFacts) -> bytes:
    leaf = -1 if facts.intent_leaf_index is None else facts.intent_leaf_index
    resource = facts.resource.encode()
    return struct.pack(">16sqI", facts.claim.bytes, leaf, len(resource)) + resource


def _corrupt(row: EventRow, fault: str) -> RemitError:
    return RemitError(
        reasons.ERROR_REASON_DATA_CORRUPT,
        f"{names.run_name(str(row.run))}: event {row.sequence} {fault}",
    )


def _corrupt_run(name: str, error: RemitError) -> RemitError:
    return RemitError(reasons.ERROR_REASON_DATA_CORRUPT, f"{name}: {error.message}")
