"""Renders docs/CLI.md: the help of every command, as the command itself prints it."""

from __future__ import annotations

from collections.abc import Iterator

import click

from remit.cli import exit_codes
from remit.cli.main import root

WIDTH = 80

HEAD = """# The `remit` command

Made by `make golden` from the commands themselves; do not edit it.

## Exit codes

| Code | Meaning | Reasons (docs/ERRORS.md) |
| --- | --- | --- |
"""


def page() -> str:
    """The whole page."""
    rows = [
        f"| {row.code} | {row.text} | {', '.join(f'`{name}`' for name in row.reasons)} |\n"
        for row in exit_codes.MEANINGS
    ]
    sections = [f"\n## {path}\n\n```text\n{text}\n```\n" for path, text in helps()]
    return HEAD + "".join(rows) + "".join(sections)


def helps() -> Iterator[tuple[str, str]]:
    """Every command with its help text, parents before their children."""
    yield from _helps(root, None, "remit")


def _helps(
    command: click.Command, parent: click.Context | None, name: str
) -> Iterator[tuple[str, str]]:
    context = command.context_class(
        command, info_name=name, parent=parent, terminal_width=WIDTH, **command.context_settings
    )
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            if child is not None:
                yield from _helps(child, context, child_name)
