"""Writing an export: what `ExportLog` streams, as the file that `verifier` reads.

The file appears under its name only when it is whole; what a broken stream left is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import AsyncIterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from remit.api.audit.v1 import audit_query_service_pb2
from remit.audit.verifier import (
    checkpoint_line,
    footer_line,
    header_line,
    leaf_line,
    rotation_line,
)


class ExportError(Exception):
    """The stream was not a whole export; the message says what is missing."""


@dataclass(frozen=True)
class ExportSummary:
    """What was written: leaves, bytes, and the checkpoint that the export ends at."""

    tree_size: int
    size_bytes: int
    signed_note: str


async def write_export(
    path: Path, messages: AsyncIterable[audit_query_service_pb2.ExportLogResponse]
) -> ExportSummary:
    """Write the messages of one export, from leaf 0 to its checkpoint, to a file.

    A stream that broke off may be continued by the caller with `start_index` and the `tree_size` of
    the first message's checkpoint, as one sequence of messages.

    Raises:
        ExportError: the messages are out of order or end too early; no file is left.
        OSError: the file cannot be written.

    """
    with replacing(path) as file:
        writer = _Writer(file)
        async for message in messages:
            writer.write(message)
        return writer.finish()


class _Writer:
    """Turns messages into lines and checks that none is missing."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._size_bytes = 0
        self._count = 0
        self._tree_size: int | None = None
        self._note = ""

    def write(self, message: audit_query_service_pb2.ExportLogResponse) -> None:
        if message.HasField("checkpoint"):
            self._begin(message)
        if self._tree_size is None:
            raise ExportError("the export does not begin with a checkpoint")
        if message.leaves and message.sequence != self._count:
            raise ExportError(f"leaf {self._count} is missing: {message.sequence} follows")
        for leaf in message.leaves:
            self._put(leaf_line(self._count, leaf))
            self._count += 1

    def finish(self) -> ExportSummary:
        if self._tree_size is None or self._count != self._tree_size:
            raise ExportError(f"the export broke off after {self._count} leaves")
        self._put(footer_line(self._count, self._digest.hexdigest()))
        return ExportSummary(self._count, self._size_bytes, self._note)

    def _begin(self, message: audit_query_service_pb2.ExportLogResponse) -> None:
        note = message.checkpoint.signed_note
        if self._tree_size is not None:
            if note != self._note:
                raise ExportError("the export changed its checkpoint on the way")
            return
        self._tree_size, self._note = message.checkpoint.tree_size, note
        self._put(header_line(len(message.key_rotations)))
        for rotation in message.key_rotations:
            self._put(rotation_line(rotation))
        self._put(checkpoint_line(note))

    def _put(self, line: bytes) -> None:
        self._digest.update(line)
        self._size_bytes += self._file.write(line)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the name of `path` when the body ends without an error."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
