"""What vouches for a metric is found in the source of a test, and what only names it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.monitoring import moved

VOUCHES = {
    "a gain": "x = gained('a_total', b='c')\n    assert x() == 1",
    "one of several gains": "x = gained('a_total')\n    assert (y(), x()) == (0, 2)",
    "a gain that is at least so much": "x = gained('a_total')\n    assert x() >= 1",
}
DOES_NOT = {
    "only its name": "x = gained('a_total')",
    "that it stays still": "x = gained('a_total')\n    assert x() == 0",
    "another metric's gain": "x = gained('b_total')\n    assert x() == 1",
    "another gain of several": "x = gained('a_total')\n    assert (x(), y()) == (0, 2)",
    "a comment": "# a_total\n    assert y() == 1",
}


def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> bool:
    monkeypatch.setattr(moved, "_ROOT", tmp_path)
    (tmp_path / "test_a.py").write_text(f"def test_it():\n    {body}\n")
    return moved.moves({"a_total"}, "test_a")


@pytest.mark.parametrize("how", VOUCHES)
def test_an_asserted_gain_vouches(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(tmp_path, monkeypatch, VOUCHES[how])


@pytest.mark.parametrize("how", DOES_NOT)
def test_nothing_else_does(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not said(tmp_path, monkeypatch, DOES_NOT[how])
