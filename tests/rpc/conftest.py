"""A certificate for every party, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from remit.local.certificates import ensure_certificates
from remit.local.state import StateDirectory
from remit.rpc.clock import SystemClock
from remit.rpc.identity import TlsIdentity

Identities = Callable[[str], TlsIdentity]


@pytest.fixture(scope="session")
def tls_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one folder of certificates a party."""
    state = StateDirectory.open(tmp_path_factory.mktemp("mesh") / "state")
    ensure_certificates(state, SystemClock())
    return state.folder / "tls"


@pytest.fixture(scope="session")
def identity(tls_folder: Path) -> Identities:
    """The identity of a party: `identity("agent")`."""
    return lambda party: TlsIdentity.load(tls_folder / party)
