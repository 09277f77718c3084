"""The guard: a log that forgot what it had signed takes nothing more, until it is whole again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.anchor import ANCHOR_FILE, Anchor
from remit.audit.checkpoints import CheckpointSigner
from remit.audit.guard import LogGuard
from remit.audit.key_chain import rotation_note
from remit.audit.metrics import ROLLED_BACK
from remit.audit.note import Signer
from remit.audit.signing_keys import SigningKeys
from remit.audit.store import LogStore
from remit.rpc.errors import RemitError
from tests.audit.events import KEYS, Log, make_event, sealed
from tests.conftest import PostgresCluster
from tests.monitoring.values import gained

Owner = Callable[..., Awaitable[None]]


@dataclass
class Replica:
    """A replica of the log: its own memory, and the anchor of a folder."""

    store: LogStore
    anchor: Anchor
    checkpoints: CheckpointSigner

    async def append(self, *names: str) -> list[int]:
        return [await self.store.append(sealed(make_event(name))) for name in names]


def replica(log: Log, folder: Path, keys: SigningKeys | None = None) -> Replica:
    keys = keys or SigningKeys(KEYS.signer)
    store = LogStore(log.database, max_batch=64, max_queue=1024)
    anchor = Anchor(folder / ANCHOR_FILE, keys)
    guard = LogGuard(store, anchor)
    signer = CheckpointSigner(log.database, store, keys, interval_ms=10, guard=guard)
    return Replica(store, anchor, signer)


@pytest.fixture(autouse=True)
def _open() -> None:
    ROLLED_BACK.set(0)


@pytest.fixture
async def owner(log: Log, postgres: PostgresCluster) -> Owner:
    """Does as the database's owner what no service may."""

    async def execute(sql: str, *args: object) -> None:
        name = await log.database.fetchval("SELECT current_database()")
        connection = await asyncpg.connect(postgres.dsn(name, "remit_audit_owner"))
        await connection.execute(sql, *args)
        await connection.close()

    return execute


async def restored(owner: Owner, size: int) -> None:
    """The database as a backup of that size brings it back, checkpoints included."""
    await owner("DELETE FROM leaves WHERE leaf_index >= $1", size)
    await owner("DELETE FROM events WHERE leaf_index >= $1", size)
    await owner("DELETE FROM checkpoints WHERE tree_size > $1", size)


async def refused(attempt: Awaitable[object], fault: str) -> None:
    with pytest.raises(RemitError, match=fault) as raised:
        await attempt
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_LOG_ROLLED_BACK


async def test_a_new_log_has_no_anchor_and_then_one(log: Log, tmp_path: Path) -> None:
    one = replica(log, tmp_path)
    assert await one.anchor.read() is None
    await one.append("e-1")
    signed = await one.checkpoints.covering_all()
    kept = await one.anchor.read()
    assert kept is not None
    assert kept.signed_note == signed.signed_note == (tmp_path / ANCHOR_FILE).read_text()
    assert os.listdir(tmp_path) == [ANCHOR_FILE]  # noqa: PTH208 - pathlib's twin counts as blocking


async def test_a_restored_database_takes_nothing_at_the_next_start(
    log: Log, tmp_path: Path, owner: Owner
) -> None:
    before = replica(log, tmp_path)
    await before.append("e-1", "e-2", "e-3")
    await before.checkpoints.covering_all()
    await restored(owner, 2)
    after = replica(log, tmp_path)
    closed = gained("remit_audit_rolled_back")
    await refused(after.checkpoints.check(), "has 2 leaves, and a checkpoint of 3 was signed")
    assert closed() == 1
    await refused(after.append("e-4"), "no effect starts")
    await refused(after.checkpoints.covering_all(), "checkpoint of 3")
    assert await log.store.size() == 2
    # Grown again, it is another log all the same: that is what the guard is for.
    await log.append(make_event("other-1"), make_event("other-2"))
    await refused(after.checkpoints.check(), "the first 3 leaves of the log are not those")


async def test_it_opens_by_itself_once_the_log_is_whole(
    log: Log, tmp_path: Path, owner: Owner
) -> None:
    before = replica(log, tmp_path)
    await before.append("e-1", "e-2", "e-3")
    await before.checkpoints.covering_all()
    await restored(owner, 2)
    after = replica(log, tmp_path)
    closed = gained("remit_audit_rolled_back")
    await refused(after.checkpoints.check(), "checkpoint of 3")
    lost = LogStore(log.database, max_batch=64, max_queue=1024)
    await lost.append(sealed(make_event("e-3")))
    await after.checkpoints.check()
    assert closed() == 0
    assert await after.append("e-4") == [3]
    assert (await after.checkpoints.covering_all()).tree_size == 4


