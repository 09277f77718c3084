"""How events and runs are stored: small sealed rows, and large content once by its digest.

The task and its context stand in three places of a run (its first event, its last, its row) and are
stored once; so are arguments and results beyond a few hundred bytes.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from google.protobuf import struct_pb2

from remit import names
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError

INLINE_BYTES: Final = 512
"""Arguments and results up to this size stay in their row: a reference would cost as much."""

_KNOWN_RUNS: Final = 1024
"""Names whose identifiers are kept: every event asks for its run's several times."""
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


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes named by their SHA-256."""

    digest: bytes
    data: bytes

    @classmethod
    def of(cls, data: bytes) -> Content:
        """The content of `data`."""
        return cls(hashlib.sha256(data).digest(), data)


@functools.lru_cache(_KNOWN_RUNS)
def run_id(name: str) -> UUID:
    """The identifier of a run's full name. Raises ValueError."""
    return UUID(names.parse("run", name)[0])


def conversation_id(name: str) -> UUID:
    """The identifier of a conversation's full name. Raises ValueError."""
    return UUID(names.parse("conversation", name)[0])


def encode_event(event: run_pb2.RunEvent) -> tuple[EventRow, Content | None]:
    """An event as its row, and its large part."""
    slim = _without_columns(event)
    content = _split_event(slim)
    columns = (
        run_id(event.run),
        event.sequence,
        event.event_time.ToDatetime(UTC),
        event.percent,
        slim.SerializeToString(deterministic=True),
        content.digest if content else None,
    )
    return EventRow(*columns, _seal(*columns)), content


def decode_event(row: EventRow, content: bytes | None) -> run_pb2.RunEvent:
    """The event of a row. Raises DATA_CORRUPT that names the row."""
    if _seal_of(row) != row.digest:
        raise _corrupt(row, "does not match its digest")
    if row.content_digest is not None and _digest(content) != row.content_digest:
        raise _corrupt(row, "refers to content that is missing or changed")
    event = run_pb2.RunEvent.FromString(row.payload)
    if content is not None:
        _JOIN[event.WhichOneof("event") or ""](event, content)
    event.run = names.run_name(str(row.run))
    event.sequence = row.sequence
    event.percent = row.percent
    event.event_time.FromDatetime(row.event_time)
    return event


def encode_run(run: run_pb2.Run) -> tuple[bytes, Content]:
    """A run as its summary and its task with context."""
    slim = run_pb2.Run()
    slim.CopyFrom(run)
    content = _split_run(slim)
    return slim.SerializeToString(deterministic=True), content


def decode_run(summary: bytes, content: bytes) -> run_pb2.Run:
    """The run of its summary and its task with context."""
    run = run_pb2.Run.FromString(summary)
    run.MergeFromString(content)
    return run


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


def _seal(
    run: UUID,
    sequence: int,
    event_time: datetime,
    percent: int,
    payload: bytes,
    content_digest: bytes | None,
) -> bytes:
    """SHA-256 over all columns of a row."""
    micros = (event_time - _EPOCH) // _MICROSECOND
    head = struct.pack(">16sQqB", run.bytes, sequence, micros, percent)
    return hashlib.sha256(head + (content_digest or bytes(32)) + payload).digest()


def _seal_of(row: EventRow) -> bytes:
    return _seal(
        row.run, row.sequence, row.event_time, row.percent, row.payload, row.content_digest
    )


def _digest(data: bytes | None) -> bytes | None:
    return None if data is None else hashlib.sha256(data).digest()


def _corrupt(row: EventRow, fault: str) -> RemitError:
    return RemitError(
        reasons.ERROR_REASON_DATA_CORRUPT,
        f"{names.run_name(str(row.run))}: event {row.sequence} {fault}",
    )
