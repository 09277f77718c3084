"""`remit up`: the whole mesh on this machine, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from remit.cli import exit_codes
from remit.cli.parameters import topology_option
from remit.gateway.topology import DEFAULT_EDGE_PORT, DEFAULT_PORT_BASE, Topology
from remit.local.mesh import LocalMesh, MeshOptions
from remit.local.process import Reporter
from remit.local.progress import reporter_for
from remit.local.state import AlreadyRunningError, StateDirectory, default_state
from remit.rpc.clock import SystemClock


@click.command(
    epilog="\b\nExamples:\n  remit up\n  remit up --state ./mesh --replicas policy=2"
    "\n  remit up --edge-port 9080 --port-base 9400"
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=default_state,
    help="Folder that keeps everything.  [default: ~/.local/state/remit, /var/lib/remit as root]",
)
@click.option(
    "--replicas", metavar="AREA=N", multiple=True, help="Replicas of an area; repeatable."
)
@click.option("--envoy", type=click.Path(path_type=Path), help="An Envoy of your own.")
@click.option(
    "--edge-port", type=int, default=DEFAULT_EDGE_PORT, show_default=True, help="Port for clients."
)
@click.option(
    "--port-base",
    type=int,
    default=DEFAULT_PORT_BASE,
    show_default=True,
    help="First of the ports inside the mesh.",
)
@topology_option("File with every address, instead of the three options above.")
@click.option(
    "--trace-endpoint",
    metavar="URL",
    help="OTLP collector that spans go to by gRPC, such as http://127.0.0.1:4317.",
)
@click.option(
    "--trace-ratio",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Share of calls without a trace of their own that begin a recorded one.",
)
@click.option(
    "--drain",
    "drain_s",
    type=click.FloatRange(0.1, 300),
    default=10.0,
    show_default=True,
    help="Seconds that calls in flight get to end when the mesh stops.",
)
@click.pass_context
def command(  # noqa: PLR0913 - one parameter an option
    context: click.Context,
    *,
    state: Path,
    replicas: tuple[str, ...],
    envoy: Path | None,
    edge_port: int,
    port_base: int,
    topology_file: Path | None,
    trace_endpoint: str | None,
    trace_ratio: float,
    drain_s: float,
) -> int:
    """Start PostgreSQL, six services and Envoy, and keep them running.

    Ctrl-C drains and stops everything; a second one does not wait. Exit codes: 0 stopped, 7
    something is configured wrong, 8 a mesh already runs on this folder.
    """
    _refuse_both(context, topology_file)
    counts = dict(_count(text) for text in replicas)
    folder = StateDirectory.open(state)
    topology = (
        Topology.load(topology_file)
        if topology_file
        else Topology.default(replicas=counts, port_base=port_base, edge_port=edge_port)
    )
    if trace_endpoint:
        topology = topology.traced(trace_endpoint, trace_ratio)
    tls_dir = str(folder.folder / "tls")
    options = MeshOptions(
        topology=topology.model_copy(update={"tls_dir": tls_dir}), envoy=envoy, drain_s=drain_s
    )
    try:
        with folder.locked():
            asyncio.run(_run(folder, options, reporter_for()))
    except AlreadyRunningError as error:
        click.echo(f"error: {error.message}", err=True)
        return exit_codes.ALREADY_RUNNING
    return exit_codes.OK


async def _run(folder: StateDirectory, options: MeshOptions, reporter: Reporter) -> None:
    mesh = LocalMesh(folder, options, reporter, SystemClock())
    stop = asyncio.Event()
    running = asyncio.create_task(_until(mesh, stop, reporter), name="mesh")
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            mesh.kill()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    await running


async def _until(mesh: LocalMesh, stop: asyncio.Event, reporter: Reporter) -> None:
    async with mesh.running(stop):
        await stop.wait()
        reporter.note("Stopping; press Ctrl-C again not to wait for calls in flight.")
    reporter.note("Everything has stopped.")


def _refuse_both(context: click.Context, topology_file: Path | None) -> None:
    given = [
        name
        for name in ("replicas", "edge_port", "port_base")
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
    ]
    if topology_file and given:
        option = given[0].replace("_", "-")
        message = f"--{option} cannot be combined with --topology; set it in the file"
        raise click.UsageError(message)


def _count(text: str) -> tuple[str, int]:
    area, separator, number = text.partition("=")
    if not (separator and number.isdigit()):
        message = f"--replicas {text!r}: write AREA=NUMBER, such as policy=2"
        raise click.UsageError(message)
    return area, int(number)
