"""The key files of the log: made once, kept for as long as the log lives.

========================= ==========================================================================
``log.key``               signs checkpoints (Ed25519, the private form of C2SP signed-note)
``log.pub``               verifies them; the file that an auditor saves
``log.rotations``         once the key was replaced: how each key led to the next (`key_chain`)
``subject_master.key``    wraps the subjects' keys (32 bytes in base64)
``pseudonym.key``         makes pseudonyms of users (32 bytes in base64)
========================= ==========================================================================

They are made together or not at all: a lost key cannot be made again, and a new one beside old data
would break the log without a word. Only the log's own key can be replaced, by `rotate_log_key`.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.key_chain import MAX_ROTATIONS, KeyChain, Rotation, rotation_note
from remit.audit.note import NoteError, Signer, Verifier, decode_base64
from remit.rpc.errors import RemitError

LOG_KEY = "log.key"
LOG_PUBLIC_KEY = "log.pub"
ROTATIONS = "log.rotations"
NEXT_LOG_KEY = "log.key.next"
"""The new key while `rotate_log_key` is at work."""
MASTER_KEY = "subject_master.key"
PSEUDONYM_KEY = "pseudonym.key"
FILES = (LOG_KEY, LOG_PUBLIC_KEY, MASTER_KEY, PSEUDONYM_KEY)
ORIGIN_PREFIX = "remit.internal/audit/"
_SECRET_BYTES = 32
_ORIGIN_BYTES = 8
_PRIVATE_MODE = 0o600
_PUBLIC_MODE = 0o644
Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class MasterKey:
    """The key that wraps subjects' keys. Its id tells which key wrapped a row."""

    key: bytes

    @property
    def key_id(self) -> str:
        """16 hex digits, derived from the key."""
        return hashlib.sha256(b"remit/master-key-id/v1\x00" + self.key).hexdigest()[:16]


@dataclass(frozen=True)
class LogKeys:
    """Every key of the log."""

    signer: Signer
    master: MasterKey
    pseudonym: bytes
    rotations: tuple[str, ...] = ()
    """The statements by which the signer's key took the place of those before it, oldest first."""


