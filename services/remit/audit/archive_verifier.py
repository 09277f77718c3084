"""The offline verifier of archives: each file must be what the log recorded when it was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Final

from remit.audit.archive_file import (
    ArchiveError,
    ArchiveReader,
    Contents,
    archives_in,
    file_of,
    label,
    month_of,
)
from remit.audit.evidence import VerificationError
from remit.audit.leaf import Leaf, LeafError

_PREFIX: Final = "archive-"
_MARK: Final = b'"event_id":"archive-'
_ACTION: Final = "audit.archive"
_REPORTER: Final = "audit"
_MONTH: Final = slice(len(_PREFIX), len(_PREFIX) + len("2026-08"))


def note_archive(recorded: dict[date, str], entry: bytes) -> None:
    """Take up what an entry of the log says of an archive; the last word on a month counts.

    Audit alone can say so: another service may report changes, but not in its name.
    """
    if _MARK not in entry:
        return
    try:
        leaf = Leaf.decode(entry)
        month = month_of(leaf.event_id[_MONTH])
    except (LeafError, ValueError):
        return
    if (leaf.kind, leaf.action, leaf.reporter) == ("ADMIN", _ACTION, _REPORTER):
        recorded[month] = leaf.event_id


def check_archives(folder: Path, recorded: Mapping[date, str]) -> Iterator[Contents]:
    """Check that every archive is there, whole, and what the log says; give them by month.

    Raises:
        VerificationError: one is not; it names the file.
        OSError: one cannot be read.

    """
    found = dict(archives_in(folder))
    for month in sorted({*found, *recorded}):
        place = file_of(folder, month).name
        if month not in found:
            raise VerificationError(
                place, f"it is missing: the log says that {label(month)} is archived"
            )
        try:
            contents = ArchiveReader(found[month]).contents()
        except ArchiveError as error:
            raise VerificationError(place, str(error)) from error
        if contents.event_id != recorded.get(month):
            raise VerificationError(place, "it is not what the log says was archived of this month")
        yield contents
