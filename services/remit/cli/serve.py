"""`remit serve`: one service, or all six in one process; what a deployment runs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import click
import uvloop

from remit import telemetry
from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.clock import SystemClock
from remit.rpc.contracts import AREAS
from remit.rpc.errors import RemitError
from remit.rpc.host import run, stop_on_signals
from remit.rpc.identity import TlsIdentity
from remit.rpc.ids import SystemIds
from remit.rpc.mesh import Mesh
from remit.rpc.metrics import SPANS_LOST
from remit.settings import ServiceSettings
from remit.telemetry.spans import use_tracer

_GC_THRESHOLD: Final = 20_000
"""Container objects that are made before the collector looks for cycles; 700 by default."""
_LAST_SPANS_S: Final = 2.0
"""How long an exit waits for the collector to take the last spans."""


@click.command(
    epilog="\b\nExamples:\n  REMIT_COST_DSN=postgresql://... remit serve cost\n  remit serve all"
)
@click.argument("area", type=click.Choice([*AREAS, "all"]))
@click.option("--replica", help="Name of this replica, instead of REMIT_<AREA>_REPLICA.")
def command(area: str, replica: str | None) -> None:
    """Run the service of AREA, or all six in one process.

    Every setting comes from the environment, REMIT_<AREA>_<SETTING>. SIGTERM drains. PostgreSQL and
    Envoy run beside it.
    """
    areas = AREAS if area == "all" else (area,)
    settings = {name: load_settings(name, replica) for name in areas}
    require_one_log(settings)
    first = next(iter(settings.values()))
    telemetry.configure_logging(
        area=area, replica=first.replica, level=first.log_level, content=first.trace_content
    )
    uvloop.run(_serve(settings))


def require_one_log(settings: Mapping[str, ServiceSettings]) -> None:
    """Services of one process write one log: what is set for it must be the same for all.

    Raises:
        RemitError: CONFIGURATION_INVALID that names the variables.

    """
    for name in ("log_level", "trace_content"):
        values = {area: str(getattr(own, name)).lower() for area, own in settings.items()}
        if len(set(values.values())) > 1:
            shown = (f"REMIT_{area}_{name}".upper() + f"={values[area]}" for area in values)
            raise RemitError(
                error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
                f"services of one process write one log; make these the same: {', '.join(shown)}",
            )


def load_settings(area: str, replica: str | None = None) -> ServiceSettings:
    """The settings of an area, from the environment. Raises CONFIGURATION_INVALID."""
    module = importlib.import_module(f"remit.{area}.settings")
    settings: type[ServiceSettings] = getattr(module, f"{area.capitalize()}Settings")
    return settings.load(**({} if replica is None else {"replica": replica}))


async def _serve(settings: dict[str, ServiceSettings]) -> None:
    """Runs every service until a signal; one that fails ends all, for a supervisor to restart."""
    telemetry.watch_loop()
    stop = stop_on_signals()
    tasks = [
        asyncio.create_task(_serve_area(area, own, stop), name=area)
        for area, own in settings.items()
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        await asyncio.wait(tasks)
    finally:
        for task in tasks:
            task.cancel()
    for task in (*done, *tasks):
        task.result()


def _keep_what_was_loaded(_port: int, _http_port: int) -> None:
    """Takes modules and wiring out of the garbage collector's sight, and lets it run less often.

    They live as long as the process; walking them again and again costs more than all that a call
    allocates.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)


@contextlib.contextmanager
def _traced(area: str, settings: ServiceSettings) -> Iterator[None]:
    """Sends the spans of a service where its settings say, if they say so."""
    # A series that appears with its first event hides that event from `increase`.
    SPANS_LOST.labels(area)
    if not settings.trace_endpoint:
        yield
        return
    # A third of a second to import, and only where spans go somewhere.
    from remit.telemetry.export import TraceOptions, open_tracer  # noqa: PLC0415

    options = TraceOptions(
        endpoint=settings.trace_endpoint,
        ratio=settings.trace_ratio,
        queue=settings.trace_queue,
        content_chars=settings.trace_content_chars if settings.trace_content else 0,
    )
    tracer = open_tracer(area, settings.replica, options)
    use_tracer(tracer)
    try:
        yield
    finally:
        tracer.close(_LAST_SPANS_S)


async def _serve_area(area: str, settings: ServiceSettings, stop: asyncio.Event) -> None:
    open_service: Any = importlib.import_module(f"remit.{area}.main").open_service
    clock, ids = SystemClock(), SystemIds()
    async with contextlib.AsyncExitStack() as stack:
        telemetry.name_service(area)
        stack.enter_context(_traced(area, settings))
        mesh = await stack.enter_async_context(
            Mesh.connect(settings.mesh_address, TlsIdentity.load(settings.tls_dir))
        )
        opening = open_service(settings, mesh, clock=clock, ids=ids)
        await run(opening, settings, stop=stop, clock=clock, started=_keep_what_was_loaded)
