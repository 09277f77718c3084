"""Gauges that are read from shared state: looked at now and then, beside the work of a service.

Each replica reads the same rows and so shows the same value: over replicas take the maximum, never
the sum. While the database is away the last values stay; `remit_ready` says that it is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from remit import telemetry
from remit.rpc.errors import RemitError

log = telemetry.logger(__name__)


def observing(
    look: Callable[[], Awaitable[None]], *, every_s: float
) -> Callable[[], Awaitable[None]]:
    """Background work that looks every so many seconds until it is cancelled."""

    async def run() -> None:
        while True:
            try:
                await look()
            except RemitError as error:
                log.warning("look_failed", reason=error.reason_name, error=error.message)
            await asyncio.sleep(every_s)

    return run
