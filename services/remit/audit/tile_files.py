"""Writing a folder of tiles so that no reader and no crash ever sees half of anything.

Every file is written under another name, synced, and renamed; the checkpoint last of all, when the
folders that name its tiles have been synced. One process writes at a time: it holds a lock on a
file of the folder, which the kernel lets go of when the process dies. Files are the writer's own
(0600): a log may be published, and whoever runs it says so by copying or serving it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.note import MAX_NOTE_BYTES, Checkpoint, NoteError
from remit.audit.tiles import CHECKPOINT, Tile
from remit.rpc.errors import RemitError

LOCK = ".lock"
UNFINISHED = ".unfinished"
_MODE = 0o600
_FOLDER_MODE = 0o700


class TileFiles:
    """The files of one folder. Every method blocks, and raises OSError where the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._unsynced: set[Path] = set()

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Yields whether this process, and no other, may write."""
        self._make(self.folder)
        descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, _MODE)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)  # which releases the lock

    def published(self) -> Checkpoint | None:
        """The checkpoint that readers see, if there is one.

        Raises:
            RemitError: DATA_CORRUPT when the file is not a checkpoint.

        """
        try:
            with (self.folder / CHECKPOINT).open("rb") as file:
                note = file.read(MAX_NOTE_BYTES).decode()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise self._damaged() from error
        try:
            return Checkpoint.parse(note.partition("\n\n")[0] + "\n")
        except NoteError as error:
            raise self._damaged() from error

    def has(self, tile: Tile) -> bool:
        """Whether a tile is there, which it is only as a whole."""
        return (self.folder / tile.path).exists()

    def write(self, path: str, data: bytes) -> None:
        """Puts a file in its place; it is durable under its name after `sync`."""
        target = self.folder / path
        self._make(target.parent)
        unfinished = self.folder / UNFINISHED
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _MODE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
        self._unsynced.add(target.parent)

    def sync(self) -> None:
        """Makes the names of all written files durable."""
        for folder in sorted(self._unsynced):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._unsynced.discard(folder)

    def remove_partials(self, tile: Tile) -> None:
        """Removes what a full tile has replaced."""
        partials = self.folder / tile.partials
        if partials.is_dir():
            for file in partials.iterdir():
                file.unlink()
            partials.rmdir()

    def _make(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make(folder.parent)
            folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
            self._unsynced.add(folder.parent)

    def _damaged(self) -> RemitError:
        path = self.folder / CHECKPOINT
        return RemitError(
            error_reason_pb2.ERROR_REASON_DATA_CORRUPT,
            f"{path} is no checkpoint; move it away, and the tiles are looked through and published"
            " anew",
        )
