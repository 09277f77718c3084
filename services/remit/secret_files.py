"""Secrets of 32 bytes that live in files beside the databases, never in them.

A copy of the databases alone must neither verify an API key nor sign anything, so what does is a
file of its own, readable by its service.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_CONFIGURATION_INVALID
from remit.rpc.errors import RemitError

SECRET_BYTES: Final = 32
# A group may read (that is how Kubernetes mounts a secret); nobody else may do anything.
_FORBIDDEN_MODE: Final = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO


def read_secret(path: Path) -> bytes:
    """Return the 32 bytes of a secret file, which holds them as 64 hex digits.

    Raises:
        RemitError: CONFIGURATION_INVALID if the file is missing, open to others or malformed.

    """
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii").strip()
        secret = bytes.fromhex(text)
    except (OSError, ValueError) as error:
        raise _fault(path, f"cannot be read as {2 * SECRET_BYTES} hex digits") from error
    if mode & _FORBIDDEN_MODE:
        raise _fault(path, f"is open to others (mode {stat.S_IMODE(mode):04o}); make it 0600")
    if len(secret) != SECRET_BYTES:
        raise _fault(path, f"holds {len(secret)} bytes instead of {SECRET_BYTES}")
    return secret


def make_secret(path: Path, token_bytes: Callable[[int], bytes] = os.urandom) -> Path:
    """Make a secret file unless it is there, and return its path.

    It is written through a second name, so that a crash leaves either no file or a whole one.

    Raises:
        RemitError: CONFIGURATION_INVALID if the file is there and damaged.

    """
    if path.exists():
        read_secret(path)
        return path
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(token_bytes(SECRET_BYTES).hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return path


def _fault(path: Path, what: str) -> RemitError:
    return RemitError(ERROR_REASON_CONFIGURATION_INVALID, f"{path}: {what}")
