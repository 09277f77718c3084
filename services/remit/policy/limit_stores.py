"""Where admissions are counted: in this process, or in a Redis or Valkey that replicas share.

Both admit exactly as `remit.policy.limits` says. One process suffices for one replica; of several,
each would admit as many as the limit says, so they share a store. Neither survives its own end:
after a restart a limit counts anew.
"""

from __future__ import annotations

import contextlib
import importlib.resources
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Protocol

from remit import names, telemetry
from remit.api.errors.v1.error_reason_pb2 import (
    ERROR_REASON_CONFIGURATION_INVALID,
    ERROR_REASON_DEPENDENCY_UNAVAILABLE,
    ERROR_REASON_OVERLOADED,
)
from remit.policy.limits import MICROS, LogFullError, Meter, Refusal, SlidingLog
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError

_CONNECTIONS: Final = 64
"""Connections to Redis of one replica at most; further admissions wait for one."""

log = telemetry.logger(__name__)


class LimitStore(Protocol):
    """Counts admissions."""

    async def admit(self, meters: Sequence[Meter]) -> tuple[Refusal, ...]:
        """Count one admission against every meter, or against none; return those that refuse.

        Raises:
            RemitError: OVERLOADED for a store that is full, DEPENDENCY_UNAVAILABLE for one that
                does not answer in time.

        """
        ...

    async def ping(self) -> None:
        """Raise DEPENDENCY_UNAVAILABLE unless the store answers."""
        ...


class MemoryLimits:
    """Counts in this process, by its monotonic clock."""

    def __init__(self, clock: Clock, *, max_entries: int) -> None:
        self._clock = clock
        self._log = SlidingLog(max_entries)

    async def admit(self, meters: Sequence[Meter]) -> tuple[Refusal, ...]:
        """Count; see `LimitStore`. Nothing is awaited, so callers come one after another."""
        try:
            return self._log.admit(int(self._clock.monotonic() * MICROS), meters)
        except LogFullError as error:
            raise RemitError(
                ERROR_REASON_OVERLOADED,
                "the rate limits remember as many admissions as they may",
                retry_after_s=max(error.wait_us, 1) / MICROS,
            ) from error

    async def ping(self) -> None:
        """Always answers."""


class RedisLimits:
    """Counts in Redis or Valkey, by its clock: one script for each admission.

    An admission whose answer was lost may have been counted; it is never sent again.
    """

    def __init__(self, client: Any) -> None:  # noqa: ANN401 - redis is loaded only where it is used
        self._client = client
        self._script = client.register_script(_script())

    async def admit(self, meters: Sequence[Meter]) -> tuple[Refusal, ...]:
        """Count; see `LimitStore`."""
        if not meters:
            return ()
        with _outage_told():
            _, *waits = await self._script(
                keys=[redis_key(meter) for meter in meters],
                args=[n for m in meters for n in (m.limit.most, m.limit.window_us)],
            )
        waiting = zip(meters, map(int, waits), strict=True)
        return tuple(Refusal(meter, wait_us) for meter, wait_us in waiting if wait_us > 0)

    async def ping(self) -> None:
        """Ask for a sign of life; see `LimitStore`."""
        with _outage_told():
            await self._client.ping()


def redis_key(meter: Meter) -> str:
    """Name of a meter's list. All keys of an org lie in one slot of a cluster (its hash tag)."""
    return f"remit:runs:{{{names.org_of(meter.principal)}}}:{meter.principal}"


@contextlib.asynccontextmanager
async def open_redis(url: str, *, timeout_s: float) -> AsyncIterator[RedisLimits]:
    """Connect when first asked; `timeout_s` bounds connecting, and each question and answer.

    Raises:
        RemitError: CONFIGURATION_INVALID for a URL that Redis does not know.

    """
    import redis.asyncio  # noqa: PLC0415 - only where there is one
    from redis.asyncio.retry import Retry  # noqa: PLC0415
    from redis.backoff import NoBackoff  # noqa: PLC0415

    try:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise RemitError(
            ERROR_REASON_CONFIGURATION_INVALID,
            "REMIT_POLICY_LIMITS_URL must be redis://, rediss:// or unix://",
        ) from error
    client = redis.asyncio.Redis(connection_pool=pool)
    try:
        yield RedisLimits(client)
    finally:
        await client.aclose()
        await pool.aclose()


@contextlib.contextmanager
def _outage_told() -> Any:  # noqa: ANN401
    from redis.exceptions import RedisError  # noqa: PLC0415

    try:
        yield
    except (RedisError, OSError) as error:
        raise RemitError(
            ERROR_REASON_DEPENDENCY_UNAVAILABLE,
            f"the store of the rate limits does not answer: {type(error).__name__}",
        ) from error


def _script() -> str:
    return (importlib.resources.files(__package__) / "sliding_log.lua").read_text(encoding="utf-8")
