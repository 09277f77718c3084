"""`remit secrets`: keys and passwords of an installation, made once."""

from __future__ import annotations

import ssl
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
    "  remit secrets make ./installation --database db.example.com:5432 --sslmode verify-full"
    " --sslrootcert ./db-ca.pem\n"
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
@click.option(
    "--sslrootcert",
    "authority",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the authority of PostgreSQL's certificate, for verify-ca and verify-full.",
)
@click.option(
    "--superuser", is_flag=True, help="PostgreSQL is the installation's own: make its superuser's."
)
def make(
    folder: Path, *, address: str, sslmode: str, authority: Path | None, superuser: bool
) -> None:
    """Make what is missing in FOLDER: key files, and a password for each database role.

    FOLDER/AREA/secrets is for the service of AREA, FOLDER/setup/secrets for whoever makes and
    migrates databases; the authority of PostgreSQL's certificate is copied into each. What is there
    stays as it is. Keep a copy of FOLDER elsewhere: without its
    keys the databases cannot be used.
    """
    from remit.local.installation import (  # noqa: PLC0415 - slow
        DATABASE_AUTHORITY,
        SECRETS_MOUNT,
        Installation,
        Server,
    )

    certificates = _authority(sslmode, authority)
    parameters = [("sslmode", sslmode)]
    if certificates:
        parameters.append(("sslrootcert", str(SECRETS_MOUNT / DATABASE_AUTHORITY)))
    server = Server(address, tuple(parameters))
    installation = Installation(folder)
    installation.ensure_keys()
    if certificates:
        installation.write_database_authority(certificates)
    if superuser:
        installation.ensure_superuser(server)
    installation.ensure_dsns(server)
    click.echo(f"keys and passwords are in {folder}")


def _authority(sslmode: str, file: Path | None) -> bytes:
    """The certificates that PostgreSQL's is verified with; empty where nothing is verified."""
    if sslmode.startswith("verify-") != (file is not None):
        message = "--sslmode verify-ca and verify-full need --sslrootcert, and no other takes it"
        raise click.UsageError(message)
    if file is None:
        return b""
    try:
        ssl.create_default_context(cafile=file)
    except OSError as error:
        message = f"--sslrootcert: {file} holds no certificate: {error}"
        raise click.UsageError(message) from error
    return file.read_bytes()


@command.command(
    epilog="\b\nExamples:\n  remit secrets manifests ./installation | kubectl apply -f -"
)
@folder_argument
@namespace_option
def manifests(folder: Path, namespace: str) -> None:
    """Print everything in FOLDER but the authority's key as Kubernetes Secrets."""
    from remit.local.installation import Installation  # noqa: PLC0415 - slow

    click.echo(to_yaml(Installation(folder).manifests(namespace)), nl=False)
