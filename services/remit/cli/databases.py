"""`remit databases`: roles and databases on a PostgreSQL server of your own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

import click


@click.group(
    epilog="\b\nExamples:\n"
    "  REMIT_SECRETS_DIR=./installation/setup/secrets remit databases make"
    " --admin-dsn postgresql://admin@db.example.com/postgres"
)
def command() -> None:
    """Make the roles and databases of a mesh."""


@command.command(
    epilog="\b\nExamples:\n"
    "  REMIT_SECRETS_DIR=./installation/setup/secrets remit databases make"
    " --admin-dsn postgresql://admin@db.example.com/postgres"
)
@click.option(
    "--admin-dsn",
    envvar="REMIT_ADMIN_DSN",
    help="DSN of a role with CREATEROLE and CREATEDB; by default that of the secrets folder.",
)
def make(admin_dsn: str | None) -> None:
    """Make roles and databases that are missing, and give every role its password.

    The passwords are those of the DSNs REMIT_<DATABASE>_OWNER_DSN and REMIT_<DATABASE>_DSN, in the
    environment or as files in the folder that REMIT_SECRETS_DIR names; `remit secrets make` writes
    them. Safe to repeat. `remit migrate all` comes next.
    """
    from remit.local.databases import make_databases  # noqa: PLC0415 - slow
    from remit.local.installation import ADMIN_DSN  # noqa: PLC0415 - slow
    from remit.settings import secret  # noqa: PLC0415 - slow

    dsn = admin_dsn or secret(ADMIN_DSN, os.environ)
    if not dsn:
        message = f"no administrator: give --admin-dsn or {ADMIN_DSN}"
        raise click.UsageError(message)
    new = asyncio.run(make_databases(dsn, _passwords(os.environ)))
    click.echo(f"new databases: {', '.join(new)}" if new else "every database is there")


def _passwords(environment: Mapping[str, str]) -> dict[str, str]:
    """The password of each role, from its DSN."""
    from remit.local.databases import FURTHER, owner_of, service_role  # noqa: PLC0415 - slow
    from remit.local.installation import (  # noqa: PLC0415 - slow
        owner_variable,
        password_of,
        service_variable,
    )
    from remit.postgres import DATABASES  # noqa: PLC0415 - slow
    from remit.settings import secret  # noqa: PLC0415 - slow

    variables = {owner_of(name): owner_variable(name) for name in DATABASES}
    variables |= {service_role(name): service_variable(name) for name in (*DATABASES, *FURTHER)}
    return {
        role: password_of(secret(variable, environment), variable)
        for role, variable in variables.items()
    }
