"""Where leaves that a database lost can still be had: an export that was made before.

Nothing here is believed. Whoever uses the leaves hashes them and compares roots with checkpoints
that the log signed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from remit.audit.note import NoteError, decode_base64
from remit.audit.verifier import MAX_LINE_BYTES


class SourceError(Exception):
    """A file holds no leaves; the message says where it is at fault."""


@dataclass(frozen=True)
class ExportFile:
    """The leaves of an export, from the first on, each time they are asked for."""

    path: Path

    def signed_note(self) -> str:
        """Return the checkpoint that the export ends at. Raises SourceError and OSError."""
        for number, members in self._lines():
            if isinstance(members.get("checkpoint"), str):
                return str(members["checkpoint"])
            if "leaf" in members:
                raise SourceError(
                    f"{self.path}: line {number}: a leaf stands before the checkpoint"
                )
        raise SourceError(f"{self.path} holds no checkpoint")

    def leaves(self, count: int) -> Iterator[bytes]:
        """Yield the bytes of that many leaves, or of all. Raises SourceError and OSError."""
        found = (
            (number, members["leaf"]) for number, members in self._lines() if "leaf" in members
        )
        for number, leaf in islice(found, count):
            try:
                yield decode_base64(str(leaf), "the leaf")
            except NoteError as error:
                raise SourceError(f"{self.path}: line {number}: {error}") from error

    def _lines(self) -> Iterator[tuple[int, dict[str, object]]]:
        with self.path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                try:
                    members = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise SourceError(f"{self.path}: line {number} is not JSON") from error
                if not isinstance(members, dict):
                    raise SourceError(f"{self.path}: line {number} is no line of an export")
                yield number, members
