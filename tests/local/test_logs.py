"""Logs stay in bounds while their processes keep them open."""

from __future__ import annotations

from pathlib import Path

from remit.local.logs import bound_logs
from remit.local.process import log_tail


def test_a_long_log_is_moved_aside_and_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    with log.open("ab", buffering=0) as stream:
        stream.write(b"old\n" * 100)
        bound_logs([log], max_bytes=200)
        stream.write(b"new\n")
    assert log.read_bytes() == b"new\n"
    assert (tmp_path / "part.log.1").read_bytes() == b"old\n" * 100


def test_a_short_or_missing_log_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    log.write_text("short")
    bound_logs([log, tmp_path / "none.log"], max_bytes=200)
    assert log.read_text() == "short"
    assert not (tmp_path / "part.log.1").exists()


def test_the_tail_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    log.write_text("".join(f"line {number}\n" for number in range(10_000)))
    assert log_tail(log)[-1] == "line 9999"
    assert len(log_tail(log)) == 5
    assert log_tail(tmp_path / "none.log") == []
