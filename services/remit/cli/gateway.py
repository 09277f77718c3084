"""`remit gateway`: what Envoy reads, rendered from the contracts and a topology file."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def command() -> None:
    """Render the gateway's configuration."""


@command.command(
    epilog="\b\nExample:\n  remit gateway render --topology topology.yaml --out envoy.json"
)
@click.option(
    "--topology",
    "topology_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with every address; the defaults of a single machine without it.",
)
@click.option("--out", type=click.Path(path_type=Path), help="File to write; else standard output.")
def render(topology_file: Path | None, out: Path | None) -> None:
    """Write the file that Envoy reads.

    Check it with `envoy --mode validate --config-path FILE`.
    """
    from remit.gateway.bootstrap import render as render_bootstrap  # noqa: PLC0415 - slow
    from remit.gateway.topology import Topology  # noqa: PLC0415 - as above

    topology = Topology.load(topology_file) if topology_file else Topology.default()
    text = render_bootstrap(topology)
    if out is None:
        click.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