async def test_another_database_is_another_log(log: Log, tmp_path: Path, owner: Owner) -> None:
    one = replica(log, tmp_path)
    await one.append("e-1", "e-2")
    await one.checkpoints.covering_all()
    await owner("TRUNCATE leaves, nodes, events, checkpoints")
    await refused(replica(log, tmp_path).checkpoints.check(), "has 0 leaves")


async def test_a_replica_that_lives_on_knows_more_than_the_last_checkpoint(
    log: Log, tmp_path: Path, owner: Owner
) -> None:
    one = replica(log, tmp_path)
    await one.append("e-1")
    await one.checkpoints.covering_all()
    await one.append("e-2", "e-3")  # no checkpoint covers these
    await restored(owner, 1)
    await refused(one.append("e-4"), "has 1 leaves, and had 3")
    await refused(one.checkpoints.check(), "this replica saw 3 of them committed")
    assert await log.store.size() == 1


async def test_a_loss_that_no_checkpoint_and_no_replica_knows_cannot_be_seen(
    log: Log, tmp_path: Path, owner: Owner
) -> None:
    """What ADR 35 says of the last interval; with this it is not said in vain."""
    one = replica(log, tmp_path)
    await one.append("e-1")
    await one.checkpoints.covering_all()
    await one.append("e-2")
    await restored(owner, 1)
    assert await replica(log, tmp_path).append("e-3") == [1]


async def test_a_shared_anchor_never_goes_back(log: Log, tmp_path: Path) -> None:
    one, other = replica(log, tmp_path), replica(log, tmp_path)
    await one.append("e-1")
    first = await one.checkpoints.covering_all()
    await other.append("e-2")
    second = await other.checkpoints.covering_all()
    await asyncio.gather(*(r.anchor.advance(first.signed_note) for r in (one, other) * 4))
    assert (tmp_path / ANCHOR_FILE).read_text() == second.signed_note


async def test_each_replica_may_have_an_anchor_of_its_own(log: Log, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    one, other = (replica(log, folder) for folder in folders)
    await one.append("e-1")
    await one.checkpoints.covering_all()
    await other.checkpoints.covering_all()  # which signs nothing
    texts = {(folder / ANCHOR_FILE).read_text() for folder in folders}
    assert len(texts) == 1


async def test_an_anchor_goes_on_under_a_new_key(log: Log, tmp_path: Path) -> None:
    one = replica(log, tmp_path)
    await one.append("e-1")
    await one.checkpoints.covering_all()
    new = Signer.generate(KEYS.signer.name)
    notes = [rotation_note(KEYS.signer, new, log.clock.now())]
    other = replica(log, tmp_path, SigningKeys(new, notes))
    await other.append("e-2")
    assert (await other.checkpoints.covering_all()).tree_size == 2
    with pytest.raises(RemitError, match="cannot be believed"):
        await one.checkpoints.check()  # it has the old key files


@pytest.mark.parametrize("content", [b"", b"\xff", b"nonsense\n\n", b"x" * 100_000])
async def test_a_damaged_anchor_is_named(log: Log, tmp_path: Path, content: bytes) -> None:
    (tmp_path / ANCHOR_FILE).write_bytes(content)
    one = replica(log, tmp_path)
    with pytest.raises(RemitError, match=r"log\.anchor") as raised:
        await one.checkpoints.check()
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID


async def test_the_anchor_of_another_log_is_not_believed(log: Log, tmp_path: Path) -> None:
    other = Signer.generate("remit.internal/audit/other")
    await replica(log, tmp_path, SigningKeys(other)).checkpoints.covering_all()
    with pytest.raises(RemitError, match="cannot be believed"):
        await replica(log, tmp_path).checkpoints.check()


async def test_an_anchor_that_cannot_be_written_is_named(log: Log, tmp_path: Path) -> None:
    one = replica(log, tmp_path / "missing")
    with pytest.raises(RemitError, match="REMIT_AUDIT_ANCHOR_FILE") as raised:
        await one.checkpoints.covering_all()
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
    (tmp_path / "missing").mkdir()
    await one.checkpoints.covering_all()
    assert await one.anchor.read() is not None


async def test_a_replica_of_a_tree_that_is_gone_never_goes_on_from_its_edge(
    log: Log, tmp_path: Path, owner: Owner
) -> None:
    """The log grew again, beyond what the replica saw, and what is kept outside follows it."""
    one = replica(log, tmp_path)
    await one.append("e-1", "e-2", "e-3")
    await restored(owner, 1)
    other = replica(log, tmp_path)
    await other.append("f-2", "f-3", "f-4", "f-5")
    await other.checkpoints.covering_all()
    await refused(one.checkpoints.check(), "are not those that this replica saw committed")
    await refused(one.append("e-4"), "start it anew")
    assert await other.append("f-6") == [5]
