"""The archive of a month: what the tiles lack of its events, so that they may leave the database.

A file is gzip. It holds a line of JSON (form, log, month), then each event in the order of the log,
and an end:

======================= ==========================================================================
event                   index, append time in microseconds of Unix time, length of the payload
                        (8, 8 and 4 bytes, big endian), and the payload as the log stored it
end                     index -1, number of events (8 bytes each), and the digest (32 bytes)
======================= ==========================================================================

The digest is a chain from 32 zero bytes on: SHA-256 of the digest so far, index, time and payload.
It stands in the log, in the entry that tells of the archive, so whoever verifies the log verifies
the archives. Payloads are encrypted under their subjects' keys here as they were in the database:
an erasure reaches them, and nobody has to rewrite a file for it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

FORM: Final = "remit.internal/audit/archive/v1"
SUFFIX: Final = ".archive"
FIRST_DIGEST: Final = bytes(32)
MODE: Final = 0o600
_NAME: Final = re.compile(r"(\d{4})-(0[1-9]|1[0-2])\.archive")
_PLACE: Final = struct.Struct(">qq")
_LENGTH: Final = struct.Struct(">I")
_END: Final = -1
_MAX_HEADER_BYTES: Final = 4096
_MAX_PAYLOAD_BYTES: Final = 1 << 20
"""Far above any: a damaged length must not fill the memory."""


class ArchiveError(Exception):
    """A file is no archive, or not whole; the message says why."""


class ArchivedEvent(NamedTuple):
    """What an archive holds of an event; `append_time_us` is Unix time in microseconds."""

    leaf_index: int
    append_time_us: int
    payload: bytes


@dataclass(frozen=True)
class Contents:
    """What a whole archive says of itself. The indices are None of a month without events."""

    log_name: str
    month: date
    events: int
    first_index: int | None
    last_index: int | None
    digest: bytes
    size_bytes: int

    @property
    def event_id(self) -> str:
        """The id of the log's entry that tells of it: it names month and digest."""
        return entry_id(self.month, self.digest)


class Chain:
    """The digest of events, one after the other."""

    def __init__(self) -> None:
        self.digest = FIRST_DIGEST
        self.events = 0
        self.first_index: int | None = None
        self.last_index: int | None = None

    def add(self, event: ArchivedEvent) -> None:
        """Take up the next event. Raises ArchiveError where it is out of order."""
        if self.last_index is not None and event.leaf_index <= self.last_index:
            raise ArchiveError(f"leaf {event.leaf_index} stands behind leaf {self.last_index}")
        place = _PLACE.pack(event.leaf_index, event.append_time_us)
        self.digest = hashlib.sha256(self.digest + place + event.payload).digest()
        self.events += 1
        self.first_index = event.leaf_index if self.first_index is None else self.first_index
        self.last_index = event.leaf_index


def label(month: date) -> str:
    """A month as it is written: `2026-08`."""
    return f"{month:%Y-%m}"


def month_of(text: str) -> date:
    """The first day of a month that is written so. Raises ValueError."""
    return date.fromisoformat(f"{text}-01")


def entry_id(month: date, digest: bytes) -> str:
    """The id of the entry that tells that a month is archived as it is."""
    return f"archive-{label(month)}-{digest.hex()}"


def file_of(folder: Path, month: date) -> Path:
    """Where the archive of a month lies."""
    return folder / f"{label(month)}{SUFFIX}"


def archives_in(folder: Path) -> list[tuple[date, Path]]:
    """The archives of a folder by month, oldest first; other files are left alone."""
    found = ((_NAME.fullmatch(file.name), file) for file in folder.iterdir())
    return sorted((date(int(m[1]), int(m[2]), 1), file) for m, file in found if m)


class ArchiveWriter:
    """Writes an archive under another name; `finish` syncs it and gives it its own."""

    def __init__(self, folder: Path, log_name: str, month: date) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = file_of(folder, month)
        self._unfinished = self._path.with_name(f".{self._path.name}.unfinished")
        self._log_name, self._month = log_name, month
        self._chain = Chain()
        descriptor = os.open(self._unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, MODE)
        self._file: BinaryIO = os.fdopen(descriptor, "wb")
        # Without name and time, the same events are the same file.
        self._packed = gzip.GzipFile("", "wb", fileobj=self._file, mtime=0)
        header = {"form": FORM, "log": log_name, "month": label(month)}
        self._packed.write(json.dumps(header, sort_keys=True).encode() + b"\n")

    def add_all(self, events: Sequence[ArchivedEvent]) -> None:
        """Write the next events. Raises ArchiveError and OSError."""
        for event in events:
            self._chain.add(event)
            self._packed.write(_PLACE.pack(event.leaf_index, event.append_time_us))
            self._packed.write(_LENGTH.pack(len(event.payload)) + event.payload)

    def finish(self) -> Path:
        """Write the end and put the file in its place, durably. Raises OSError."""
        self._packed.write(_PLACE.pack(_END, self._chain.events) + self._chain.digest)
        self._packed.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._unfinished.replace(self._path)
        descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return self._path

    def abandon(self) -> None:
        """Remove what was not finished."""
        self._file.close()
        self._unfinished.unlink(missing_ok=True)


class ArchiveReader:
    """Reads one file. What it says is known when it was read to its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._chain = Chain()

    def events(self) -> Iterator[ArchivedEvent]:
        """Yield the events in order; none of them is vouched for before the last one came.

        Raises:
            ArchiveError: the file is no archive, was changed, or is cut off.
            OSError: it cannot be read.

        """
        try:
            with gzip.open(self._path) as file:
                self._read_header(file)
                while (event := _event(file)) is not None:
                    self._chain.add(event)
                    yield event
                self._check_end(file)
        except (gzip.BadGzipFile, EOFError, zlib.error, ValueError, struct.error) as error:
            raise ArchiveError(
                f"it is no archive of a month, or not a whole one: {error}"
            ) from error

    def contents(self) -> Contents:
        """Read the rest, and return what the whole archive holds. Raises as `events`."""
        deque(self.events(), maxlen=0)
        chain = self._chain
        return Contents(
            self._log_name,
            self._month,
            chain.events,
            chain.first_index,
            chain.last_index,
            chain.digest,
            self._path.stat().st_size,
        )

    def _read_header(self, file: gzip.GzipFile) -> None:
        header = json.loads(file.readline(_MAX_HEADER_BYTES))
        if not isinstance(header, dict) or header.get("form") != FORM:
            raise ArchiveError("it is no archive of a month, or of a form that is not known here")
        self._log_name, self._month = str(header["log"]), month_of(str(header["month"]))

    def _check_end(self, file: gzip.GzipFile) -> None:
        """Compare the end with what was read."""
        digest = _exactly(file, len(FIRST_DIGEST))
        if digest != self._chain.digest:
            raise ArchiveError("its events are not those that its digest was made of")
        if file.read(1):
            raise ArchiveError("it goes on behind its end")


def _event(file: gzip.GzipFile) -> ArchivedEvent | None:
    """The next event; None at the end."""
    index, time_us = _PLACE.unpack(_exactly(file, _PLACE.size))
    if index == _END:
        return None  # the digest covers how many they were
    (length,) = _LENGTH.unpack(_exactly(file, _LENGTH.size))
    if index < 0 or length > _MAX_PAYLOAD_BYTES:
        raise ArchiveError(f"it is damaged behind leaf {index}")
    return ArchivedEvent(index, time_us, _exactly(file, length))


def _exactly(file: gzip.GzipFile, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise EOFError("it is cut off")
    return data
