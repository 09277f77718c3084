"""`remit probe`: is this container's service ready? The image's health check."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from typing import Final

import click

_PORT: Final = re.compile(r"REMIT_[A-Z]+_HTTP_PORT")
_LOOPBACK: Final = "127.0.0.1"


@click.command(epilog="\b\nExamples:\n  REMIT_COST_HTTP_PORT=8430 remit probe\n  remit probe 7401")
@click.argument("ports", metavar="[PORT]...", type=click.IntRange(1, 65_535), nargs=-1)
def command(ports: tuple[int, ...]) -> int:
    """Ask each PORT of this machine, by GET /ready, whether what serves there is ready.

    Without a PORT it asks those of the variables REMIT_<AREA>_HTTP_PORT; if there is none, nothing
    serves here and all is well. Exit codes: 0 ready, 1 not.
    """
    reasons = asyncio.run(_not_ready(ports or _configured(os.environ)))
    for port, reason in reasons.items():
        click.echo(f"port {port}: {reason}", err=True)
    return 1 if reasons else 0


def _configured(environment: Mapping[str, str]) -> tuple[int, ...]:
    found = {name: value for name, value in environment.items() if _PORT.fullmatch(name)}
    wrong = [name for name, value in found.items() if not value.isdecimal()]
    if wrong:
        message = f"{wrong[0]} is no port"
        raise click.UsageError(message)
    return tuple(int(value) for value in found.values())


async def _not_ready(ports: tuple[int, ...]) -> dict[int, str]:
    from remit.local.probes import not_ready  # noqa: PLC0415 - the help needs none of it

    answers = await asyncio.gather(*(not_ready(_LOOPBACK, port) for port in ports))
    return {port: reason for port, reason in zip(ports, answers, strict=True) if reason}
