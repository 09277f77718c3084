"""The folder of a witness: made once and whole, used by one at a time, missed when it is gone."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.cosignature import Cosigner, WitnessKey
from remit.audit.note import Signer
from remit.audit.witness_files import WitnessFolder, publish
from remit.rpc.errors import RemitError
from tests.audit.tile_trees import signed

LOG = Signer.generate("remit.internal/audit/test")
WITNESS = Cosigner.generate("witness.example/w1")
FIRST, SECOND = (WITNESS.cosign(signed([b"x"] * size, LOG), 1_700_000_000) for size in (1, 2))


@pytest.fixture
def folder(tmp_path: Path) -> WitnessFolder:
    made = WitnessFolder(tmp_path / "deep" / "witness")
    made.make(WITNESS, FIRST)
    return made


def invalid(error: pytest.ExceptionInfo[RemitError]) -> bool:
    return error.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID


def test_it_gives_back_what_it_was_made_with(folder: WitnessFolder) -> None:
    assert folder.cosigner().secret_text() == WITNESS.secret_text()
    assert folder.last(WITNESS.witness_key()) == FIRST
    public = (folder.folder / "witness.pub").read_text()
    assert WitnessKey.parse(public) == WITNESS.witness_key()
    assert stat.S_IMODE((folder.folder / "witness.key").stat().st_mode) == 0o600
    assert {file.name for file in folder.folder.iterdir()} == {
        "witness.key",
        "witness.pub",
        "checkpoint",
    }


def test_a_witness_is_never_made_anew(folder: WitnessFolder) -> None:
    with pytest.raises(RemitError, match="exists; a witness's key is never made anew") as raised:
        folder.make(Cosigner.generate("witness.example/w2"), SECOND)
    assert invalid(raised)
    assert folder.cosigner().secret_text() == WITNESS.secret_text()


def test_what_a_crash_left_half_made_is_no_witness(tmp_path: Path) -> None:
    half = tmp_path / "witness.unfinished"
    half.mkdir()
    (half / "witness.key").write_text("half")
    WitnessFolder(tmp_path / "witness").make(WITNESS, FIRST)
    assert not half.exists()
    assert WitnessFolder(tmp_path / "witness").last(WITNESS.witness_key()) == FIRST


def test_the_last_checkpoint_is_replaced_and_evidence_is_kept_apart(folder: WitnessFolder) -> None:
    folder.keep(SECOND)
    evidence = folder.keep_refused("evidence")
    assert folder.last(WITNESS.witness_key()) == SECOND
    assert evidence.read_text() == "evidence"


def test_a_crash_before_the_replacement_keeps_the_last(folder: WitnessFolder) -> None:
    (folder.folder / "checkpoint.unfinished").write_text(SECOND[:40])
    assert folder.last(WITNESS.witness_key()) == FIRST
    folder.keep(SECOND)
    assert folder.last(WITNESS.witness_key()) == SECOND


def test_two_at_once_are_refused(folder: WitnessFolder) -> None:
    with folder.locked():
        with pytest.raises(RemitError, match="in use by another") as raised, folder.locked():
            pass
        assert invalid(raised)
    with folder.locked():
        pass


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("checkpoint", None, "is missing; restore it from a backup"),
        ("checkpoint", b"nonsense", "is not what this witness cosigned"),
        ("checkpoint", signed([b"x"], LOG).encode(), "no cosignature of the witness"),
        ("checkpoint", b"\xff\xff", "cannot be read"),
        ("witness.key", None, "cannot be read; .* makes a new witness"),
        ("witness.key", b"nonsense", "is damaged"),
    ],
    ids=["lost", "nonsense", "not cosigned", "no text", "no key", "damaged key"],
)
def test_a_file_that_is_missing_or_damaged_is_named(
    folder: WitnessFolder, name: str, content: bytes | None, fault: str
) -> None:
    if content is None:
        (folder.folder / name).unlink()
    else:
        (folder.folder / name).write_bytes(content)
    with pytest.raises(RemitError, match=fault) as raised, folder.locked():
        folder.last(folder.cosigner().witness_key())
    assert invalid(raised)
    assert name in raised.value.message


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RemitError, match="cannot be made") as raised:
        WitnessFolder(tmp_path / "file" / "witness").make(WITNESS, FIRST)
    assert invalid(raised)
    with pytest.raises(RemitError, match="cannot be written") as raised:
        publish(tmp_path / "none" / "checkpoint", FIRST)
    assert invalid(raised)
