"""The three permits of an effect, asked for in parallel: permission, budget, a durable intent.

An effect that goes on for long asks for the first two again.

Each question goes into a batch with those of other effects; the ids of all three derive from
(claim, attempt), so that asking twice is asking once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from remit import names
from remit.api.audit.v1 import audit_service_pb2, audit_service_pb2_grpc, event_pb2
from remit.api.cost.v1 import cost_service_pb2, cost_service_pb2_grpc, reservation_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.policy.v1 import (
    approval_pb2,
    permission_pb2,
    policy_service_pb2,
    policy_service_pb2_grpc,
)
from remit.api.usage.v1 import usage_pb2
from remit.approvals import APPROVAL, APPROVAL_STATE, ExactAction
from remit.effects.approval import exact_action
from remit.effects.batching import Batcher, opening_limits
from remit.effects.effect import EffectRequest
from remit.effects.sealing import AttemptSeal, Sealing
from remit.effects.settings import EffectSettings
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError

_HOLDER_SHARE: Final = 0.8
_CHECK: Final = "/remit.api.policy.v1.PolicyService/BatchCheckPermissions"
_RESERVE: Final = "/remit.api.cost.v1.CostService/BatchReserveBudgets"
_EXTEND: Final = "/remit.api.cost.v1.CostService/BatchExtendReservations"
_APPEND: Final = "/remit.api.audit.v1.AuditService/AppendEvents"


@dataclass(frozen=True)
class Permits:
    """All that an effect needs to start."""

    decision_id: str
    valid_until: float
    """Monotonic seconds until which the decision may be acted on."""
    reservation: reservation_pb2.Reservation
    intent_leaf: int
    seal: AttemptSeal
    """For what it will leave."""


class PermitSource:
    """Asks policy, cost and audit."""

    def __init__(
        self,
        policy: policy_service_pb2_grpc.PolicyServiceStub,
        cost: cost_service_pb2_grpc.CostServiceStub,
        audit: audit_service_pb2_grpc.AuditServiceStub,
        sealing: Sealing,
        clock: Clock,
        settings: EffectSettings,
    ) -> None:
        self._policy = policy
        self._cost = cost
        self._audit = audit
        self.sealing = sealing
        self._clock = clock
        self._checks = Batcher(self._check, name="decisions", **opening_limits(settings, _CHECK))
        self._reservations = Batcher(
            self._reserve, name="reservations", **opening_limits(settings, _RESERVE)
        )
        self._extensions = Batcher(
            self._extend, name="extensions", **opening_limits(settings, _EXTEND)
        )
        self._intents = Batcher(self._append, name="intents", **opening_limits(settings, _APPEND))

    async def ask(self, request: EffectRequest, claim: str, attempt: int, trace_id: str) -> Permits:
        """All three permits and a key, which is as needed and asks audit only now and then.

        Raises the most telling refusal if any is refused or fails.
        """
        asked = self._clock.monotonic()
        answers = await asyncio.gather(
            self._checks.ask(_check_request(request, claim, attempt)),
            self._reservations.ask(_reserve_request(request, claim, attempt)),
            self._intents.ask(self._intent(request, claim, attempt, trace_id)),
            self.sealing.of(request.remit.subject, claim, attempt),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        decision, reservation, intent_leaf, seal = answers
        assert not isinstance(decision, BaseException)  # noqa: S101 - narrows
        assert not isinstance(reservation, BaseException)  # noqa: S101 - narrows
        assert not isinstance(intent_leaf, BaseException)  # noqa: S101 - narrows
        assert not isinstance(seal, BaseException)  # noqa: S101 - narrows
        if decision.decision == permission_pb2.DECISION_APPROVAL_REQUIRED:
            asked = self._clock.monotonic()
            decision = await self._approved(request, claim, attempt, reservation)
        valid_s = decision.valid_for.ToNanoseconds() / 1e9
        return Permits(
            decision.decision_id, asked + _HOLDER_SHARE * valid_s, reservation, intent_leaf, seal
        )

    async def _approved(
        self,
        request: EffectRequest,
        claim: str,
        attempt: int,
        reservation: reservation_pb2.Reservation,
    ) -> policy_service_pb2.CheckPermissionResponse:
        """The decision by people's approval of exactly this. Raises APPROVAL_REQUIRED without it.

        They are asked only now that the effect has its money.
        """
        question = _check_request(request, claim, attempt)
        _state(question, exact_action(request, claim, reservation))
        return await self._checks.ask(question)

    async def recheck(
        self, request: EffectRequest, attempt: int, remit_token: str, action: ExactAction
    ) -> None:
        """Raises PERMISSION_DENIED or FENCED if an effect may not go on, or why none can say."""
        question = _check_request(request, names.parse("claim", action.claim)[0], attempt)
        _state(question, action)
        question.remit, question.continuing = remit_token, True
        await self._checks.ask(question)

    async def extend(
        self, claim: str, attempt: int, bound: usage_pb2.Usage
    ) -> reservation_pb2.Reservation:
        """The hold, raised to the cost of `bound`. Raises what refused it."""
        return await self._extensions.ask(
            cost_service_pb2.ExtendReservationRequest(
                claim=names.claim_name(claim), attempt=attempt, bound=bound
            )
        )

    def _intent(
        self, request: EffectRequest, claim: str, attempt: int, trace_id: str
    ) -> audit_service_pb2.Entry:
        event = event_pb2.Event(
            event_id=f"{claim}-{attempt}-intent",
            kind=event_pb2.EVENT_KIND_INTENT,
            org=request.remit.org,
            subject=request.remit.subject,
            action=request.action,
            resource=request.resource,
            run=request.remit.run,
            claim=names.claim_name(claim),
            attempt=attempt,
            trace_id=trace_id,
            detail_json=json.dumps(_detail(request), separators=(",", ":"), sort_keys=True),
        )
        event.event_time.FromDatetime(self._clock.now())
        return audit_service_pb2.Entry(event=event, remit=request.remit_token)

    async def _check(
        self, requests: Sequence[policy_service_pb2.CheckPermissionRequest]
    ) -> Sequence[policy_service_pb2.CheckPermissionResponse | RemitError]:
        response = await self._policy.BatchCheckPermissions(
            policy_service_pb2.BatchCheckPermissionsRequest(requests=requests)
        )
        return [
            _allowed(result, request)
            for result, request in zip(response.results, requests, strict=True)
        ]

    async def _reserve(
        self, requests: Sequence[cost_service_pb2.ReserveBudgetRequest]
    ) -> Sequence[reservation_pb2.Reservation | RemitError]:
        response = await self._cost.BatchReserveBudgets(
            cost_service_pb2.BatchReserveBudgetsRequest(requests=requests)
        )
        return [_answer(result, "reservation") for result in response.results]

    async def _extend(
        self, requests: Sequence[cost_service_pb2.ExtendReservationRequest]
    ) -> Sequence[reservation_pb2.Reservation | RemitError]:
        response = await self._cost.BatchExtendReservations(
            cost_service_pb2.BatchExtendReservationsRequest(requests=requests)
        )
        return [_answer(result, "reservation") for result in response.results]

    async def _append(
        self, entries: Sequence[audit_service_pb2.Entry]
    ) -> Sequence[int | RemitError]:
        response = await self._audit.AppendEvents(
            audit_service_pb2.AppendEventsRequest(entries=entries)
        )
        return [_answer(result, "leaf_index") for result in response.results]


def _check_request(
    request: EffectRequest, claim: str, attempt: int
) -> policy_service_pb2.CheckPermissionRequest:
    return policy_service_pb2.CheckPermissionRequest(
        remit=request.remit_token,
        action=request.action,
        resource=request.resource,
        permission_class=request.permission_class,
        arguments=request.arguments,
        arguments_digest=request.arguments_digest,
        claim=names.claim_name(claim),
        attempt=attempt,
        definition_digest=request.definition_digest,
        repeats_claim=request.repeats_claim,
    )


def _state(question: policy_service_pb2.CheckPermissionRequest, action: ExactAction) -> None:
    """Says what exactly would be executed, for a person to approve."""
    question.cost_bound_nanos = action.cost_bound_nanos
    question.action_digest = action.digest()


def _reserve_request(
    request: EffectRequest, claim: str, attempt: int
) -> cost_service_pb2.ReserveBudgetRequest:
    return cost_service_pb2.ReserveBudgetRequest(
        remit=request.remit_token,
        claim=names.claim_name(claim),
        attempt=attempt,
        item=request.resource,
        bound=request.bound,
        list_item=request.list_item,
    )


def _detail(request: EffectRequest) -> dict[str, Any]:
    return {
        "method": request.method,
        "body_sha256": request.body_digest.hex(),
        "arguments_sha256": request.arguments_digest.hex(),
        **({"guardrails_by_policy": request.remit.guardrails} if request.remit.guardrails else {}),
        "bound": {
            "input_tokens": request.bound.input_tokens,
            "output_tokens": request.bound.output_tokens,
            "calls": request.bound.calls,
        },
        "account": request.remit.account,
        "remit": request.remit.remit_id,
        **({"repeats": request.repeats_claim} if request.repeats_claim else {}),
        **({"guardrails": dict(request.guardrails)} if request.guardrails else {}),
    }


def _allowed(
    result: policy_service_pb2.CheckPermissionResult,
    request: policy_service_pb2.CheckPermissionRequest,
) -> policy_service_pb2.CheckPermissionResponse | RemitError:
    """The decision if it allows, or wants to be asked for an approval; all else is a refusal."""
    if result.WhichOneof("result") != "response":
        return RemitError.from_status(result.error)
    decision = result.response
    if decision.decision == permission_pb2.DECISION_ALLOW and decision.decision_id:
        return decision
    facts = {
        "action": request.action,
        "resource": request.resource,
        "decision": decision.decision_id,
        **(_approval_of(decision) if decision.approval else {}),
    }
    if decision.decision == permission_pb2.DECISION_APPROVAL_REQUIRED:
        if decision.approval:
            return RemitError(
                error_reason_pb2.ERROR_REASON_APPROVAL_REQUIRED,
                f"{request.resource} waits for {decision.approval}: {decision.reason}",
                metadata=facts,
            )
        if not request.action_digest:
            return decision
    return RemitError(
        error_reason_pb2.ERROR_REASON_PERMISSION_DENIED,
        decision.reason or f"{request.action} on {request.resource} is not permitted",
        metadata=facts,
    )


def _approval_of(decision: policy_service_pb2.CheckPermissionResponse) -> dict[str, str]:
    state = approval_pb2.ApprovalState.Name(decision.approval_state)
    return {APPROVAL: decision.approval, APPROVAL_STATE: state.removeprefix("APPROVAL_STATE_")}


def _answer(result: Any, field: str) -> Any:  # noqa: ANN401 - a oneof of the answer or an error
    """The field that was asked for; an error, or nothing at all, is a refusal."""
    kind = result.WhichOneof("result")
    if kind == field:
        return getattr(result, field)
    return RemitError.from_status(result.error)
