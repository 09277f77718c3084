"""Parses command lines of help texts and documents against the real commands, running nothing."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator

import click

from remit.cli.main import root

_SUBSTITUTION = re.compile(r"\$\((remit [^)]*)\)")
_ENDS = {"|", ">", "<", "&&", ";", "#"}


def parse_command_line(line: str) -> None:
    """Parses the `remit` command of a shell line, and one inside `$(...)`.

    Raises:
        click.UsageError: the command would refuse it.

    """
    inner = _SUBSTITUTION.search(line)
    if inner is not None:
        line = inner[1]
    words = shlex.split(line, comments=True)
    start = words.index("remit") + 1
    end = next((i for i, word in enumerate(words) if i >= start and word in _ENDS), len(words))
    _parse(root, words[start:end], "remit", None)


def _parse(
    command: click.Command, words: list[str], name: str, parent: click.Context | None
) -> None:
    with _any_path(command):
        context = command.make_context(name, list(words), parent=parent)
    with context.scope(cleanup=False):
        rest = [*context._protected_args, *context.args]
        if isinstance(command, click.Group) and rest:
            child_name, child, arguments = command.resolve_command(context, rest)
            if child is not None:
                _parse(child, arguments, child_name or "", context)


@contextlib.contextmanager
def _any_path(command: click.Command) -> Iterator[None]:
    """Files of examples need not exist while the body parses them."""
    strict = [
        parameter.type
        for parameter in command.params
        if isinstance(parameter.type, click.Path) and parameter.type.exists
    ]
    for path in strict:
        path.exists = False
    try:
        yield
    finally:
        for path in strict:
            path.exists = True
