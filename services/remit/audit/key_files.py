"""The key files of the log: made once, kept for as long as the log lives.

========================= ==========================================================================
``log.key``               signs checkpoints (Ed25519, the private form of C2SP signed-note)
``log.pub``               verifies them; the file that an auditor saves
``subject_master.key``    wraps the subjects' keys (32 bytes in base64)
``pseudonym.key``         makes pseudonyms of users (32 bytes in base64)
========================= ==========================================================================

They are made together or not at all: a lost key cannot be made again, and a new one beside old data
would break the log without a word.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.note import NoteError, Signer, Verifier, decode_base64
from remit.rpc.errors import RemitError

LOG_KEY = "log.key"
LOG_PUBLIC_KEY = "log.pub"
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
    signer = _parsed(directory / LOG_KEY, Signer.parse)
    public = _parsed(directory / LOG_PUBLIC_KEY, Verifier.parse)
    if public != signer.verifier():
        raise _invalid(directory / LOG_PUBLIC_KEY, f"does not belong to {LOG_KEY} beside it")
    master = _parsed(directory / MASTER_KEY, _secret)
    return LogKeys(signer, MasterKey(master), _parsed(directory / PSEUDONYM_KEY, _secret))


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
