"""`remit certificates`: the authority of an installation and a certificate for each party."""

from __future__ import annotations

from pathlib import Path

import click

from remit.cli.manifests import folder_argument, namespace_option, to_yaml


@click.group(epilog="\b\nExamples:\n  remit certificates make ./installation")
def command() -> None:
    """Make and renew the certificates that the parties of a mesh show each other."""


@command.command(epilog="\b\nExamples:\n  remit certificates make ./installation")
@folder_argument
def make(folder: Path) -> None:
    """Make what is missing in FOLDER, and renew what has less than a third of its life left.

    FOLDER/ca holds the authority, FOLDER/AREA/tls the certificate of each service, and
    FOLDER/gateway/tls those of the gateway's two listeners. Safe to repeat. Whoever uses a renewed
    certificate must be restarted.
    """
    from remit.local.installation import Installation  # noqa: PLC0415 - slow
    from remit.rpc.clock import SystemClock  # noqa: PLC0415 - slow

    new = Installation(folder).ensure_certificates(SystemClock())
    click.echo(f"new certificates: {', '.join(new)}" if new else "every certificate is good")


@command.command(
    epilog="\b\nExamples:\n  remit certificates manifests ./installation | kubectl apply -f -"
)
@folder_argument
@namespace_option
def manifests(folder: Path, namespace: str) -> None:
    """Print the certificates of FOLDER as Kubernetes Secrets, without the authority's key."""
    from remit.local.installation import Installation  # noqa: PLC0415 - slow

    click.echo(to_yaml(Installation(folder).manifests(namespace, only_tls=True)), nl=False)
