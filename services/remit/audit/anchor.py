"""The anchor: the newest checkpoint, kept in a file outside the database.

A database that is restored from a backup forgets its own checkpoints together with the leaves. What
it cannot make forget is this file: the signed note as an auditor would keep it. It is replaced in
one step, is on disk before the checkpoint is given to anybody, and never goes back to an older one,
whichever of the replicas that share it writes last.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.note import MAX_NOTE_BYTES, Checkpoint, NoteError
from remit.audit.signing_keys import SigningKeys
from remit.rpc.errors import RemitError

ANCHOR_FILE = "log.anchor"
_MODE = 0o600


@dataclass(frozen=True)
class Anchored:
    """What the file holds."""

    checkpoint: Checkpoint
    signed_note: str


class Anchor:
    """The file."""

    def __init__(self, path: Path, keys: SigningKeys) -> None:
        self.path = path
        self._keys = keys

    async def read(self) -> Anchored | None:
        """Return what was kept; None if nothing was yet.

        Raises:
            RemitError: CONFIGURATION_INVALID: the file is damaged, or of another log.

        """
        note = await asyncio.to_thread(self._text)
        if note is None:
            return None
        try:
            return Anchored(await self._keys.opened(note), note)
        except RemitError as error:
            raise self._invalid(f"cannot be believed: {error.message}") from error

    async def advance(self, signed_note: str) -> None:
        """Keep a checkpoint, unless a larger one is kept already.

        Raises:
            RemitError: CONFIGURATION_INVALID: the file is damaged or cannot be written.

        """
        checkpoint = self._keys.chain.open_checkpoint(signed_note)
        await asyncio.to_thread(self._advance, checkpoint, signed_note)

    async def give_up(self, lost: Checkpoint, signed_note: str) -> None:
        """Keep a checkpoint though it is smaller than a lost one, which is set aside beside it.

        Raises:
            RemitError: CONFIGURATION_INVALID: the file is damaged, cannot be written, or holds a
                larger one than the lost one.

        """
        self._keys.chain.open_checkpoint(signed_note)
        await asyncio.to_thread(self._give_up, lost.tree_size, signed_note)

    def _give_up(self, lost_size: int, signed_note: str) -> None:
        with self._writing(), _locked(self.path.parent):
            note, size = self._text(), self._size()
            if note is not None and size is not None:
                if size > lost_size:
                    raise self._invalid(f"holds a checkpoint of {size} leaves, which is not lost")
                self._replace(self.path.with_name(f"{self.path.name}.lost-{size}"), note)
            self._replace(self.path, signed_note)

    def _advance(self, checkpoint: Checkpoint, signed_note: str) -> None:
        with self._writing(), _locked(self.path.parent):
            kept = self._size()
            if kept is None or kept < checkpoint.tree_size:
                self._replace(self.path, signed_note)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._invalid(
                f"cannot be written: {error.strerror}; name a file on a volume of its own in"
                " REMIT_AUDIT_ANCHOR_FILE"
            ) from error

    def _size(self) -> int | None:
        """Leaves of what is kept, whoever signed it: another replica may know newer keys."""
        note = self._text()
        try:
            return (
                None
                if note is None
                else Checkpoint.parse(note.partition("\n\n")[0] + "\n").tree_size
            )
        except NoteError as error:
            raise self._invalid(f"is damaged: {error}") from error

    def _replace(self, path: Path, note: str) -> None:
        unfinished = path.with_name(f".{path.name}.unfinished")
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _MODE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(note)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _sync(path.parent)

    def _text(self) -> str | None:
        try:
            with self.path.open("rb") as file:
                return file.read(MAX_NOTE_BYTES + 1).decode()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise self._invalid("cannot be read") from error

    def _invalid(self, fault: str) -> RemitError:
        return RemitError(
            error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
            f"the anchor of the log, {self.path}, {fault}",
        )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other replicas on the same folder from writing meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
