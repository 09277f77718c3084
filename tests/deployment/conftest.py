"""An installation's folder, made once by the code that makes the real ones."""

from __future__ import annotations

import pytest

from remit.local.installation import Installation, Server
from remit.rpc.clock import SystemClock


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    made = Installation(tmp_path_factory.mktemp("installation"))
    server = Server("postgres:5432")
    made.ensure_keys()
    made.ensure_superuser(server)
    made.ensure_dsns(server)
    made.ensure_certificates(SystemClock())
    return made
