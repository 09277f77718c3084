"""The README says what is there: its commands parse, its links lead somewhere, its table is whole.

Its Python block and its curl run against a real mesh in tests/integration/test_readme.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from remit.rpc.contracts import AREAS
from tests.cli.command_lines import parse_command_line
from tests.cli.readme import README, ROOT, blocks, languages

TEXT = README.read_text("utf-8")
SHELL = [
    line
    for block in blocks("sh")
    for line in block.replace("\\\n", "").splitlines()
    if line.strip()
]
MAX_LINES = 150


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= MAX_LINES


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    assert languages() == {"sh", "python", "mermaid"}


@pytest.mark.parametrize("line", SHELL)
def test_every_shell_line_does_something_real(line: str) -> None:
    word, _, rest = line.strip().partition(" ")
    if word == "remit":
        parse_command_line(line)
    elif word == "make":
        makefile = (ROOT / "Makefile").read_text("utf-8")
        assert re.search(rf"^{re.escape(rest.split()[0])}:", makefile, re.MULTILINE)
    else:
        assert word in {".", "export", "curl"}, f"nothing checks `{line}`"


def test_the_remit_commands_are_among_them() -> None:
    assert sum(line.startswith("remit ") for line in SHELL) >= 5
    assert sum(line.startswith("make ") for line in SHELL) == 2


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", TEXT))))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize("area", AREAS)
def test_every_area_has_its_row(area: str) -> None:
    row = re.search(rf"^\| {area} \| (.*) \| (.*) \| (.+) \|$", TEXT, re.MULTILINE)
    assert row is not None
    assert f"services/remit/{area}" in row[1]
    assert f"protos/remit/api/{area}/v1" in row[2]


def test_the_python_block_is_made_only_from_the_stubs() -> None:
    (block,) = blocks("python")
    imported = re.findall(r"^(?:from|import) (.+)$", block, re.MULTILINE)
    assert all("remit" not in line or line.startswith("remit.api.") for line in imported)
    assert len([line for line in block.splitlines() if line.strip()]) <= 13


def test_the_root_of_the_repository_was_found() -> None:
    assert Path(ROOT, "pyproject.toml").is_file()
