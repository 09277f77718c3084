"""kill -9 while several writers append: nothing acknowledged is lost, nothing has a gap."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from remit.audit import merkle
from remit.audit.merkle import Frontier
from remit.audit.store import LogStore
from remit.postgres import Database
from tests.audit.events import make_event, sealed
from tests.conftest import OpenDatabase

ROUNDS = 3
ACKNOWLEDGED_BEFORE_KILL = 400
ROOT = Path(__file__).parents[2]


async def appended_until_killed(dsn: str, count: int) -> dict[str, int]:
    """Start a process that appends, kill it after `count` answers, and return every answer."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.audit.appender",
        dsn,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert child.stdout is not None
    try:
        lines = [await child.stdout.readline() for _ in range(count)]
    finally:
        child.kill()
    lines += (await child.stdout.read()).splitlines(keepends=True)
    await child.wait()
    whole = [line.decode().split() for line in lines if line.endswith(b"\n")]
    return {event_id: int(index) for event_id, index in whole}


async def test_kill_9_loses_nothing_that_was_acknowledged(database: OpenDatabase) -> None:
    opened = await database("audit")
    acknowledged: dict[str, int] = {}
    for _ in range(ROUNDS):  # later rounds replay the ids of earlier ones, then go beyond
        count = len(acknowledged) + ACKNOWLEDGED_BEFORE_KILL
        answers = await appended_until_killed(opened.dsn, count)
        assert all(acknowledged.get(event_id, at) == at for event_id, at in answers.items())
        acknowledged |= answers
    await assert_whole(opened, acknowledged)


async def assert_whole(database: Database, acknowledged: dict[str, int]) -> None:
    store = LogStore(database, max_batch=64, max_queue=1024)
    rows = await database.fetch("SELECT event_id, leaf_index FROM leaves ORDER BY leaf_index")
    places = {row["event_id"]: row["leaf_index"] for row in rows}
    assert list(places.values()) == list(range(len(rows)))
    assert places.items() >= acknowledged.items()
    frontier = Frontier()
    for leaf in await store.leaves(0, len(rows)):
        frontier.append(merkle.leaf_hash(leaf))
    assert await store.root(len(rows)) == frontier.root()
    assert await store.append(sealed(make_event("after the crash"))) == len(rows)
