"""What the commands share that print an installation's secrets as Kubernetes manifests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import click

NAMESPACE: Final = "remit"

folder_argument = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
namespace_option = click.option(
    "--namespace", default=NAMESPACE, show_default=True, help="Namespace of the Secrets."
)


def to_yaml(manifests: Iterable[dict[str, Any]]) -> str:
    """The documents of a manifest file.

    Raises:
        click.ClickException: there are none.

    """
    import yaml  # noqa: PLC0415 - slow

    documents = list(manifests)
    if not documents:
        message = "the folder holds nothing of an installation; make it with `make` first"
        raise click.ClickException(message)
    return str(yaml.safe_dump_all(documents, sort_keys=False))
