"""A log over fresh databases."""

from __future__ import annotations

import pytest

from tests.audit.events import Log, make_log
from tests.conftest import OpenDatabase


@pytest.fixture
async def log(database: OpenDatabase) -> Log:
    return make_log(await database("audit"), await database("audit_keys"))
