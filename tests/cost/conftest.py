"""Fixtures of the cost tests; what they give is in services.py."""

from __future__ import annotations

import pytest

from remit.cost.settings import CostSettings
from tests.conftest import OpenDatabase
from tests.cost.services import CostWorld


@pytest.fixture
async def world(database: OpenDatabase) -> CostWorld:
    return CostWorld(await database("cost"), CostSettings.load())
