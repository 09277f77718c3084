"""The plain HTTP port of every service: /health, /ready and /metrics.

Probes and scrapers carry no client certificate, so this port has none; it tells nothing that is
secret and changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, disable_created_metrics, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError

# A second series for each counter and histogram, with the time of its making, serves nobody here.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass
class Probes:
    """What the probes answer; the host keeps it up to date."""

    checked: bool = False
    """Whether readiness was looked at yet."""
    not_ready: str = ""
    """Why the service cannot do its work now; empty while it can."""


def application(probes: Probes) -> Starlette:
    """The three routes."""

    async def health(_: Request) -> Response:
        """Answers while the process's event loop turns."""
        return JSONResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        """503 with the reason while the service cannot do its work."""
        reason = probes.not_ready if probes.checked else "starting"
        if reason:
            return JSONResponse({"status": "not ready", "reason": reason}, status_code=503)
        return JSONResponse({"status": "ready"})

    async def metrics(_: Request) -> Response:
        """The default registry in Prometheus text form."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)]
    )


@contextlib.asynccontextmanager
async def serve_http(host: str, port: int, probes: Probes) -> AsyncIterator[int]:
    """Serves the probes during the body and yields the port that was bound.

    Raises CONFIGURATION_INVALID when the port is in use.
    """
    listener = _listener(host, port)
    server = _Server(
        uvicorn.Config(application(probes), log_config=None, access_log=False, lifespan="off")
    )
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        server.force_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await task
        listener.close()


class _Server(uvicorn.Server):
    """Leaves the process's signals to the host."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listener(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise RemitError(
            error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
            f"{host}:{port} is in use; set the service's HTTP_PORT to another port",
        ) from error
    return listener
