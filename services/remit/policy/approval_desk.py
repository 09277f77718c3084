"""From a decision that wants a person to an answer: ask, allow what was approved, or deny.

The gate asks twice. Its first question learns that a person is wanted; the second, asked once the
money is held, states the exact action by a digest. Policy makes the same digest from what it knows
by itself; an approval is found by it, used by the claim's attempt, and is nobody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from remit import names
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.policy.v1 import approval_pb2, policy_service_pb2
from remit.approvals import DIGEST_BYTES, ExactAction, approval_digest
from remit.policy.approval_arguments import ApprovalArguments
from remit.policy.approval_rows import ApprovalRow, Asked, State, to_message
from remit.policy.approval_store import ApprovalStore
from remit.policy.approval_terms import Terms
from remit.policy.rules import Decision
from remit.rpc.calls import current_call
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.remits import Remit

MAX_BATCH: Final = 256
_WAITING: Final = frozenset({State.PENDING})
_ALLOWING: Final = frozenset({State.USED})


@dataclass(frozen=True)
class Verdict:
    """A decision once people were asked, or are to be asked."""

    decision: Decision
    approval: str = ""
    """`approvals/{approval}`, or empty."""
    is_waiting: bool = False
    """Neither allowed nor denied: a person decides."""
    state: State | None = None
    """Where the approval stands; None without one."""

    @property
    def word(self) -> str:
        """What is counted: ALLOW, DENY or APPROVAL_REQUIRED."""
        if self.is_waiting:
            return "APPROVAL_REQUIRED"
        return "ALLOW" if self.decision.allow else "DENY"


class ApprovalDesk:
    """Answers questions whose policies want a person."""

    def __init__(self, store: ApprovalStore, arguments: ApprovalArguments) -> None:
        self._store = store
        self._arguments = arguments

    async def answer(
        self,
        decision: Decision,
        terms: Terms,
        remit: Remit,
        request: policy_service_pb2.CheckPermissionRequest,
    ) -> Verdict:
        """What a question comes to that `decision` denies only for want of an approval.

        Raises APPROVAL_MISMATCH if the asker would execute something else than it asked about,
        OVERLOADED if too many approvals are open, DEPENDENCY_UNAVAILABLE without the subject's key,
        under which what people are shown is stored.
        """
        if not request.claim:
            return Verdict(_denied(decision, "only an effect can be approved, and this is none"))
        if not request.action_digest:
            return Verdict(decision, is_waiting=True)
        action = _exact(remit, request)
        digest = action.digest()
        if digest != request.action_digest:
            raise RemitError(
                reasons.ERROR_REASON_APPROVAL_MISMATCH,
                f"what would be executed for {request.claim} is not what was asked about",
            )
        if request.continuing:
            return await self._continued(decision, request, digest)
        asked = _asked(decision, terms, remit, request, action)
        row = await self._store.ask(await self._arguments.sealed(asked))
        return _verdict(decision, row, request.attempt)

    async def these(self, asked: Sequence[str]) -> list[approval_pb2.Approval]:
        """How approvals stand, those that there are. Raises INVALID_REQUEST."""
        if not 1 <= len(asked) <= MAX_BATCH:
            raise invalid_request([Violation("names", f"must hold 1 to {MAX_BATCH} names")])
        if any(not names.is_name("approval", name) for name in asked):
            raise invalid_request([Violation("names", "must be `approvals/{uuid}` each")])
        found = await self._store.these([names.parse("approval", name)[0] for name in asked])
        return [to_message(row) for row in found]

    async def withdraw(self, run: str) -> int:
        """Withdraws what a run still asks; returns how much that was. Raises INVALID_REQUEST."""
        if not names.is_name("run", run):
            raise invalid_request([Violation("run", "must be `runs/{uuid}`")])
        return await self._store.withdraw_of_run(run)

    async def _continued(
        self,
        decision: Decision,
        request: policy_service_pb2.CheckPermissionRequest,
        digest: bytes,
    ) -> Verdict:
        """An effect that was approved goes on, whatever the policies are by now."""
        if await self._store.continues(request.claim, request.attempt, digest):
            return Verdict(_allowed(decision))
        return Verdict(_denied(decision, "this effect was not approved when it began"))


def _exact(remit: Remit, request: policy_service_pb2.CheckPermissionRequest) -> ExactAction:
    return ExactAction(
        claim=request.claim,
        subject=remit.subject,
        team=remit.team,
        agent=remit.agent,
        run=remit.run,
        action=request.action,
        resource=request.resource,
        permission_class=request.permission_class,
        definition_digest=request.definition_digest,
        arguments_digest=request.arguments_digest,
        cost_bound_nanos=request.cost_bound_nanos,
        repeats_claim=request.repeats_claim,
    )


def _asked(
    decision: Decision,
    terms: Terms,
    remit: Remit,
    request: policy_service_pb2.CheckPermissionRequest,
    action: ExactAction,
) -> Asked:
    action_digest = action.digest()
    return Asked(
        action=action,
        org=remit.org,
        attempt=request.attempt,
        action_digest=action_digest,
        digest=approval_digest(action_digest, decision.epoch),
        policy_ids=decision.policy_ids,
        policy_reason=decision.reason,
        policy_epoch=decision.epoch,
        terms=terms,
        arguments=(
            request.arguments.SerializeToString(deterministic=True)
            if names.is_name("tool", request.resource)
            else b""
        ),
        trace_id=current_call().trace_id,
    )


def _verdict(decision: Decision, row: ApprovalRow, attempt: int) -> Verdict:
    if row.state in _ALLOWING and row.used_by_attempt == attempt:
        return Verdict(_allowed(decision, row), row.name, state=row.state)
    if row.state in _WAITING and not row.is_late:
        return Verdict(decision, row.name, is_waiting=True, state=row.state)
    return Verdict(_denied(decision, _why_not(row)), row.name, state=row.state)


def _why_not(row: ApprovalRow) -> str:
    denial = row.denial
    if row.state is State.DENIED and denial is not None:
        return f"{row.name} was denied by {denial.subject}: {denial.reason}"
    if row.state is State.USED:
        return f"{row.name} was used by attempt {row.used_by_attempt}, and its time is over"
    return f"{row.name} is {row.state}: nobody approved it in time"


def _allowed(decision: Decision, row: ApprovalRow | None = None) -> Decision:
    by = ", ".join(vote.subject for vote in row.votes) if row is not None else ""
    reason = f"approved by {by}" if by else "approved when it began"
    return replace(decision, allow=True, reason=reason, approval=None)


def _denied(decision: Decision, why: str) -> Decision:
    return replace(decision, reason=f"{decision.reason}; {why}", approval=None)


def unapproved_repetition(
    decision: Decision, request: policy_service_pb2.CheckPermissionRequest
) -> Decision:
    """The decision, but a denial where it allows without a person that a doubt is repeated.

    Whoever turns the question to people off by a change of policy must not turn it into a yes. What
    has begun goes on.
    """
    if not (request.repeats_claim and decision.allow) or request.continuing:
        return decision
    why = (
        f"whether {request.repeats_claim} took effect is unknown, and no policy says who may"
        " approve that it is repeated"
    )
    return replace(decision, allow=False, reason=why)


def violations(request: policy_service_pb2.CheckPermissionRequest) -> list[tuple[str, str]]:
    """What is wrong with the parts of a question that are about an approval, by field."""
    found = [
        (field, f"must have {DIGEST_BYTES} bytes or none")
        for field in ("action_digest", "definition_digest")
        if len(getattr(request, field)) not in {0, DIGEST_BYTES}
    ]
    if request.action_digest and not request.HasField("cost_bound_nanos"):
        found.append(("cost_bound_nanos", "must be stated with `action_digest`"))
    if request.cost_bound_nanos < 0:
        found.append(("cost_bound_nanos", "must not be negative"))
    if request.repeats_claim and not names.is_name("claim", request.repeats_claim):
        found.append(("repeats_claim", "must be `claims/{uuid}` or empty"))
    if request.action_digest and not request.claim:
        found.append(("action_digest", "is only of a claim's effect"))
    return found
