"""Old months leave the database only when nothing is lost, whoever asks and whatever dies."""

from __future__ import annotations

import os
import shutil
import stat
from datetime import date
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from remit.audit.archive_file import ArchivedEvent, ArchiveReader, entry_id, file_of, label
from remit.audit.archiving import Archiver
from remit.audit.erasing import Eraser
from remit.audit.evidence import Auditor, VerificationError
from remit.audit.merkle import LeafRange, inclusion_ranges, leaf_hash, verify_inclusion
from remit.audit.sealing import unseal
from remit.audit.tile_verifier import verify_tiles
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.audit.events import ALICE, KEYS, Log, make_event
from tests.audit.old_months import OldLog, as_owner, make_old, month_ago
from tests.audit.test_erasing import request as erasure_of

OLD, OLDER = month_ago(3), month_ago(4)
MONTHS = 300


@pytest.fixture
async def old(log: Log, dropper: Database, tmp_path: Path) -> OldLog:
    """300 events of an older month, 300 of an old one and 10 of this one, all in the tiles."""
    await log.append(*(make_event(f"e-{n}") for n in range(2 * MONTHS + 10)))
    await make_old(log.database, OLDER, 0, MONTHS)
    await make_old(log.database, OLD, MONTHS, 2 * MONTHS)
    found = OldLog.of(log, dropper, tmp_path)
    await found.publish()
    return found


async def present(log: Log) -> list[int]:
    rows = await log.database.fetch("SELECT leaf_index FROM events ORDER BY leaf_index")
    return [row["leaf_index"] for row in rows]


async def test_a_month_leaves_the_database_and_every_proof_still_works(old: OldLog) -> None:
    log = old.log
    earlier = await old.publish()
    before = await log.store.leaves(0, 2 * MONTHS)
    done = await old.run(month_ago(2))
    assert [(each.month.month, each.month.events) for each in done] == [(OLDER, 300), (OLD, 300)]
    assert await present(log) == [*range(600, 612)], "this month's, and what tells of the archives"
    size = await log.store.size()
    root = await log.store.root(size)
    for index in (0, 255, 599, 605):
        path = await log.store.range_hashes(inclusion_ranges(index, size))
        hashed = (await log.store.range_hashes([LeafRange(index, index + 1)]))[0]
        verify_inclusion(hashed, index, size, path, root)
    note = await old.publish()
    report = verify_tiles(old.tiles, Auditor.of(str(KEYS.signer.verifier()), [earlier]), old.folder)
    assert (report.tree_size, len(report.archives)) == (612, 2)
    assert note.splitlines()[1] == "612"
    assert leaf_hash(before[5]) == (await log.store.leaf_hashes(5, 6))[0]


async def test_the_files_are_private_and_hold_every_payload_as_it_was(old: OldLog) -> None:
    rows = await old.log.database.fetch("SELECT * FROM events ORDER BY leaf_index LIMIT 300")
    await old.run(OLD)
    path = file_of(old.folder, OLDER)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(old.folder.stat().st_mode) == 0o700
    kept = list(ArchiveReader(path).events())
    assert [(each.leaf_index, each.payload) for each in kept] == [
        (row["leaf_index"], row["payload"]) for row in rows
    ]
    first = rows[0]["append_time"].timestamp() * 1_000_000
    assert abs(kept[0].append_time_us - first) < 1
    # Nothing in clear, and little more than the payloads themselves.
    payloads = sum(len(each.payload) for each in kept)
    assert b"secret-of-alice" not in path.read_bytes()
    assert path.stat().st_size < payloads + 300 * 12 + 512


