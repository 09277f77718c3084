"""Secret files: made once, private, and refused when damaged."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.policy.key_files import make_keys, make_pepper
from remit.rpc.errors import RemitError
from remit.secret_files import read_secret


def test_a_secret_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = make_pepper(tmp_path)
    secret = read_secret(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(secret) == 32
    assert make_pepper(tmp_path) == path
    assert read_secret(path) == secret
    assert read_secret(make_keys(tmp_path)) != secret


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        ("00" * 32, 0o644, "open to others"),
        ("00" * 31, 0o600, "holds 31 bytes"),
        ("not hex", 0o600, "hex digits"),
        ("é" * 64, 0o600, "hex digits"),
    ],
)
def test_a_damaged_or_open_file_is_refused_by_name(
    tmp_path: Path, content: str, mode: int, says: str
) -> None:
    path = tmp_path / "api-keys.pepper"
    path.write_text(content, encoding="utf-8")
    path.chmod(mode)
    for use in (lambda: read_secret(path), lambda: make_pepper(tmp_path)):
        with pytest.raises(RemitError, match=says) as refused:
            use()
        assert refused.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
        assert str(path) in refused.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RemitError, match="missing"):
        read_secret(tmp_path / "missing")
