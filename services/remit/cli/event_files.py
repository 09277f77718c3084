"""Events as files for analysis: JSON lines, or Parquet with a typed schema.

Both have the same columns, every one always present. They are written as they come, a bounded
number at a time. Parquet needs pyarrow, an extra: who does not analyse events need not have it.
"""

from __future__ import annotations

import importlib
from typing import Any, BinaryIO, Final, Protocol

from remit.api.audit.v1 import audit_query_service_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.cli import documents
from remit.cli.audit_list import kind_word, outcome_word
from remit.rpc.errors import RemitError

LoggedEvent = audit_query_service_pb2.LoggedEvent

ROWS_OF_A_GROUP: Final = 20_000
BYTES_OF_A_GROUP: Final = 16 << 20
"""What is kept in memory before it is written: so many rows or about so many bytes."""
_TEXTS: Final = (
    *("event_id", "org", "subject", "action", "resource", "run", "claim", "trace_id"),
    "detail_json",
)
_OFTEN_ALIKE: Final = ("kind", "org", "subject", "action", "resource", "run", "outcome")
"""Columns that are encoded by dictionary."""
COLUMNS: Final = (
    *("leaf_index", "append_time", "event_id", "event_time", "kind", "org", "subject", "action"),
    *("resource", "run", "claim", "attempt", "outcome", "trace_id", "detail_json"),
)


class EventFile(Protocol):
    """A file that takes events."""

    def put(self, logged: LoggedEvent) -> None:
        """Takes one event."""
        ...

    def close(self) -> None:
        """Writes what is kept, and what ends the file."""
        ...


class JsonLines:
    """One JSON object a line; times in RFC 3339, all else as the contract has it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def put(self, logged: LoggedEvent) -> None:
        """Takes one event."""
        row = _row(logged)
        row["append_time"] = logged.append_time.ToJsonString()
        row["event_time"] = logged.event.event_time.ToJsonString()
        line = documents.to_line({name: row[name] for name in COLUMNS})
        self._file.write(line.encode() + b"\n")

    def close(self) -> None:
        """Nothing ends such a file."""


class Parquet:
    """Parquet: times with nanoseconds in UTC, 64-bit indices, words by dictionary."""

    def __init__(self, file: BinaryIO) -> None:
        """Raises CONFIGURATION_INVALID where pyarrow is not installed."""
        self._arrow, parquet = _pyarrow()
        self._schema = _schema(self._arrow)
        self._writer = parquet.ParquetWriter(
            file, self._schema, compression="zstd", use_dictionary=list(_OFTEN_ALIKE)
        )
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def put(self, logged: LoggedEvent) -> None:
        """Takes one event."""
        self._rows.append(_row(logged))
        self._bytes += logged.ByteSize()
        if len(self._rows) >= ROWS_OF_A_GROUP or self._bytes >= BYTES_OF_A_GROUP:
            self._flush()

    def close(self) -> None:
        """Writes what is kept, and the footer."""
        try:
            self._flush()
        finally:
            self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            rows, self._rows, self._bytes = self._rows, [], 0
            self._writer.write_table(self._arrow.Table.from_pylist(rows, schema=self._schema))


FORMATS: Final[dict[str, type[JsonLines | Parquet]]] = {
    "jsonl": JsonLines,
    "parquet": Parquet,
}


def _row(logged: LoggedEvent) -> dict[str, Any]:
    """Every column of an event; times as Unix nanoseconds."""
    return {
        "leaf_index": logged.leaf_index,
        "append_time": logged.append_time.ToNanoseconds(),
        "event_time": logged.event.event_time.ToNanoseconds(),
        "kind": kind_word(logged).upper(),
        "attempt": logged.event.attempt,
        "outcome": outcome_word(logged).upper().removeprefix("-"),
        **{name: getattr(logged.event, name) for name in _TEXTS},
    }


def _schema(arrow: Any) -> Any:  # noqa: ANN401 - pyarrow has no types
    kinds = {
        "leaf_index": arrow.int64(),
        "append_time": arrow.timestamp("ns", tz="UTC"),
        "event_time": arrow.timestamp("ns", tz="UTC"),
        "attempt": arrow.int32(),
    }
    fields = [
        arrow.field(name, kinds.get(name, arrow.string()), nullable=False) for name in COLUMNS
    ]
    return arrow.schema(fields)


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
            "Parquet needs pyarrow, which is not installed: install remit[parquet], or write"
            " --format jsonl",
        ) from error
