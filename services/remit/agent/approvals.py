"""Runs that wait for people: parked without a worker, and taken up again once it is decided.

A worker whose call wants an approval gives its run back. Every replica looks at the runs that wait
so and asks policy how their approvals stand; what policy says is never kept. Whatever was decided,
the call is made again under its own key: the gate alone says whether it may happen now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from remit import telemetry
from remit.agent.leases import LeaseStore
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.policy.v1 import approval_pb2, policy_service_pb2, policy_service_pb2_grpc
from remit.approvals import APPROVAL
from remit.rpc.errors import RemitError

REASON: Final = reasons.ErrorReason.Name(reasons.ERROR_REASON_APPROVAL_REQUIRED).removeprefix(
    "ERROR_REASON_"
)
"""Of a wait for people, as journals name it."""
_PAGE: Final = 256
"""Approvals that policy is asked about in one call."""

log = telemetry.logger(__name__)


class ApprovalAwaited(Exception):  # noqa: N818 - what happened, not a fault
    """People must approve an effect first; the run waits for them without a worker."""

    def __init__(self, *errors: RemitError) -> None:
        super().__init__("; ".join(error.message for error in errors))
        self.errors = errors
        """APPROVAL_REQUIRED, each about one effect."""

    @property
    def approvals(self) -> list[str]:
        """`approvals/{approval}` of each."""
        return [error.metadata[APPROVAL] for error in self.errors]


class ApprovalWatch:
    """Looks, every `every_s` seconds, which runs wait for people no longer."""

    def __init__(
        self,
        leases: LeaseStore,
        policy: policy_service_pb2_grpc.PolicyServiceStub,
        *,
        every_s: float,
    ) -> None:
        self._leases = leases
        self._policy = policy
        self._every_s = every_s

    async def run(self) -> None:
        """Looks until cancelled; an outage only delays it."""
        while True:
            try:
                await self.look()
            except RemitError as error:
                log.warning("approvals_unknown", reason=error.reason_name)
            await asyncio.sleep(self._every_s)

    async def look(self) -> None:
        """One look at every run that waits for people."""
        after = ""
        while True:
            waiting = await self._leases.awaiting(after, _PAGE)
            if not waiting:
                return
            decided = await self._decided(waiting)
            if decided:
                await self._leases.wake(decided)
            after = list(waiting)[-1]

    async def _decided(self, waiting: Mapping[str, list[str]]) -> list[str]:
        """Runs of which an approval is pending no more, or is none that policy knows."""
        names = sorted({name for approvals in waiting.values() for name in approvals})
        pending: set[str] = set()
        for some in _pages(names):
            answer = await self._policy.BatchGetApprovals(
                policy_service_pb2.BatchGetApprovalsRequest(names=some)
            )
            pending |= {
                found.name
                for found in answer.approvals
                if found.state == approval_pb2.APPROVAL_STATE_PENDING
            }
        return [run for run, approvals in waiting.items() if not pending.issuperset(approvals)]


def _pages(names: list[str]) -> Iterator[Iterable[str]]:
    for start in range(0, len(names), _PAGE):
        yield names[start : start + _PAGE]
