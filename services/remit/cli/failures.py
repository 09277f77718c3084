"""How an error is told: one line with its reason, what is wrong, and what to do next."""

from __future__ import annotations

import os

import click

from remit.cli import documents, exit_codes
from remit.cli.wording import printable
from remit.rpc.errors import RemitError


def report(error: RemitError, *, as_json: bool) -> int:
    """Prints an error, to people on standard error or as JSON on standard output.

    Returns the exit code that tells it.
    """
    code = exit_codes.of_error(error)
    if as_json:
        head = {"type": "error", **documents.of_error(error), "exit_code": code}
        click.echo(documents.to_line(head))
    else:
        _tell(lines(error))
    return code


def lines(error: RemitError) -> list[str]:
    """The error for people, the line that names it first."""
    told = [f"error: {error.message} [{error.reason_name}]"]
    told += [f"  {v.field}: {v.description}" for v in error.violations]
    told += [f"  {q.subject}: {q.description}" for q in error.quota]
    told.append(f"  next: {error.next_step}")
    if error.retry_after_s is not None:
        told.append(f"  retry: after {error.retry_after_s:g} s")
    return [printable(line).replace("\n", " ") for line in told]


def _tell(told: list[str]) -> None:
    first, *rest = told
    coloured = not os.environ.get("NO_COLOR")
    click.echo(click.style(first, fg="red", bold=True) if coloured else first, err=True)
    for line in rest:
        click.echo(line, err=True)
