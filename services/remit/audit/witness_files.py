"""The folder of a witness: its key, and the last checkpoint that it cosigned.

=============== ==================================================================
``witness.key`` signs cosignatures (mode 0600)
``witness.pub`` verifies them; the file that whoever trusts this witness saves
``checkpoint``  the last checkpoint that was cosigned
``refused``     the last one that was refused although the log signed it: evidence
=============== ==================================================================

Key and first checkpoint are made together or not at all. A witness that has lost its checkpoint
would vouch for anything, so it stops instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.cosignature import Cosigner, WitnessKey
from remit.audit.note import MAX_NOTE_BYTES, NoteError
from remit.rpc.errors import RemitError

KEY, PUBLIC_KEY, CHECKPOINT, REFUSED = "witness.key", "witness.pub", "checkpoint", "refused"
_PRIVATE_MODE = 0o600
_PUBLIC_MODE = 0o644


class WitnessFolder:
    """The files of one witness, of one log.

    Every method raises RemitError CONFIGURATION_INVALID that names the file which is missing,
    damaged or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check_free(self) -> None:
        """Refuse to make a witness where anything is already."""
        if self.folder.exists():
            raise _invalid(self.folder, "exists; a witness's key is never made anew")

    def make(self, cosigner: Cosigner, note: str) -> None:
        """Make the folder with key and first checkpoint, never over one that is there."""
        self.check_free()
        unfinished = self.folder.with_name(self.folder.name + ".unfinished")
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(mode=0o700, parents=True)
            _write(unfinished / KEY, cosigner.secret_text() + "\n", _PRIVATE_MODE)
            _write(unfinished / PUBLIC_KEY, f"{cosigner.witness_key()}\n", _PUBLIC_MODE)
            _write(unfinished / CHECKPOINT, note, _PUBLIC_MODE)
            _sync(unfinished)
            unfinished.rename(self.folder)
            _sync(self.folder.parent)
        except OSError as error:
            raise _invalid(self.folder, f"cannot be made: {error.strerror}") from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Claim the folder: two that cosign at once could vouch for two different logs."""
        path = self.folder / KEY
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise _invalid(
                path, "cannot be read; `remit audit witness --init NAME` makes a new witness"
            ) from error
        try:
            self._claim(descriptor)
            yield
        finally:
            os.close(descriptor)

    def cosigner(self) -> Cosigner:
        """Return the private key."""
        path = self.folder / KEY
        try:
            return Cosigner.parse(self._read(KEY))
        except NoteError as error:
            raise _invalid(path, f"is damaged: {error}") from error

    def last(self, key: WitnessKey) -> str:
        """Return the last checkpoint that this witness cosigned."""
        note = self._read(CHECKPOINT)
        try:
            key.open(note)
        except NoteError as error:
            raise _invalid(
                self.folder / CHECKPOINT, f"is not what this witness cosigned: {error}"
            ) from error
        return note

    def keep(self, note: str) -> None:
        """Replace the last checkpoint; it is durable when this returns."""
        self._replace(CHECKPOINT, note)

    def keep_refused(self, note: str) -> Path:
        """Keep what was refused as evidence, and return where."""
        return self._replace(REFUSED, note)

    def _claim(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _invalid(self.folder, "is in use by another `remit audit witness`") from error

    def _read(self, name: str) -> str:
        path = self.folder / name
        try:
            with path.open("rb") as file:
                return file.read(MAX_NOTE_BYTES).decode()
        except FileNotFoundError as error:
            raise _invalid(
                path,
                "is missing; restore it from a backup: without it this witness would vouch"
                " for anything",
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise _invalid(path, "cannot be read") from error

    def _replace(self, name: str, text: str) -> Path:
        path = self.folder / name
        publish(path, text)
        return path


def publish(path: Path, text: str) -> None:
    """Put a text in the place of a file, whole and durable or not at all.

    Raises:
        RemitError: CONFIGURATION_INVALID when it cannot be written.

    """
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        unfinished.unlink(missing_ok=True)
        _write(unfinished, text, _PUBLIC_MODE)
        unfinished.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _invalid(path, f"cannot be written: {error.strerror}") from error


def _write(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _invalid(path: Path, fault: str) -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID, f"the witness's {path} {fault}"
    )
