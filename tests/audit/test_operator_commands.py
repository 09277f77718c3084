"""`remit audit archive` and `remit audit reconcile` as an operator calls them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.audit import reconciliation
from remit.audit.archive_file import label
from remit.audit.own_events import RECONCILE
from remit.audit.settings import AuditSettings
from remit.audit.tile_folder import TileFaultError, TileFolder
from remit.cli import exit_codes
from remit.cli.main import run
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.audit.old_months import month_ago
from tests.audit.test_old_months import OLD, age, with_folders
from tests.audit.test_reconciliation import exported, restored
from tests.audit.test_service import Audit, admin, audit, intent, outcome, serving
from tests.waiting import eventually

assert audit  # the fixture of a running service


class Operator:
    """Runs commands with the environment of audit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def uses(self, settings: AuditSettings) -> None:
        """Set the environment as these settings are."""
        for name in (
            "dsn",
            "keys_dsn",
            "keys_dir",
            "archiver_dsn",
            "tiles_dir",
            "archive_dir",
            "retention_months",
        ):
            value = getattr(settings, name)
            if value:
                self._monkeypatch.setenv(f"REMIT_AUDIT_{name.upper()}", str(value))

    async def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of `remit audit ...`."""
        self._capsys.readouterr()
        code = await asyncio.to_thread(run, ["audit", *arguments])
        told = self._capsys.readouterr()
        return code, told.out, told.err

    async def json(self, *arguments: str) -> Any:
        """The document that it prints."""
        code, out, err = await self(*arguments, "--json")
        assert code == exit_codes.OK, err
        [document] = [line for line in out.splitlines() if line.startswith("{")]
        return json.loads(document)


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(monkeypatch, capsys)


async def test_months_are_looked_at_archived_and_dropped(
    audit: Audit, operator: Operator, tmp_path: Path
) -> None:
    settings = with_folders(audit.settings, tmp_path)
    await audit.append(*(intent(f"e-{n}") for n in range(5)))
    await age(settings, 5)
    operator.uses(settings)
    before = ("--before", label(month_ago(2)))
    code, _, err = await operator("archive", *before)
    assert (code, "checkpoint: it is missing" in err) == (exit_codes.INVALID, True)
    async with serving(settings):
        await eventually((tmp_path / "tiles" / "checkpoint").exists)
        looked = await operator.json("archive", *before, "--dry-run")
        [month] = looked["months"]
        assert (month["month"], month["events"], month["archived"]) == (label(OLD), 5, False)
        code, out, _ = await operator("archive", *before)
        assert (code, "still in the database" in out) == (exit_codes.OK, True)
        [month] = (await operator.json("archive", *before, "--drop"))["months"]
        assert (month["archived"], month["dropped"], month["last_index"]) == (True, True, 4)
        assert (
            month["size_bytes"] == (tmp_path / "archive" / f"{label(OLD)}.archive").stat().st_size
        )
        code, out, _ = await operator("archive", *before, "--drop")
        assert (code, out) == (exit_codes.OK, "audit: no month is due\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no retention is set"),
        (("--before", "2026-13"), "'2026-13' is no month"),
        (("--before", "yesterday"), "'yesterday' is no month"),
    ],
)
async def test_a_wrong_command_line_archives_nothing(
    audit: Audit, operator: Operator, arguments: tuple[str, ...], words: str
) -> None:
    operator.uses(audit.settings)
    code, _, err = await operator("archive", *arguments)
    assert (code, words in err) == (exit_codes.USAGE, True), err


async def test_without_the_folders_nothing_is_archived(audit: Audit, operator: Operator) -> None:
    operator.uses(audit.settings)
    code, _, err = await operator("archive", "--before", label(month_ago(2)))
    assert (code, "REMIT_AUDIT_ARCHIVE_DIR" in err) == (exit_codes.CONFIGURATION, True)


# ------------------------------------------------------------------------- reconcile


async def test_a_whole_log_is_left_alone(audit: Audit, operator: Operator, tmp_path: Path) -> None:
    operator.uses(audit.settings)
    await audit.append(intent("e-1"))
    path = await exported(audit, tmp_path / "log.export")
    code, out, _ = await operator("reconcile", str(path))
    assert (code, "nothing is missing" in out) == (exit_codes.OK, True)
    assert await operator.json("reconcile", str(path)) == {"put_back": 0}


async def test_what_was_lost_comes_back_from_an_export(
    audit: Audit, operator: Operator, tmp_path: Path
) -> None:
    operator.uses(audit.settings)
    await audit.append(*(intent(f"e-{n}") for n in range(5)))
    await audit.append_outcomes(outcome("e-4-outcome"))
    path = await exported(audit, tmp_path / "log.export")
    await restored(audit.settings, 2)
    done = await operator.json("reconcile", str(path))
    assert (done["kept_size"], done["put_back"]) == (2, done["tree_size"] - 2)
    await restored(audit.settings, 2)
    code, out, _ = await operator("reconcile", str(path))
    assert (code, "leaves, 2 to" in out, "Restart the replicas" in out) == (0, True, True)
    path.write_bytes(b"nonsense\n")
    await restored(audit.settings, 2)
    code, _, err = await operator("reconcile", str(path))
    assert (code, "line 1 is not JSON" in err) == (exit_codes.CONFIGURATION, True)


async def test_what_is_put_back_is_told_though_the_command_dies_just_after(
    audit: Audit, operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.uses(audit.settings)
    await audit.append(*(intent(f"e-{n}") for n in range(5)))
    path = await exported(audit, tmp_path / "log.export")
    await restored(audit.settings, 2)

    async def dies(*_: object) -> None:
        raise RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "it died here")

    with monkeypatch.context() as patched:
        patched.setattr(reconciliation, "insert_checkpoint", dies)
        code, _, err = await operator("reconcile", str(path))
        assert (code != exit_codes.OK, "it died here" in err) == (True, True), err
    assert await operator.json("reconcile", str(path)) == {"put_back": 0}
    async with Database.open(audit.settings.dsn, pool_size=1) as database:
        told = await database.fetch("SELECT leaf_index FROM events WHERE action = $1", RECONCILE)
        ends = await database.fetchval("SELECT max(leaf_index) FROM leaves")
    assert [row["leaf_index"] for row in told] == [ends]


async def test_what_was_lost_comes_back_from_the_tiles(
    audit: Audit, operator: Operator, tmp_path: Path
) -> None:
    """Over more than one bundle; tiles that were changed, or are too short, put nothing back."""
    settings = with_folders(audit.settings, tmp_path, retention_months=0)
    operator.uses(settings)
    tiles = TileFolder(tmp_path / "tiles")
    async with serving(settings) as replica:
        for start in (0, 150):
            await replica.append(*(admin(f"e-{n}") for n in range(start, start + 150)))
        note = (await replica.ask("GetCheckpoint", min_tree_size=300)).checkpoint
        await eventually(lambda: _shown(tiles) >= note.tree_size)
    await restored(settings, 120)
    bundle = tmp_path / "tiles" / "tile" / "entries" / "000"
    whole = bundle.read_bytes()
    bundle.write_bytes(whole.replace(b"acme", b"ecma", 1))
    code, _, err = await operator("reconcile", str(tmp_path / "tiles"))
    assert (code, "are not those that were signed" in err) == (exit_codes.CONFIGURATION, True), err
    bundle.write_bytes(whole[:-1])
    code, _, err = await operator("reconcile", str(tmp_path / "tiles"))
    assert (code, "cut off" in err) == (exit_codes.CONFIGURATION, True), err
    bundle.write_bytes(whole)
    done = await operator.json("reconcile", str(tmp_path / "tiles"))
    assert (done["kept_size"], done["tree_size"]) == (120, note.tree_size)
    assert done["root_hash"] == note.root_hash.hex()
    code, _, err = await operator("reconcile", str(tmp_path / "archive-of-nothing"))
    assert code == exit_codes.USAGE
    (tmp_path / "empty").mkdir()
    code, _, err = await operator("reconcile", str(tmp_path / "empty"))
    assert (code, "checkpoint: it is missing" in err) == (exit_codes.CONFIGURATION, True)


def _shown(tiles: TileFolder) -> int:
    try:
        return tiles.published_size()
    except TileFaultError:
        return 0
