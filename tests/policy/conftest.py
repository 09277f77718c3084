"""Fixtures of the policy tests; what they give is in world.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from remit.postgres import Database
from tests.policy.world import MovedClock, World


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
async def policy_database(database: Callable[[str], Awaitable[Database]]) -> Database:
    return await database("policy")


@pytest.fixture
async def world(policy_database: Database, clock: MovedClock) -> World:
    return await World.open(policy_database, clock)
