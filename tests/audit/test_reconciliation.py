"""A restored log gets back what it lost, or says why it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from remit.audit.anchor import ANCHOR_FILE
from remit.audit.export import write_export
from remit.audit.key_files import LOG_PUBLIC_KEY, rotate_log_key
from remit.audit.lost_leaves import ExportFile
from remit.audit.operating import reconciled
from remit.audit.reconciliation import Reconciled
from remit.audit.settings import AuditSettings
from remit.audit.verifier import verify_export
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from remit.rpc.ids import SystemIds
from tests.audit.test_service import Audit, admin, audit, intent, outcome, reasons, serving

assert audit  # the fixture of a running service


async def exported(replica: Audit, path: Path) -> Path:
    async def stream() -> AsyncIterator[Any]:
        for message in await replica.export():
            yield message

    await write_export(path, stream())
    return path


async def as_owner(settings: AuditSettings, *statements: str) -> None:
    owner = await asyncpg.connect(settings.dsn.replace("remit_audit@", "remit_audit_owner@"))
    for statement in statements:
        await owner.execute(statement)
    await owner.close()


async def restored(settings: AuditSettings, size: int) -> None:
    """The database as a backup of that size brings it back, checkpoints included."""
    await as_owner(
        settings,
        f"DELETE FROM leaves WHERE leaf_index >= {size}",  # noqa: S608 - a number of this test
        f"DELETE FROM events WHERE leaf_index >= {size}",  # noqa: S608 - as above
        f"DELETE FROM checkpoints WHERE tree_size > {size}",  # noqa: S608 - as above
        f"DELETE FROM nodes WHERE (position + 1) << level > {size}",  # noqa: S608 - as above
    )


async def run(settings: AuditSettings, path: Path) -> Reconciled | None:
    return await reconciled(settings, ExportFile(path), clock=SystemClock(), ids=SystemIds())


async def test_what_was_lost_is_put_back_and_every_checkpoint_holds_again(
    audit: Audit, tmp_path: Path
) -> None:
    notes = []
    for size in (100, 200, 300):  # beyond the first stored node
        await audit.append(*(admin(f"e-{number}") for number in range(size - 100, size)))
        notes.append((await audit.ask("GetCheckpoint", min_tree_size=size)).checkpoint)
    await audit.append_outcomes(outcome("e-299-outcome"))
    path = await exported(audit, tmp_path / "log.export")
    await restored(audit.settings, 150)
    async with serving(audit.settings) as after:
        refused = reasons(await after.append(intent("e-new"), admin("a-new")))
        assert refused == ["LOG_ROLLED_BACK", "LOG_ROLLED_BACK"]
        assert reasons(await after.append_outcomes(outcome("o-new"))) == ["LOG_ROLLED_BACK"]
        assert (await after.ask("GetCheckpoint")).checkpoint.tree_size == 100, "it is served"
        with pytest.raises(RemitError, match="no effect starts"):
            await after.list_events()  # what must leave an entry waits
        done = await run(audit.settings, path)
        assert done is not None
        assert (done.kept_size, done.tree_size, done.count) == (150, 302, 152)
    async with serving(audit.settings) as after:
        assert await after.append(intent("e-later")) == [303]
        assert await after.append_outcomes(outcome("e-299-outcome-2")) == [304]
        listed = (await after.list_events(page_size=200)).events
        lost = next(e for e in listed if e.event.event_id == "e-200")
        assert (lost.leaf_index, lost.event.subject, lost.event.detail_json) == (200, "", "")
        path = await exported(after, tmp_path / "later.export")
    key = (audit.settings.keys_dir / LOG_PUBLIC_KEY).read_text()
    for note in notes:
        assert verify_export(path, key, note.signed_note).earlier_tree_size == note.tree_size
    told = [json.loads(leaf) for leaf in leaves_of(path)]
    [event] = [leaf for leaf in told if leaf["action"] == "audit.reconcile"]
    assert (event["org"], event["kind"]) == ("orgs/operator", "ADMIN")


def leaves_of(path: Path) -> list[bytes]:
    return list(ExportFile(path).leaves(10_000))


async def test_a_lost_event_that_comes_again_keeps_its_place(audit: Audit, tmp_path: Path) -> None:
    entries = [intent(f"e-{number}") for number in range(3)]
    await audit.append(*entries)
    path = await exported(audit, tmp_path / "log.export")
    await restored(audit.settings, 1)
    done = await run(audit.settings, path)
    assert done is not None
    assert done.lost_intents == 1, "all three are one claim's attempt"
    async with serving(audit.settings) as after:
        assert await after.append(*entries) == [0, 1, 2]


async def test_a_whole_log_lacks_nothing(audit: Audit, tmp_path: Path) -> None:
    await audit.append(intent("e-1"))
    path = await exported(audit, tmp_path / "log.export")
    assert await run(audit.settings, path) is None


async def test_an_export_of_before_a_rotation_serves(audit: Audit, tmp_path: Path) -> None:
    await audit.append(intent("e-1"), admin("a-1"))
    path = await exported(audit, tmp_path / "log.export")
    await restored(audit.settings, 1)
    rotate_log_key(audit.settings.keys_dir, datetime.now(UTC))
    done = await run(audit.settings, path)
    assert done is not None
    async with serving(audit.settings) as after:
        assert reasons(await after.append(admin("a-2"))) == [5]


async def refused(settings: AuditSettings, path: Path, reason: str, fault: str) -> None:
    before = await database_size(settings)
    with pytest.raises(RemitError, match=fault) as raised:
        await run(settings, path)
    assert raised.value.reason_name == reason
    assert await database_size(settings) == before


async def database_size(settings: AuditSettings) -> int:
    connection = await asyncpg.connect(settings.dsn)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM leaves"))
    finally:
        await connection.close()


async def test_an_export_that_is_too_short(audit: Audit, tmp_path: Path) -> None:
    await audit.append(intent("e-1"))
    path = await exported(audit, tmp_path / "log.export")
    await audit.append(admin("a-1"))
    await audit.ask("GetCheckpoint", min_tree_size=3)
    await restored(audit.settings, 1)
    fault = "ends at 2 leaves, and a checkpoint of 3 was signed"
    await refused(audit.settings, path, "CONFIGURATION_INVALID", fault)


async def test_a_log_that_went_another_way(audit: Audit, tmp_path: Path) -> None:
    await audit.append(intent("e-1"), admin("a-1"), admin("a-2"))
    path = await exported(audit, tmp_path / "log.export")
    await restored(audit.settings, 1)
    shutil.move(audit.settings.keys_dir / ANCHOR_FILE, tmp_path / ANCHOR_FILE)
    async with serving(audit.settings) as unguarded:
        await unguarded.append(admin("b-1"))
    shutil.move(tmp_path / ANCHOR_FILE, audit.settings.keys_dir / ANCHOR_FILE)
    await refused(audit.settings, path, "LOG_ROLLED_BACK", "holds others")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda text: b"", "holds no checkpoint"),
        (lambda text: b"nonsense\n", "line 1 is not JSON"),
        (lambda text: b"[]\n", "no line of an export"),
        (lambda text: b"\n".join(text.split(b"\n")[2:]), "stands before the checkpoint"),
        (lambda text: b"\n".join(text.split(b"\n")[:-3]), "not all there"),
        (lambda text: text.replace(b'"leaf":"', b'"leaf":"!', 1), "not base64"),
        (lambda text: text.replace(b'"leaf":"eyJh', b'"leaf":"eyJi', 1), "not those that were"),
        (lambda text: text.replace(b"\\n4\\n", b"\\n9\\n", 1), "did not sign"),
    ],
    ids=["nothing", "nonsense", "a list", "no head", "cut off", "no base64", "changed", "forged"],
)
async def test_a_damaged_export(audit: Audit, tmp_path: Path, change: Any, fault: str) -> None:
    await audit.append(intent("e-1"), admin("a-1"), admin("a-2"))
    path = await exported(audit, tmp_path / "log.export")
    path.write_bytes(change(path.read_bytes()))
    await restored(audit.settings, 1)
    await refused(audit.settings, path, "CONFIGURATION_INVALID", fault)
