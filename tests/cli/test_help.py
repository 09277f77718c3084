"""Help is quick, complete, the same as in the docs, and shows examples that parse."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from remit.cli.main import COMMANDS, root
from scripts import cli_reference
from tests.cli.command_lines import parse_command_line
from tests.golden import assert_golden
from tests.waiting import PATIENCE

DOCS = Path(__file__).resolve().parents[2] / "docs"
SLOW_MODULES = {"grpc", "google.protobuf", "rich", "pydantic", "asyncpg", "structlog", "openai"}
HELPS = dict(cli_reference.helps())


@pytest.mark.golden
def test_the_page_of_commands_is_current() -> None:
    assert_golden(DOCS / "CLI.md", cli_reference.page())


def test_the_help_of_the_root_imports_nothing_slow() -> None:
    script = (
        "import sys; from remit.cli.main import run; code = run(['--help']);"
        "print('IMPORTED', *sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        timeout=30 * PATIENCE,
    )
    imported = set(done.stdout.partition("IMPORTED")[2].split())
    assert imported & SLOW_MODULES == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_in_the_table_fits_the_command(name: str) -> None:
    command = root.get_command(click.Context(root), name)
    assert command is not None
    assert command.help, f"{name} has no help"
    assert COMMANDS[name].help.endswith(".")


@pytest.mark.parametrize("path", HELPS)
def test_every_command_has_examples(path: str) -> None:
    assert "\n  Examples:\n" in HELPS[path]


def examples() -> list[str]:
    """Every example line of every help text."""
    found = []
    for text in HELPS.values():
        block = text.partition("\n  Examples:\n")[2].partition("\n\n")[0]
        found += [line.strip() for line in block.splitlines()]
    return sorted(set(found))


@pytest.mark.parametrize("line", examples())
def test_every_example_parses(line: str) -> None:
    assert re.search(r"\bremit\b", line)
    parse_command_line(line)


def test_an_example_with_a_wrong_option_would_not_parse() -> None:
    with pytest.raises(click.UsageError):
        parse_command_line("remit run --agnet assistant hello")
    with pytest.raises(click.UsageError):
        parse_command_line("remit runs fly")


def test_a_group_without_a_command_shows_its_help_and_fails() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "remit.cli.main", *shlex.split("runs")],
        check=False,
        capture_output=True,
        text=True,
        timeout=30 * PATIENCE,
    )
    assert done.returncode == 2
    assert "Usage: remit runs" in done.stderr
