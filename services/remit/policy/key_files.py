"""The secret files of policy: a copy of its database alone verifies no API key and signs no remit.

So the pepper of the API keys and the key that seals the signing keys are files of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from remit.secret_files import make_secret

PEPPER_FILE: Final = "api-keys.pepper"
SIGNING_KEY_FILE: Final = "signing-keys.key"


def make_pepper(folder: Path, token_bytes: Callable[[int], bytes] = os.urandom) -> Path:
    """Make the pepper file in `folder` unless it is there, and return its path.

    Raises:
        RemitError: CONFIGURATION_INVALID if the file is there and damaged.

    """
    return make_secret(folder / PEPPER_FILE, token_bytes)


def make_keys(folder: Path, token_bytes: Callable[[int], bytes] = os.urandom) -> Path:
    """Make the file of the key that encrypts signing keys, unless it is there; return its path.

    Raises:
        RemitError: CONFIGURATION_INVALID if the file is there and damaged.

    """
    return make_secret(folder / SIGNING_KEY_FILE, token_bytes)
