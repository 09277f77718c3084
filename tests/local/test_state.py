"""The state directory: made once, owned by one, never repaired by deleting."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.local.state import (
    AlreadyRunningError,
    StateDirectory,
    default_state,
    read_small,
    write_private,
)
from remit.rpc.errors import RemitError

INVALID = error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
CORRUPT = error_reason_pb2.ERROR_REASON_DATA_CORRUPT


def test_a_new_folder_is_made_and_opens_again(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    state = StateDirectory.open(folder)
    assert state.version_file.read_text() == "1\n"
    assert stat.S_IMODE(folder.stat().st_mode) in {0o700, 0o711}
    StateDirectory.open(folder)


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RemitError, match="not a state directory") as caught:
        StateDirectory.open(tmp_path)
    assert caught.value.reason == INVALID
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"2\n", INVALID), (b"one\n", CORRUPT), (b"", CORRUPT), (b"\xff\xfe", CORRUPT)],
)
def test_a_version_that_is_not_ours_is_named(tmp_path: Path, content: bytes, reason: int) -> None:
    state = StateDirectory.open(tmp_path / "state")
    state.version_file.write_bytes(content)
    with pytest.raises(RemitError, match="version") as caught:
        StateDirectory.open(state.folder)
    assert caught.value.reason == reason
    assert state.version_file.read_bytes() == content


def test_a_path_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(RemitError, match="--state"):
        StateDirectory.open(tmp_path / "state")


def test_a_folder_without_a_mesh_is_said_to_have_none(tmp_path: Path) -> None:
    with pytest.raises(RemitError, match="remit up") as caught:
        StateDirectory.existing(tmp_path)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    state = StateDirectory.open(tmp_path / "state")
    assert not state.is_locked()
    with state.locked():
        assert state.is_locked()
        with pytest.raises(AlreadyRunningError, match=str(os.getpid())), state.locked():
            raise AssertionError
    assert not state.is_locked()


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    state = StateDirectory.open(tmp_path / "state")
    code = (
        "import sys\nfrom pathlib import Path\nfrom remit.local.state import StateDirectory\n"
        "with StateDirectory(Path(sys.argv[1])).locked():\n print('held', flush=True)\n input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(state.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert state.is_locked()
        assert state.owner() == str(process.pid)
        process.kill()
        process.wait()
        assert not state.is_locked()


def test_private_files_are_whole_and_private(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    write_private(file, "one")
    write_private(file, b"two")
    assert file.read_text() == "two"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_is_too_large_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 70_000)
    with pytest.raises(RemitError, match="big") as caught:
        read_small(tmp_path / "big")
    assert caught.value.reason == CORRUPT


def test_the_default_follows_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REMIT_STATE", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_state() == Path("/var/lib/remit")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_state() == Path.home() / ".local" / "state" / "remit"
    monkeypatch.setenv("REMIT_STATE", "/elsewhere")
    assert default_state() == Path("/elsewhere")
