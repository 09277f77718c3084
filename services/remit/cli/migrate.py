"""`remit migrate`: brings a database of your own to the form that this version needs."""

from __future__ import annotations

import asyncio
import os

import click


@click.command(
    epilog="\b\nExamples:\n  remit migrate cost --dsn postgresql://remit_cost_owner@db/remit_cost\n"
    "  REMIT_SECRETS_DIR=./installation/setup/secrets remit migrate all"
)
@click.argument("database")
@click.option(
    "--dsn",
    envvar="REMIT_OWNER_DSN",
    help="DSN of the owner role; for `all`, with {database} where the database's name goes.",
)
def command(database: str, dsn: str | None) -> None:
    """Apply the missing migrations of DATABASE (an area, audit_keys, or `all`).

    The owner role makes the tables; the service role remit_<DATABASE>, which must exist, gets what
    it needs. Safe to repeat. For `all` the DSN is a pattern such as
    postgresql://remit_{database}_owner@db/remit_{database}. Without --dsn the DSNs are those of
    REMIT_<DATABASE>_OWNER_DSN, in the environment or as files in the folder that REMIT_SECRETS_DIR
    names.
    """
    from remit.postgres import DATABASES  # noqa: PLC0415 - slow

    if database != "all" and database not in DATABASES:
        message = f"unknown database {database!r}; one of all, {', '.join(DATABASES)}"
        raise click.UsageError(message)
    if dsn and database == "all" and "{database}" not in dsn:
        message = "for `all`, --dsn must contain {database}"
        raise click.UsageError(message)
    names = list(DATABASES) if database == "all" else [database]
    asyncio.run(_migrate({name: _dsn(name, dsn) for name in names}))


def _dsn(name: str, pattern: str | None) -> str:
    from remit.local.installation import owner_variable  # noqa: PLC0415 - slow
    from remit.settings import secret  # noqa: PLC0415 - slow

    if pattern:
        return pattern.replace("{database}", name)
    dsn = secret(owner_variable(name), os.environ)
    if not dsn:
        message = f"no DSN of the owner: give --dsn or {owner_variable(name)}"
        raise click.UsageError(message)
    return dsn


async def _migrate(dsns: dict[str, str]) -> None:
    from remit.postgres import migrate  # noqa: PLC0415 - slow

    for name, dsn in dsns.items():
        applied = await migrate(dsn, name)
        click.echo(f"{name}: {', '.join(applied) if applied else 'up to date'}")