def make_log_keys(directory: Path, *, token_bytes: Callable[[int], bytes] = os.urandom) -> LogKeys:
    """Make the keys of a new log, or return those that are there.

    Private files have mode 0600. A log is named after random bytes, so that no two logs share a
    name and a checkpoint of one is never taken for a checkpoint of the other. A crash on the way
    leaves nothing behind in the folder.

    Raises:
        RemitError: CONFIGURATION_INVALID when some of the files are there and others are not, or
            when the folder cannot be written.

    """
    if any((directory / name).exists() for name in FILES):
        return load_log_keys(directory)
    unfinished = directory.with_name(directory.name + ".unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700, parents=True)
        _make_files(unfinished, token_bytes)
        unfinished.rename(directory)
    except OSError as error:
        raise _invalid(directory, f"cannot be made: {error.strerror}") from error
    return load_log_keys(directory)


def _make_files(directory: Path, token_bytes: Callable[[int], bytes]) -> None:
    signer = Signer.generate(ORIGIN_PREFIX + token_bytes(_ORIGIN_BYTES).hex())
    for name in (MASTER_KEY, PSEUDONYM_KEY):
        secret = base64.b64encode(token_bytes(_SECRET_BYTES)).decode()
        _write(directory / name, secret, _PRIVATE_MODE)
    _write(directory / LOG_KEY, signer.secret_text(), _PRIVATE_MODE)
    _write(directory / LOG_PUBLIC_KEY, str(signer.verifier()), _PUBLIC_MODE)


def load_log_keys(directory: Path) -> LogKeys:
    """Read the keys of the log.

    Raises:
        RemitError: CONFIGURATION_INVALID that names the file which is missing or damaged.

    """
    rotations = _rotations(directory)
    signer = _signer(directory, rotations)
    try:
        chain = KeyChain.read(signer.verifier(), rotations)
    except NoteError as error:
        raise _invalid(directory / ROTATIONS, f"is damaged: {error}") from error
    public = _parsed(directory / LOG_PUBLIC_KEY, Verifier.parse)
    if public not in chain.keys:
        raise _invalid(directory / LOG_PUBLIC_KEY, f"does not belong to {LOG_KEY} beside it")
    master = _parsed(directory / MASTER_KEY, _secret)
    pseudonym = _parsed(directory / PSEUDONYM_KEY, _secret)
    return LogKeys(signer, MasterKey(master), pseudonym, rotations)


def rotate_log_key(directory: Path, now: datetime) -> Rotation:
    """Give the log a new key and remove the old private one; return what the two keys state.

    The replacement of `log.rotations` is the moment that counts: a crash before it leaves the old
    key in force, one after it the new, and whichever was cut off is cleared up by the next call.

    Raises:
        RemitError: CONFIGURATION_INVALID: a key file is missing or damaged, the folder cannot be
            written, or the log's key was replaced as often as it can be.

    """
    try:
        with _locked(directory):
            _finish_rotation(directory)
            keys = load_log_keys(directory)
            if len(keys.rotations) >= MAX_ROTATIONS:
                fault = f"holds {MAX_ROTATIONS} rotations, the most that a log can have"
                raise _invalid(directory / ROTATIONS, fault)
            new = Signer.generate(keys.signer.name)
            _write(directory / NEXT_LOG_KEY, new.secret_text(), _PRIVATE_MODE)
            note = rotation_note(keys.signer, new, now)
            lines = [json.dumps(each) for each in (*keys.rotations, note)]
            _replace(directory / ROTATIONS, "\n".join(lines))
            _finish_rotation(directory)
    except OSError as error:
        raise _invalid(directory, f"cannot be rotated: {error.strerror}") from error
    return Rotation.open(note)


def _finish_rotation(directory: Path) -> None:
    """Put the new key in its place if its rotation counts; else remove what never counted."""
    following = directory / NEXT_LOG_KEY
    if not following.exists():
        return
    signer = _signer(directory, _rotations(directory))
    if signer.secret_text() != following.read_text(encoding="ascii").strip():
        following.unlink()
        return
    _replace(directory / LOG_PUBLIC_KEY, str(signer.verifier()))
    following.replace(directory / LOG_KEY)
    _sync(directory)


def _signer(directory: Path, rotations: tuple[str, ...]) -> Signer:
    """Return the private key in force: the one that the last rotation names.

    A rotation may be under way, so the key is looked for under both its names, and a last time
    under the first in case it was moved there meanwhile.
    """
    signer = _parsed(directory / LOG_KEY, Signer.parse)
    if not rotations:
        return signer
    try:
        newest = Rotation.open(rotations[-1]).new
    except NoteError as error:
        raise _invalid(directory / ROTATIONS, f"is damaged: the last one: {error}") from error
    for name in (LOG_KEY, NEXT_LOG_KEY, LOG_KEY):
        with contextlib.suppress(RemitError):
            signer = _parsed(directory / name, Signer.parse)
        if signer.verifier() == newest:
            return signer
    raise _invalid(directory / LOG_KEY, f"is not the last key of {ROTATIONS} beside it")


def _rotations(directory: Path) -> tuple[str, ...]:
    if not (directory / ROTATIONS).exists():
        return ()
    return _parsed(directory / ROTATIONS, _statements)


def _statements(text: str) -> tuple[str, ...]:
    try:
        notes = tuple(json.loads(line) for line in text.splitlines())
    except (ValueError, RecursionError) as error:
        raise NoteError("a line is not JSON") from error
    if not notes or not all(isinstance(note, str) for note in notes):
        raise NoteError("a line does not hold the statement of a rotation")
    return notes


def _parsed(path: Path, parse: Callable[[str], Parsed]) -> Parsed:
    try:
        return parse(path.read_text(encoding="ascii").strip())
    except FileNotFoundError as error:
        raise _invalid(
            path, "is missing; a new log gets its keys from `remit up`, an old one from its backup"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(path, "cannot be read") from error
    except NoteError as error:
        raise _invalid(path, f"is damaged: {error}") from error


def _secret(text: str) -> bytes:
    secret = decode_base64(text, "the key")
    if len(secret) != _SECRET_BYTES:
        raise NoteError(f"the key does not have {_SECRET_BYTES} bytes")
    return secret


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep others from rotating meanwhile."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    """Put a public file in the place of an old one, whole at every moment."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    _write(unfinished, text, _PUBLIC_MODE)
    unfinished.replace(path)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, text: str, mode: int) -> None:
    """Write a new file that survives a crash, never over an old one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def _invalid(path: Path, fault: str) -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID, f"the audit key file {path} {fault}"
    )
