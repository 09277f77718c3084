"""`remit migrate`: brings a database of your own to the form that this version needs."""

from __future__ import annotations

import asyncio

import click


@click.command(
    epilog="\b\nExamples:\n  remit migrate cost --dsn postgresql://remit_cost_owner@db/remit_cost"
)
@click.argument("database")
@click.option(
    "--dsn",
    envvar="REMIT_OWNER_DSN",
    required=True,
    help="DSN of the owner role; for `all`, with {database} where the database's name goes.",
)
def command(database: str, dsn: str) -> None:
    """Apply the missing migrations of DATABASE (an area, audit_keys, or `all`).

    The owner role makes the tables; the service role remit_<DATABASE>, which must exist, gets what
    it needs. Safe to repeat. For `all` the DSN is a pattern such as
    postgresql://remit_{database}_owner@db/remit_{database}.
    """
    from remit.postgres import DATABASES  # noqa: PLC0415 - slow

    if database != "all" and database not in DATABASES:
        message = f"unknown database {database!r}; one of all, {', '.join(DATABASES)}"
        raise click.UsageError(message)
    if database == "all" and "{database}" not in dsn:
        message = "for `all`, --dsn must contain {database}"
        raise click.UsageError(message)
    names = list(DATABASES) if database == "all" else [database]
    asyncio.run(_migrate({name: dsn.replace("{database}", name) for name in names}))


async def _migrate(dsns: dict[str, str]) -> None:
    from remit.postgres import migrate  # noqa: PLC0415 - slow

    for name, dsn in dsns.items():
        applied = await migrate(dsn, name)
        click.echo(f"{name}: {', '.join(applied) if applied else 'up to date'}")
