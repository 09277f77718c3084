"""Runs of a storm whose mail a person has to approve, and that person, who decides at the gateway.

What becomes of each is settled by its number: some are approved, some are denied, and of some
nobody says anything until their time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import grpc
from google.protobuf import json_format

from remit.api.policy.v1 import approval_pb2, approval_service_pb2, approval_service_pb2_grpc
from remit.client.breaks import is_break
from remit.rpc.errors import RemitError
from tests.integration.clients import bearer, channel
from tests.integration.conftest import RunningMesh
from tests.waiting import PATIENCE, eventually

FIRST: Final = 1_000_000
"""Numbers of runs below it are of runs that ask nobody; above, each kind has as many."""
BOSS: Final = "boss"
WHY_NOT: Final = "this mail is not to be sent"
_OF_A_STORM_S: Final = 3600
_OUTAGE_S: Final = 120

POLICY: Final = """
@id("petitions-ask-the-boss")
@reason("the mail of a petitioner is sent only with approval")
@approval("user:boss; expires=1h")
forbid (principal, action == Action::"tools.call", resource == Tool::"tools/send_email")
when { context has agent && context.agent == Agent::"agents/storm-petitioner" };

@id("forgotten-petitions-lapse")
@reason("the mail of who is forgotten is sent only with approval")
@approval("user:boss; expires=60s")
forbid (principal, action == Action::"tools.call", resource == Tool::"tools/send_email")
when { context has agent && context.agent == Agent::"agents/storm-forgotten" };
"""
"""Stands beside the shipped policies. An hour is longer than any outage; a minute is the least."""

_TOOLS: Final = ["write_file", "send_email"]
AGENTS: Final = (
    {"name": "storm-petitioner", "display_name": "Petitioner", "tools": _TOOLS},
    {"name": "storm-forgotten", "display_name": "Forgotten", "tools": _TOOLS},
)


class Fate(Enum):
    """What the person says to a run."""

    APPROVE = 1
    DENY = 2
    LAPSE = 3
    """Nothing."""

    @property
    def agent(self) -> str:
        """Who does the runs of this fate."""
        return "agents/storm-forgotten" if self is Fate.LAPSE else "agents/storm-petitioner"

    @property
    def first(self) -> int:
        """The number of the first run of this fate."""
        return self.value * FIRST


def fate_of(number: int) -> Fate | None:
    """What becomes of a run's question; None of one that asks nobody."""
    return Fate(number // FIRST) if number >= FIRST else None


@dataclass
class Approver:
    """Follows what waits for them, and decides about just what they are shown, each thing once."""

    approvals: approval_service_pb2_grpc.ApprovalServiceStub
    api_key: str
    right: Callable[[int], dict[str, Any]]
    """The arguments that a run's mail must have."""
    said: dict[str, Fate] = field(default_factory=dict)
    """By approval, what was said and taken."""
    breaks: int = 0
    """How often the watch broke and was resumed."""
    _sequence: int = 0

    async def follow(self) -> None:
        """Decides until cancelled, over however many streams it takes. Raises refusals."""
        await eventually(self._one_stream, _OF_A_STORM_S)

    async def _one_stream(self) -> bool:
        request = approval_service_pb2.WatchApprovalsRequest(after_sequence=self._sequence)
        stream = self.approvals.WatchApprovals(
            request, metadata=bearer(self.api_key), timeout=60 * PATIENCE
        )
        try:
            async for piece in stream:
                if piece.approval.state == approval_pb2.APPROVAL_STATE_PENDING:
                    await self._decide(piece.approval.name)
                self._sequence = piece.sequence
        except grpc.aio.AioRpcError as error:
            _raise_refusal(error)
        self.breaks += 1
        return False

    async def _decide(self, name: str) -> None:
        asked = approval_service_pb2.GetApprovalRequest(name=name)
        shown = (await self._answered(self.approvals.GetApproval, asked)).approval
        if shown.state != approval_pb2.APPROVAL_STATE_PENDING:
            return
        mail = json_format.MessageToDict(shown.arguments)
        number = int(re.findall(r"\d+", mail["to"][0])[0])
        assert mail == self.right(number)
        fate = fate_of(number)
        if fate in {Fate.APPROVE, Fate.DENY}:
            yes = fate is Fate.APPROVE
            verdict = approval_pb2.APPROVAL_VERDICT_APPROVE
            decision = approval_service_pb2.DecideApprovalRequest(
                name=name,
                verdict=verdict if yes else approval_pb2.APPROVAL_VERDICT_DENY,
                digest=shown.digest,
                reason="" if yes else WHY_NOT,
                request_id=f"decide-{name.rpartition('/')[2]}",
            )
            await self._answered(self.approvals.DecideApproval, decision)
            self.said[name] = fate

    async def _answered(self, method: Callable[..., Awaitable[Any]], request: Any) -> Any:
        """What a call answers, the same asked again over outages."""

        async def answered() -> tuple[Any] | None:
            try:
                who = bearer(self.api_key)
                return (await method(request, metadata=who, timeout=10 * PATIENCE),)
            except grpc.aio.AioRpcError as error:
                _raise_refusal(error)
                return None

        (answer,) = await eventually(answered, _OUTAGE_S)
        return answer


def _raise_refusal(error: grpc.aio.AioRpcError) -> None:
    """Raises an error that is an answer, and none that an outage explains."""
    told = RemitError.from_rpc(error)
    if not (is_break(told) or told.retryable):
        raise error


@contextlib.asynccontextmanager
async def approving(
    mesh: RunningMesh, right: Callable[[int], dict[str, Any]]
) -> AsyncIterator[Approver]:
    """Somebody decides while the body runs. Raises what ended them before."""
    arguments = ("keys", "create", BOSS, "--user", f"{mesh.org}/users/{BOSS}", "--json")
    made = await asyncio.to_thread(mesh.run, *arguments)
    assert made.returncode == 0, made.stderr
    key = str(json.loads(made.stdout)["secret"])
    async with channel(mesh.address) as edge:
        approver = Approver(approval_service_pb2_grpc.ApprovalServiceStub(edge), key, right)
        following = asyncio.create_task(approver.follow())
        try:
            yield approver
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
