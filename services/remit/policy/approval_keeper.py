"""What happens to approvals by themselves: they lapse, and who follows them hears of changes.

It also completes what a crash left between a decision's record and its effect. Every replica does
so; the store decides under its lock, so that doing it twice changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from remit import telemetry
from remit.policy.approval_store import ApprovalStore
from remit.postgres import unavailable
from remit.rpc.errors import RemitError

log = telemetry.logger(__name__)


class ApprovalKeeper:
    """Looks at the approvals every `every_s` seconds."""

    def __init__(self, store: ApprovalStore, *, every_s: float) -> None:
        self._store = store
        self._every_s = every_s
        self._followers = 0
        self._head = 0
        self._changed = asyncio.Event()
        self._closed = False

    async def run(self) -> None:
        """Settles what is due and tells followers, until cancelled."""
        while True:
            try:
                await self.settle()
                if self._followers:
                    self._learn(await self._store.newest_sequence())
            except RemitError as error:
                log.warning("approvals_delayed", reason=error.reason_name)
            await asyncio.sleep(self._every_s)

    async def settle(self) -> None:
        """Ends what is late and counts what was recorded."""
        for approval in await self._store.unsettled():
            await self._store.settle(approval)

    async def close(self) -> None:
        """Ends every watch; clients resume at another replica."""
        self._closed = True
        self._changed.set()

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """Looks for changes at least as long as the body lasts."""
        self._followers += 1
        try:
            yield
        finally:
            self._followers -= 1

    async def reaches(self, sequence: int, within_s: float) -> None:
        """Returns when there is a change after this sequence, or after that time.

        Raises DEPENDENCY_UNAVAILABLE when this replica drains.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self._head <= sequence and not self._closed:
                    await self._changed.wait()
        if self._closed:
            raise unavailable("this replica is stopping; resume after the last sequence")

    def _learn(self, head: int) -> None:
        if head > self._head:
            self._head = head
            self._changed.set()
            self._changed = asyncio.Event()
