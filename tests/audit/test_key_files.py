"""Key files: made once, private, and never replaced silently."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.key_files import FILES, LOG_PUBLIC_KEY, load_log_keys, make_log_keys
from remit.audit.note import Verifier
from remit.rpc.errors import RemitError


def test_keys_are_made_once(tmp_path: Path) -> None:
    made = make_log_keys(tmp_path / "deep" / "keys")
    again = make_log_keys(tmp_path / "deep" / "keys")
    assert made.signer.secret_text() == again.signer.secret_text()
    assert (made.master, made.pseudonym) == (again.master, again.pseudonym)
    assert made.master.key != made.pseudonym
    public = Verifier.parse((tmp_path / "deep" / "keys" / LOG_PUBLIC_KEY).read_text())
    assert public.open(made.signer.sign("x\n")) == "x\n"


def test_private_files_are_private(tmp_path: Path) -> None:
    make_log_keys(tmp_path / "keys")
    modes = {name: stat.S_IMODE((tmp_path / "keys" / name).stat().st_mode) for name in FILES}
    assert modes.pop(LOG_PUBLIC_KEY) & 0o077 == 0o044
    assert set(modes.values()) == {0o600}


def test_two_logs_never_share_a_name(tmp_path: Path) -> None:
    one, other = (make_log_keys(tmp_path / name).signer.name for name in ("one", "other"))
    assert one != other


def test_what_a_crash_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "keys.unfinished").mkdir()
    (tmp_path / "keys.unfinished" / "log.key").write_text("half")
    (tmp_path / "keys").mkdir()
    make_log_keys(tmp_path / "keys")
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == sorted(FILES)
    assert not (tmp_path / "keys.unfinished").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_and_not_made_again(tmp_path: Path, name: str) -> None:
    make_log_keys(tmp_path / "keys")
    (tmp_path / "keys" / name).unlink()
    for load in (load_log_keys, make_log_keys):
        with pytest.raises(RemitError, match=name) as raised:
            load(tmp_path / "keys")
        assert raised.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
        assert "is missing" in raised.value.message


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"AAAA\n", b"\xff\xfe", b"PRIVATE+KEY+x"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    make_log_keys(tmp_path / "keys")
    (tmp_path / "keys" / name).write_bytes(content)
    with pytest.raises(RemitError, match=name) as raised:
        load_log_keys(tmp_path / "keys")
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID


def test_a_public_key_of_another_log_is_named(tmp_path: Path) -> None:
    make_log_keys(tmp_path / "one")
    make_log_keys(tmp_path / "other")
    other = (tmp_path / "other" / LOG_PUBLIC_KEY).read_bytes()
    (tmp_path / "one" / LOG_PUBLIC_KEY).write_bytes(other)
    with pytest.raises(RemitError, match="does not belong"):
        load_log_keys(tmp_path / "one")


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(RemitError, match=r"log\.key is missing"):
        load_log_keys(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(RemitError, match="cannot"):
        make_log_keys(tmp_path / "file" / "keys")
