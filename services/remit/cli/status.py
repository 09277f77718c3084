"""`remit status`: how each part of the local mesh is."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path

import click

from remit.cli import exit_codes
from remit.local.health import Part, examine
from remit.local.state import StateDirectory, default_state


@click.command(epilog="\b\nExamples:\n  remit status\n  remit status --json | jq .healthy")
@click.option(
    "--state", type=click.Path(path_type=Path), default=default_state, help="The mesh's folder."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for machines.")
def command(*, state: Path, as_json: bool) -> int:
    """Show PostgreSQL, Envoy and every replica.

    Exit code 0: all healthy; 3: not healthy, or not running.
    """
    parts = asyncio.run(examine(StateDirectory.existing(state)))
    healthy = all(part.healthy for part in parts)
    if as_json:
        document = {"healthy": healthy, "parts": [asdict(part) for part in parts]}
        click.echo(json.dumps(document, indent=2))
    else:
        _print_table(parts)
    return exit_codes.OK if healthy else exit_codes.UNHEALTHY


def _print_table(parts: list[Part]) -> None:
    rows = [("PART", "HEALTH", "ADDRESS", "PROCESS", "RESTARTS", "DETAIL")]
    rows += [
        (
            part.name,
            "healthy" if part.healthy else "UNHEALTHY",
            part.address,
            str(part.pid or "-"),
            str(part.restarts),
            part.detail,
        )
        for part in parts
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[-1]]).rstrip())
