"""`remit gateway`: what Envoy reads, rendered from the contracts and a topology file."""

from __future__ import annotations

from pathlib import Path

import click


@click.group(epilog="\b\nExamples:\n  remit gateway render --out envoy.json")
def command() -> None:
    """Render the gateway's configuration."""


@command.command(
    epilog="\b\nExamples:\n  remit gateway render --topology topology.yaml --out envoy.json"
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

    A file named *.pb gets the binary form, which is made faster; any other gets JSON. Check it with
    `envoy --mode validate --config-path FILE`.
    """
    from remit.gateway import bootstrap  # noqa: PLC0415 - slow
    from remit.gateway.topology import Topology  # noqa: PLC0415 - as above

    topology = Topology.load(topology_file) if topology_file else Topology.default()
    if out is None:
        click.echo(bootstrap.render(topology), nl=False)
    elif out.suffix == ".pb":
        out.write_bytes(bootstrap.render_binary(topology))
    else:
        out.write_text(bootstrap.render(topology), encoding="utf-8")
