"""`remit gateway`: what Envoy reads, rendered from the contracts and a topology file; its drain."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from remit.cli.parameters import topology_option

if TYPE_CHECKING:
    from remit.gateway.topology import Topology


@click.group(epilog="\b\nExamples:\n  remit gateway render --out envoy.json")
def command() -> None:
    """Render the gateway's configuration, and drain a gateway."""


@command.command(
    epilog="\b\nExamples:\n  remit gateway render --topology topology.yaml --out envoy.json"
)
@topology_option("File with every address; the defaults of a single machine without it.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write; else standard output.")
@click.option(
    "--trace-endpoint",
    default="",
    metavar="URL",
    help="OTLP collector for Envoy's spans, http://host:port; else as the file says.",
)
@click.option(
    "--trace-ratio",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Share of calls without a trace that begin a recorded one, with --trace-endpoint.",
)
def render(
    topology_file: Path | None, out: Path | None, *, trace_endpoint: str, trace_ratio: float
) -> None:
    """Write the file that Envoy reads.

    A file named *.pb gets the binary form, which is made faster; any other gets JSON. Check it with
    `envoy --mode validate --config-path FILE`.
    """
    from remit.gateway import bootstrap  # noqa: PLC0415 - slow
    from remit.gateway.topology import Topology  # noqa: PLC0415 - as above

    topology = Topology.load(topology_file) if topology_file else Topology.default()
    if trace_endpoint:
        topology = topology.traced(trace_endpoint, trace_ratio)
    if out is None:
        click.echo(bootstrap.render(topology), nl=False)
    elif out.suffix == ".pb":
        out.write_bytes(bootstrap.render_binary(topology))
    else:
        out.write_text(bootstrap.render(topology), encoding="utf-8")


@command.command(epilog="\b\nExamples:\n  remit gateway drain --topology topology.yaml --limit 60")
@topology_option(
    "File with the address of Envoy's admin interface; that of a single machine without it."
)
@click.option(
    "--lag",
    "lag_s",
    type=click.FloatRange(0, 60),
    default=5.0,
    show_default=True,
    help="Seconds that load balancers get to notice before listeners drain.",
)
@click.option(
    "--limit",
    "limit_s",
    type=click.FloatRange(0.1, 3600),
    default=60.0,
    show_default=True,
    help="Seconds that calls in flight get to end.",
)
@click.option("--now", is_flag=True, help="Drain at once instead of on SIGTERM.")
def drain(topology_file: Path | None, *, lag_s: float, limit_s: float, now: bool) -> None:
    """Wait for SIGTERM, then drain the Envoy beside this process, and end when it may be stopped.

    Envoy itself cuts every call on SIGTERM. So this runs beside it and is stopped before it: as the
    main container of its pod, or as a service that depends on it. Streams that are left after
    --limit are cut; clients resume them.
    """
    from remit.gateway.topology import Topology  # noqa: PLC0415 - slow

    topology = Topology.load(topology_file) if topology_file else Topology.default()
    left = asyncio.run(_drain(topology, lag_s=lag_s, limit_s=limit_s, now=now))
    click.echo(f"drained; {left} calls are left" if left else "drained")


async def _drain(topology: Topology, *, lag_s: float, limit_s: float, now: bool) -> int:
    from remit.local.envoy_process import EnvoyProcess  # noqa: PLC0415 - slow
    from remit.rpc.host import stop_on_signals  # noqa: PLC0415 - slow

    envoy = EnvoyProcess(topology)
    if not now:
        await stop_on_signals().wait()
    return await envoy.drain(lag_s=lag_s, limit_s=limit_s)
