"""Audit is killed before and after each step of archiving a month, and nothing of the log is lost.

The process is a real one, with its own archive job. At each death every event is in the database or
in an archive; once it is up again, it does what is left, and the offline verifier finds it whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from remit.audit.archive_file import ArchiveReader, archives_in
from remit.audit.archived_months import ArchivedMonths
from remit.audit.evidence import Auditor
from remit.audit.key_files import LOG_PUBLIC_KEY, make_log_keys
from remit.audit.store import LogStore
from remit.audit.tile_verifier import verify_tiles
from remit.local.certificates import ensure_leaves
from remit.local.process import ProcessSpec, Supervised
from remit.local.progress import PlainReporter
from remit.postgres import Database
from remit.rpc.clock import SystemClock
from tests.audit.events import make_event, sealed
from tests.audit.old_months import make_old, month_ago
from tests.audit.storm_world import UP_WITHIN_S, policy_at, replica_of
from tests.conftest import OpenDatabase
from tests.integration.crash_hook import sitecustomize as crash_hook
from tests.integration.storming import Kill, arm
from tests.ports import free_ports
from tests.waiting import eventually

POINTS = crash_hook.points("audit", crash_hook.SELDOM)
EVENTS = 3
"""Of a month."""
PARTIES = ("audit", "mesh")


@dataclass(frozen=True)
class Dying:
    """A log whose only replica archives its old months, and is killed again and again."""

    database: Database
    part: Supervised
    folder: Path

    @property
    def archives(self) -> Path:
        return self.folder / "archive"

    async def dies_at(self, number: int, point: str) -> None:
        """One more month is over; whoever archives it dies at a point, and is started anew."""
        restarts = self.part.restarts
        _, fired = arm(self.folder / "orders", Kill("", "audit", point, 0), number=number)
        first = number * EVENTS
        await make_old(self.database, month_ago(number + 3), first, first + EVENTS)
        await eventually(fired.exists, UP_WITHIN_S)
        await eventually(lambda: self.part.restarts > restarts, UP_WITHIN_S)

    async def assert_all_there(self) -> None:
        """Every event is in the database, or in an archive that is whole."""
        # In this order: the process is up again, and what it drops meanwhile it has archived.
        rows = await self.database.fetch("SELECT leaf_index FROM events")
        kept = {
            event.leaf_index
            for _, path in archives_in(self.archives)
            for event in ArchiveReader(path).events()
        }
        assert set(range(EVENTS * len(POINTS))) <= kept | {row["leaf_index"] for row in rows}

    async def are_dropped(self) -> bool:
        return len(await ArchivedMonths(self.database).all()) == len(POINTS)


@pytest.fixture
async def dying(database: OpenDatabase) -> AsyncIterator[Dying]:
    log, keys = await database("audit"), await database("audit_keys")
    store = LogStore(log, max_batch=64, max_queue=1024)
    for number in range(EVENTS * len(POINTS)):
        await store.append(sealed(make_event(f"e-{number}")))
    folder = Path(tempfile.mkdtemp(prefix="remit-archive-"))
    try:
        async with contextlib.AsyncExitStack() as stack:
            (folder / "orders").mkdir()
            output = stack.enter_context((folder / "output").open("w"))
            spec = await _process(stack, folder, log.dsn, keys.dsn)
            part = Supervised(spec, PlainReporter(output), SystemClock())
            stack.push_async_callback(part.stop)
            await part.start()
            yield Dying(log, part, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _process(
    stack: contextlib.AsyncExitStack, folder: Path, dsn: str, keys_dsn: str
) -> ProcessSpec:
    make_log_keys(folder / "keys")
    tls = folder / "tls"
    ensure_leaves(folder / "ca", {party: tls / party for party in PARTIES}, SystemClock())
    mesh, port, http_port = free_ports(3)
    await stack.enter_async_context(policy_at(tls, f"127.0.0.1:{mesh}"))
    told: Mapping[str, object] = {
        "dsn": dsn,
        "keys_dsn": keys_dsn,
        "archiver_dsn": dsn.replace("remit_audit@", "remit_audit_archiver@"),
        "keys_dir": folder / "keys",
        "tiles_dir": folder / "tiles",
        "tiles_interval_ms": 50,
        "archive_dir": folder / "archive",
        "archive_check_s": 0.1,
        "retention_months": 1,
        "tls_dir": tls / "audit",
        "mesh_address": f"127.0.0.1:{mesh}",
        "port": port,
        "http_port": http_port,
        "checkpoint_interval_ms": 50,
    }
    spec = replica_of(folder, 0, told, http_port)
    hook = {
        "PYTHONPATH": os.pathsep.join(
            [str(Path(crash_hook.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        "PYTHON_CRASH_FOLDER": str(folder / "orders"),
    }
    return replace(spec, environment={**(spec.environment or {}), **hook})


@pytest.mark.timeout(300)
async def test_whatever_dies_at_a_step_nothing_is_lost(dying: Dying) -> None:
    for number, point in enumerate(POINTS):
        await dying.dies_at(number, point)
        await dying.assert_all_there()
    await eventually(dying.are_dropped, UP_WITHIN_S)
    await dying.assert_all_there()
    store = LogStore(dying.database, max_batch=4, max_queue=8)
    size = await store.size()
    await eventually(lambda: _published(dying) == size, UP_WITHIN_S)
    auditor = Auditor.of((dying.folder / "keys" / LOG_PUBLIC_KEY).read_text())
    report = verify_tiles(dying.folder / "tiles", auditor, dying.archives)
    assert report.tree_size == size
    assert sum(each.events for each in report.archives) == EVENTS * len(POINTS)
    assert len(report.archives) == len(POINTS)
    assert not [name for name in os.listdir(dying.archives) if "unfinished" in name]  # noqa: PTH208


def _published(dying: Dying) -> int:
    text = (dying.folder / "tiles" / "checkpoint").read_text()
    return int(text.split("\n")[1])
