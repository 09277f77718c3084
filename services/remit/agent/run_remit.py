"""The remit of a run in the hands of its worker: issued by policy, renewed before it ends."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, replace
from typing import Final

from remit.agent.definitions import Grant
from remit.api.agent.v1 import run_pb2
from remit.api.policy.v1 import policy_service_pb2, policy_service_pb2_grpc
from remit.rpc.clock import Clock

RENEW_SHARE: Final = 0.8
"""Share of its life after which a remit is renewed."""


@dataclass(frozen=True, slots=True)
class IssuedRemit:
    """A token with its lifetime, counted from before it was asked for."""

    token: str
    lifetime_s: float
    ask_time: float
    """Monotonic seconds."""
    max_user_runs: int = 0
    """Unfinished runs that its user may have at once; 0: any number. The first remit says it."""
    max_org_runs: int = 0
    """The same of its org."""
    guardrails: str = ""
    """What policies want of guardrails for the run, as its remit says it."""

    def is_fresh(self, now: float) -> bool:
        """Whether it need not be renewed yet at the monotonic time `now`."""
        return now - self.ask_time < self.lifetime_s * RENEW_SHARE


class RemitDesk:
    """Asks policy for the remits of runs."""

    def __init__(self, policy: policy_service_pb2_grpc.PolicyServiceStub, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock

    async def register(
        self, run: run_pb2.Run, fencing_token: int, grant: Grant, *, client_remit: str
    ) -> IssuedRemit:
        """The first remit of a client's run, which fixes what the run may use.

        `client_remit` registers the run and is not kept. Raises what policy answers.
        """
        asked = self._clock.monotonic()
        response = await self._policy.IssueRemit(
            policy_service_pb2.IssueRemitRequest(
                run=run.name,
                fencing_token=fencing_token,
                client_remit=client_remit,
                agent=run.agent,
                max_cost_nanos=run.limits.max_cost_nanos,
                **asdict(grant),
            )
        )
        return replace(
            _issued(response, asked),
            max_user_runs=response.max_user_runs,
            max_org_runs=response.max_org_runs,
        )

    async def delegate(
        self, run: run_pb2.Run, fencing_token: int, grant: Grant, *, parent_remit: str
    ) -> IssuedRemit:
        """The first remit of a sub-run, a subset of its parent's. Raises what policy answers."""
        asked = self._clock.monotonic()
        response = await self._policy.DelegateRemit(
            policy_service_pb2.DelegateRemitRequest(
                run=run.name,
                fencing_token=fencing_token,
                parent_remit=parent_remit,
                agent=run.agent,
                max_cost_nanos=run.limits.max_cost_nanos,
                **asdict(grant),
            )
        )
        return _issued(response, asked)

    async def renew(self, run: str, fencing_token: int) -> IssuedRemit:
        """The remit of a registered run for the worker with this token; it fences lower ones."""
        asked = self._clock.monotonic()
        request = policy_service_pb2.IssueRemitRequest(run=run, fencing_token=fencing_token)
        return _issued(await self._policy.IssueRemit(request), asked)

    async def fence(self, run: str, fencing_token: int) -> None:
        """Makes policy refuse every remit of the run with a lower token."""
        await self._policy.FenceRun(
            policy_service_pb2.FenceRunRequest(run=run, min_fencing_token=fencing_token)
        )

    async def withdraw_approvals(self, run: str) -> None:
        """Withdraws what a run still asks of people. Raises what policy answers."""
        await self._policy.WithdrawApprovals(policy_service_pb2.WithdrawApprovalsRequest(run=run))

    def is_fresh(self, issued: IssuedRemit) -> bool:
        """Whether a remit need not be renewed yet."""
        return issued.is_fresh(self._clock.monotonic())


class RunRemit:
    """The remit in force of one run under one fencing token."""

    def __init__(
        self,
        desk: RemitDesk,
        run: str,
        fencing_token: int,
        issued: IssuedRemit | None,
    ) -> None:
        self._desk = desk
        self._run = run
        self._fencing_token = fencing_token
        self._issued = issued
        self._lock = asyncio.Lock()

    async def current(self) -> str:
        """A token with at least a fifth of its life left. Raises what policy answers."""
        async with self._lock:
            if self._issued is None or not self._desk.is_fresh(self._issued):
                self._issued = await self._desk.renew(self._run, self._fencing_token)
            return self._issued.token

    def drop(self) -> None:
        """Forgets a token that was refused, so that the next use asks for another."""
        self._issued = None


def _issued(
    response: policy_service_pb2.IssueRemitResponse | policy_service_pb2.DelegateRemitResponse,
    asked: float,
) -> IssuedRemit:
    lifetime_s = response.lifetime.ToNanoseconds() / 1e9
    return IssuedRemit(response.remit, lifetime_s, asked, guardrails=response.guardrails)
