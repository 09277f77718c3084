"""What a person would approve of an effect: exactly what the gate is about to do, and its price."""

from __future__ import annotations

from remit import names
from remit.api.cost.v1 import reservation_pb2
from remit.approvals import ExactAction
from remit.effects.effect import EffectRequest
from remit.pricing import cost_nanos


def exact_action(
    request: EffectRequest, claim: str, reservation: reservation_pb2.Reservation
) -> ExactAction:
    """The action that this claim will perform, under the hold that it has at its beginning."""
    remit = request.remit
    most = cost_nanos(reservation.price, request.most or request.bound)
    return ExactAction(
        claim=names.claim_name(claim),
        subject=remit.subject,
        team=remit.team,
        agent=remit.agent,
        run=remit.run,
        action=request.action,
        resource=request.resource,
        permission_class=request.permission_class,
        definition_digest=request.definition_digest,
        arguments_digest=request.arguments_digest,
        cost_bound_nanos=max(most, reservation.hold_nanos),
        repeats_claim=request.repeats_claim,
    )