async def test_an_erasure_reaches_the_archive(
    old: OldLog, destroyer: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    del monkeypatch
    log = old.log
    leaves = await log.store.leaves(0, 1)
    await old.run(OLD)
    [payload] = [e.payload for e in ArchiveReader(file_of(old.folder, OLDER)).events()][:1]
    pseudonym = log.log.pseudonym_of(ALICE)
    key = (await log.keyring.for_reading([pseudonym]))[pseudonym]
    assert unseal(leaves[0], payload, key).subject == ALICE
    await destroyer.execute(
        "DELETE FROM subject_keys WHERE subject_pseudonym = $1 AND key_id = $2",
        pseudonym,
        key.key_id,
    )
    log.keyring.forget(pseudonym)
    gone = (await log.keyring.for_reading([pseudonym])).get(pseudonym)
    assert unseal(leaves[0], payload, gone).subject == ""


async def test_what_tells_of_erasures_stays(
    old: OldLog, destroyer: Database, tmp_path: Path
) -> None:
    """A key that comes back with a backup of the keys is destroyed again, after the drop too."""
    from tests.audit.events import make_eraser  # noqa: PLC0415 - used once

    log = old.log
    kept = await log.keys_database.fetchrow("SELECT * FROM subject_keys")
    assert kept is not None
    eraser: Eraser = make_eraser(log, destroyer)
    erased = await eraser.erase(erasure_of(log))
    await make_old(log.database, OLD, erased.leaf_index, erased.leaf_index + 1)
    await old.publish()
    await old.run(month_ago(2))
    assert erased.leaf_index in await present(log)
    assert await log.store.find(erasure_of(log).event_id) is not None
    await log.keys_database.execute(
        "INSERT INTO subject_keys SELECT * FROM unnest($1::subject_keys[]) AS kept", [tuple(kept)]
    )
    await make_eraser(log, destroyer).finish()
    left = await log.keys_database.fetch("SELECT key_id FROM subject_keys")
    assert kept["key_id"] not in [row["key_id"] for row in left]
    del tmp_path


async def test_a_replay_of_a_dropped_event_has_its_place(old: OldLog) -> None:
    await old.run(month_ago(2))
    assert await old.log.append(make_event("e-7")) == [7]
    [other] = await old.log.append(make_event("e-7", action="models.generate"))
    assert isinstance(other, RemitError)
    assert other.reason_name == "KEY_REUSED"


async def test_only_looking_changes_nothing(old: OldLog) -> None:
    done = await old.run(month_ago(2), looks=True)
    assert [each.archive for each in done] == [None, None]
    assert len(await present(old.log)) == 610
    assert not old.folder.exists()


async def test_an_archive_alone_drops_nothing_and_is_made_once(old: OldLog) -> None:
    await old.run(month_ago(2), drops=False)
    file = file_of(old.folder, OLD)
    made = (file.read_bytes(), file.stat().st_ino)
    size = await old.log.store.size()
    again = await old.run(month_ago(2), drops=False)
    assert (file.read_bytes(), file.stat().st_ino) == made
    assert await old.log.store.size() == size, "the entry is there already"
    assert again[1].archive is not None
    assert len(await present(old.log)) == 612


# ------------------------------------------------------------------------- what is refused


async def refused(old: OldLog, month: date, words: str) -> None:
    with pytest.raises(RemitError, match=words) as raised:
        await old.archiver.drop(month)
    assert raised.value.reason_name == "INVALID_STATE"


async def test_the_database_refuses_what_the_log_does_not_vouch_for(old: OldLog) -> None:
    await refused(old, OLD, "the log does not say")
    await old.run(month_ago(2), drops=False)
    payload = "UPDATE events SET payload = payload || '\\x00' WHERE leaf_index = 450"
    await as_owner(old.log.database, payload)
    await refused(old, OLD, "the log does not say")
    await old.archiver.drop(OLDER)
    assert set(range(300, 610)) <= set(await present(old.log))


async def test_an_event_that_came_after_the_archive_keeps_its_month(old: OldLog) -> None:
    await old.run(month_ago(2), drops=False)
    await make_old(old.log.database, OLD, 605, 606)
    await refused(old, OLD, "the log does not say")


async def test_an_entry_that_no_checkpoint_covers_vouches_for_nothing(old: OldLog) -> None:
    await old.run(month_ago(2), drops=False)
    await as_owner(old.log.database, "DELETE FROM checkpoints WHERE tree_size > 610")
    await refused(old, OLD, "no checkpoint was signed since")


@pytest.mark.parametrize("ago", [-1, 0, 1])
async def test_this_month_and_the_last_one_stay(old: OldLog, ago: int) -> None:
    await make_old(old.log.database, month_ago(1), 600, 605)
    await refused(old, month_ago(ago), "is this month, the last one, or has not been yet")
    assert await old.archiver.due(month_ago(-5)) == [OLDER, OLD]


async def test_a_month_that_never_was_is_named(old: OldLog) -> None:
    await refused(old, date(1999, 1, 1), "there are no events of 1999-01")


async def test_no_role_can_do_the_others_part(old: OldLog, dropper: Database) -> None:
    """Who drops can neither read nor record; who records can neither drop nor say it was done."""
    service = old.log.database
    for database, statement in (
        (service, f"SELECT drop_month('{OLD}')"),
        (service, "SELECT month_digest('events')"),
        (service, "INSERT INTO archived_months SELECT * FROM archived_months"),
        (service, f"DROP TABLE events_{OLD:%Y_%m}"),
        (dropper, "SELECT FROM events"),
        (dropper, "SELECT FROM leaves"),
        (dropper, "SELECT FROM archived_months"),
        (dropper, "SELECT prepare_partitions()"),
        (dropper, "SELECT month_digest('events')"),
        (dropper, "INSERT INTO leaves VALUES (9999, 'x', sha256('x'))"),
        (dropper, "CREATE TABLE leaves (leaf_index bigint)"),
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.execute(statement)


async def test_a_month_is_its_first_day(old: OldLog, dropper: Database) -> None:
    del old
    for value in (OLD.replace(day=2), None):
        with pytest.raises(asyncpg.InvalidParameterValueError):
            await dropper.fetchrow("SELECT * FROM drop_month($1)", value)


async def test_what_the_tiles_lack_stays(log: Log, dropper: Database, tmp_path: Path) -> None:
    await log.append(*(make_event(f"e-{n}") for n in range(300)))
    old = OldLog.of(log, dropper, tmp_path)
    await old.publish()
    await log.append(*(make_event(f"f-{n}") for n in range(10)))
    await make_old(log.database, OLD, 0, 310)
    with pytest.raises(RemitError, match=r"show 300 leaves, and .* ends at leaf 309"):
        await old.run(month_ago(2))
    assert not list(old.folder.glob("*.archive"))
    await old.publish()
    assert len(await old.run(month_ago(2))) == 1


@pytest.mark.parametrize(
    ("path", "damage", "words"),
    [
        ("tile/entries/000", lambda data: data[:-1] + b"]", "does not hold the hashes"),
        ("tile/entries/001", lambda data: data[:-3], "cut off"),
        ("tile/0/000", lambda data: data[32:] + data[:32], "does not hold the hashes"),
        ("tile/0/001", lambda _: None, "it is missing"),
        ("checkpoint", lambda data: data.replace(b"610", b"611"), "did not sign"),
        ("checkpoint", lambda _: None, "it is missing"),
    ],
)
async def test_damaged_tiles_keep_a_month(old: OldLog, path: str, damage: Any, words: str) -> None:
    file = old.tiles / path
    data = damage(file.read_bytes())
    file.unlink() if data is None else file.write_bytes(data)
    with pytest.raises(RemitError, match=words):
        await old.run(month_ago(2))
    assert len(await present(old.log)) == 610


async def test_tiles_of_another_log_keep_a_month(old: OldLog, tmp_path: Path) -> None:
    from tests.audit.tile_trees import signed, write_tiles  # noqa: PLC0415 - used once

    leaves = [b"another %d" % n for n in range(700)]
    shutil.rmtree(old.tiles)
    write_tiles(old.tiles, leaves, signed(leaves, KEYS.signer))
    with pytest.raises(RemitError, match="more than the log has"):
        await old.run(month_ago(2))
    shutil.rmtree(old.tiles)
    write_tiles(old.tiles, leaves[:610], signed(leaves[:610], KEYS.signer))
    with pytest.raises(RemitError, match="another tree"):
        await old.run(month_ago(2))
    del tmp_path


async def test_without_the_role_nothing_is_dropped(log: Log, tmp_path: Path) -> None:
    with pytest.raises(RemitError, match="REMIT_AUDIT_ARCHIVER_DSN"):
        await OldLog.of(log, None, tmp_path).archiver.drop(OLD)


async def test_a_role_that_may_not_drop_is_named(log: Log, tmp_path: Path) -> None:
    with pytest.raises(RemitError, match="REMIT_AUDIT_ARCHIVER_DSN may drop no month") as raised:
        await OldLog.of(log, log.database, tmp_path).archiver.drop(OLD)
    assert raised.value.reason_name == "CONFIGURATION_INVALID"


async def test_two_do_not_archive_into_one_folder(old: OldLog) -> None:
    old.folder.mkdir()
    import fcntl  # noqa: PLC0415 - used once

    descriptor = os.open(old.folder / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(RemitError, match="another process archives"):
        await old.run(month_ago(2))
    os.close(descriptor)
    assert len(await old.run(month_ago(2))) == 2


async def test_a_file_of_other_events_is_not_replaced(old: OldLog) -> None:
    await old.run(OLD, drops=False)
    shutil.copy(file_of(old.folder, OLDER), file_of(old.folder, OLD))
    with pytest.raises(RemitError, match="it holds other events than the log; move it away"):
        await old.run(month_ago(2), drops=False)


async def test_a_damaged_file_is_written_anew(old: OldLog) -> None:
    await old.run(month_ago(2), drops=False)
    file = file_of(old.folder, OLD)
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-1], b"no archive"):
        file.write_bytes(damaged)
        await old.run(month_ago(2), drops=False)
        assert file.read_bytes() == whole, "the same events are the same file"


# ------------------------------------------------------------------------- verification


async def test_the_verifier_names_an_archive_that_is_not_what_was_recorded(old: OldLog) -> None:
    await old.run(month_ago(2))
    await old.publish()
    auditor = Auditor.of(str(KEYS.signer.verifier()))
    file = file_of(old.folder, OLD)
    whole = file.read_bytes()
    for fault, words in ((whole[:-5], "not a whole one"), (None, "it is missing")):
        file.write_bytes(fault) if fault is not None else file.unlink()
        with pytest.raises(VerificationError, match=words) as raised:
            verify_tiles(old.tiles, auditor, old.folder)
        assert raised.value.place == file.name
    shutil.copy(file_of(old.folder, OLDER), file)
    with pytest.raises(VerificationError, match="not what the log says"):
        verify_tiles(old.tiles, auditor, old.folder)
    file.write_bytes(whole)
    assert len(verify_tiles(old.tiles, auditor, old.folder).archives) == 2


async def test_another_service_cannot_vouch_for_an_archive(old: OldLog) -> None:
    """An event of somebody else with such an id is no word of audit's."""
    await old.run(month_ago(2), drops=False)
    file = file_of(old.folder, OLD)
    digest = ArchiveReader(file).contents().digest
    forged = entry_id(month_ago(5), digest)
    from remit.api.audit.v1 import event_pb2  # noqa: PLC0415 - used once

    changes = {"kind": event_pb2.EVENT_KIND_ADMIN, "action": "audit.archive", "claim": ""}
    await old.log.append(make_event(forged, **changes))
    await old.publish()
    report = verify_tiles(old.tiles, Auditor.of(str(KEYS.signer.verifier())), old.folder)
    assert [label(each.month) for each in report.archives] == [label(OLDER), label(OLD)]


# ------------------------------------------------------------------------- crashes


class Killed(BaseException):
    """As if the process had died here."""


@pytest.mark.parametrize(
    "step",
    ["look", "check_tiles", "_write", "_written", "record", "covering", "drop", "dropped"],
)
async def test_whatever_dies_nothing_is_lost_and_it_can_be_repeated(
    old: OldLog, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies just before each step, or after the last; then runs again."""
    import remit.audit.archiving as module  # noqa: PLC0415 - to be changed

    async def dies(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if step == "record":
            patch.setattr(module, "record_archive", dies)
        elif step == "covering":
            patch.setattr(old.log.checkpoints, "covering", dies)
        elif step == "dropped":
            real = Archiver.drop

            async def drop_and_die(self: Archiver, month: date) -> None:
                await real(self, month)
                raise Killed

            patch.setattr(Archiver, "drop", drop_and_die)
        else:
            patch.setattr(Archiver, step, dies)
        with pytest.raises(Killed):
            await old.run(OLD)
    survived = {e.leaf_index for e in _kept(old.folder, OLDER)} | set(await present(old.log))
    assert set(range(610)) <= survived
    await old.run(month_ago(2))
    assert not set(range(600)) & set(await present(old.log))
    assert [label(month.month) for month in await old.months.all()] == [label(OLDER), label(OLD)]
    await old.publish()
    auditor = Auditor.of(str(KEYS.signer.verifier()))
    assert len(verify_tiles(old.tiles, auditor, old.folder).archives) == 2


def _kept(folder: Path, month: date) -> list[ArchivedEvent]:
    path = file_of(folder, month)
    return list(ArchiveReader(path).events()) if path.exists() else []
