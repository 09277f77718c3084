"""The order of the suite, and where its servers live."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import scratch
from tests.ordering import HEAVY, spread


@dataclass(frozen=True)
class Item:
    path: Path
    name: int


def items(*files: tuple[str, int]) -> list[Any]:
    return [Item(Path("tests", file), n) for file, count in files for n in range(count)]


def test_heavy_files_are_spread_and_every_file_stays_whole() -> None:
    light = [(f"cost/test_{n}.py", 3) for n in range(9)]
    heavy = [(f"integration/test_{n}.py", 2) for n in range(3)]
    given = items(*light, *heavy)
    ordered: Any = spread(given)
    assert sorted(ordered, key=given.index) == given
    files = list(dict.fromkeys(item.path for item in ordered))
    assert [item for file in files for item in given if item.path == file] == ordered
    places = [n for n, file in enumerate(files) if file.parent.name in HEAVY]
    assert places == [2, 6, 10]
    assert [file.name for file in files if file.parent.name in HEAVY] == [
        "test_0.py",
        "test_1.py",
        "test_2.py",
    ]


@pytest.mark.parametrize("files", [[], [("cost/test_a.py", 2)], [("integration/test_a.py", 2)]])
def test_of_one_kind_alone_the_order_stays(files: list[tuple[str, int]]) -> None:
    given = items(*files)
    assert spread(given) == given


def test_what_a_living_process_has_is_kept_and_what_a_dead_one_left_goes(tmp_path: Path) -> None:
    own, dead, other = (tmp_path / f"remit-tests-{name}" for name in (os.getpid(), 2**30, "x"))
    for folder in (own, dead, other):
        folder.mkdir()
        (folder / "file").touch()
    scratch.remove_left_over(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([own, other])


def test_memory_that_is_small_or_missing_is_not_used(tmp_path: Path) -> None:
    assert scratch.is_fit(tmp_path, enough_bytes=1)
    assert not scratch.is_fit(tmp_path, enough_bytes=1 << 60)
    assert not scratch.is_fit(tmp_path / "missing", enough_bytes=1)


def test_a_scratch_folder_can_be_entered_by_anybody_and_goes() -> None:
    with scratch.scratch_folder("remit-scratch-") as folder:
        assert folder.stat().st_mode & 0o777 == 0o755
    assert not folder.exists()
