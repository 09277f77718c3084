"""`remit secrets`: keys and passwords of an installation, made once."""

from __future__ import annotations

from pathlib import Path

import click

from remit.cli.manifests import folder_argument, namespace_option, to_yaml


@click.group(
    epilog="\b\nExamples:\n  remit secrets make ./installation --database db.example.com:5432"
)
def command() -> None:
    """Make the keys and passwords of an installation."""


@command.command(
    epilog="\b\nExamples:\n"
    "  remit secrets make ./installation --database db.example.com:5432 --sslmode verify-full\n"
    "  remit secrets make /installation --database postgres:5432 --superuser"
)
@folder_argument
@click.option(
    "--database", "address", metavar="HOST:PORT", required=True, help="Where PostgreSQL listens."
)
@click.option(
    "--sslmode",
    type=click.Choice(["disable", "prefer", "require", "verify-ca", "verify-full"]),
    default="prefer",
    show_default=True,
    help="How connections to PostgreSQL are secured.",
)
@click.option("--sslrootcert", default="", help="The services' file with PostgreSQL's authority.")
@click.option(
    "--superuser", is_flag=True, help="PostgreSQL is the installation's own: make its superuser's."
)
def make(folder: Path, *, address: str, sslmode: str, sslrootcert: str, superuser: bool) -> None:
    """Make what is missing in FOLDER: key files, and a password for each database role.

    FOLDER/AREA/secrets is for the service of AREA, FOLDER/setup/secrets for whoever makes and
    migrates databases. What is there stays as it is. Keep a copy of FOLDER elsewhere: without its
    keys the databases cannot be used.
    """
    from remit.local.installation import Installation, Server  # noqa: PLC0415 - slow

    parameters = [("sslmode", sslmode)]
    if sslrootcert:
        parameters.append(("sslrootcert", sslrootcert))
    server = Server(address, tuple(parameters))
    installation = Installation(folder)
    installation.ensure_keys()
    if superuser:
        installation.ensure_superuser(server)
    installation.ensure_dsns(server)
    click.echo(f"keys and passwords are in {folder}")


@command.command(
    epilog="\b\nExamples:\n  remit secrets manifests ./installation | kubectl apply -f -"
)
@folder_argument
@namespace_option
def manifests(folder: Path, namespace: str) -> None:
    """Print everything in FOLDER but the authority's key as Kubernetes Secrets."""
    from remit.local.installation import Installation  # noqa: PLC0415 - slow

    click.echo(to_yaml(Installation(folder).manifests(namespace)), nl=False)
