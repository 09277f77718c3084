"""From a CheckPermission request to a question for the rules, and from a decision to an answer.

Pure: what the request says, what the remit allows and what a decision is called need no I/O.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from google.protobuf import duration_pb2, json_format

from remit import names
from remit.api.policy.v1 import permission_pb2, policy_service_pb2
from remit.policy.approval_desk import Verdict
from remit.policy.approval_desk import violations as approval_violations
from remit.policy.approval_rows import state_of
from remit.policy.entities import reference_to
from remit.policy.facts import facts_of
from remit.policy.remits import principal_of
from remit.policy.rules import Decision, Question
from remit.rpc.errors import Violation
from remit.rpc.remits import Remit

_DIGEST_BYTES: Final = 32
_MAX_ACTION_CHARS: Final = 100
_MAX_RESOURCE_CHARS: Final = 400


def violations(request: policy_service_pb2.CheckPermissionRequest) -> list[Violation]:
    """Everything that is wrong with the form of a question."""
    found = []
    if not 1 <= len(request.action) <= _MAX_ACTION_CHARS:
        found.append(Violation("action", f"must have 1 to {_MAX_ACTION_CHARS} characters"))
    if not 1 <= len(request.resource) <= _MAX_RESOURCE_CHARS:
        found.append(Violation("resource", f"must have 1 to {_MAX_RESOURCE_CHARS} characters"))
    found += _tool_violations(request) if names.is_name("tool", request.resource) else []
    found += _claim_violations(request)
    found += [Violation(field, fault) for field, fault in approval_violations(request)]
    return found


def _tool_violations(request: policy_service_pb2.CheckPermissionRequest) -> list[Violation]:
    found = []
    if request.permission_class == permission_pb2.PERMISSION_CLASS_UNSPECIFIED:
        found.append(Violation("permission_class", "must be stated for a tool"))
    if len(request.arguments_digest) != _DIGEST_BYTES:
        found.append(Violation("arguments_digest", f"must have {_DIGEST_BYTES} bytes"))
    return found


def _claim_violations(request: policy_service_pb2.CheckPermissionRequest) -> list[Violation]:
    if not request.claim:
        what = "is only of a claim's effect"
        return [Violation("continuing", what)] if request.continuing else []
    found = []
    if not names.is_name("claim", request.claim):
        found.append(Violation("claim", "must be `claims/{uuid}` or empty"))
    if request.attempt < 1:
        found.append(Violation("attempt", "must be 1 or more for a claim"))
    return found


def question_of(remit: Remit, request: policy_service_pb2.CheckPermissionRequest) -> Question:
    """Put the request to the rules; the principal comes from the remit alone."""
    return Question(
        principal=principal_of(remit),
        action=request.action,
        resource=request.resource,
        permission_class=request.permission_class,
        context=_circumstances(remit, request),
    )


def _circumstances(
    remit: Remit, request: policy_service_pb2.CheckPermissionRequest
) -> Mapping[str, object]:
    context: dict[str, object] = {}
    if remit.is_run:
        context["agent"] = reference_to(remit.agent)
        context["run"] = reference_to(remit.run)
    if names.is_name("tool", request.resource):
        arguments = json_format.MessageToDict(request.arguments)
        context["tool_call"] = {
            "arguments_digest": request.arguments_digest.hex(),
            "facts": facts_of(arguments).to_cedar(),
            **({"repeats_doubt": True} if request.repeats_claim else {}),
        }
    return context


def outside_remit(remit: Remit, action: str, resource: str) -> str:
    """Why a remit does not cover `action` on `resource`; empty if it does."""
    if not remit.is_run and action not in remit.permissions:
        return f"the remit of {remit.subject} was not issued for {action}"
    tool, model = names.is_name("tool", resource), names.is_name("model", resource)
    if (tool and not remit.offers_tool(resource)) or (model and not remit.offers_model(resource)):
        return f"the remit of {remit.run} does not name {resource}"
    return ""


def refused_by_remit(reason: str, epoch: int) -> Decision:
    """Deny what a remit does not cover; no policy is asked."""
    return Decision(allow=False, policy_ids=(), reason=reason, epoch=epoch)


def decision_id(claim: str, attempt: int, fresh: uuid.UUID) -> str:
    """Name a decision: by its claim and attempt, so that a repetition has the same name."""
    if claim:
        return f"decisions/{names.parse('claim', claim)[0]}-{attempt}"
    return f"decisions/{fresh}"


def answer_of(
    verdict: Verdict, name: str, valid_s: float, now: datetime
) -> policy_service_pb2.CheckPermissionResponse:
    """The decision on the wire. A denial may be acted on as long as one likes: it has no time.

    A permission that rests on a grant may not be acted on after the grant's end.
    """
    decision = verdict.decision
    valid_for = duration_pb2.Duration()
    if decision.end is not None:
        valid_s = min(valid_s, max((decision.end - now).total_seconds(), 0.0))
    if decision.allow:
        valid_for.FromNanoseconds(int(valid_s * 1e9))
    return policy_service_pb2.CheckPermissionResponse(
        decision=_kind(verdict),
        decision_id=name,
        policy_ids=decision.policy_ids,
        reason=decision.reason,
        policy_epoch=decision.epoch,
        valid_for=valid_for,
        approval=verdict.approval,
        approval_state=state_of(verdict.state),
    )


def _kind(verdict: Verdict) -> permission_pb2.Decision.ValueType:
    if verdict.is_waiting:
        return permission_pb2.DECISION_APPROVAL_REQUIRED
    return permission_pb2.DECISION_ALLOW if verdict.decision.allow else permission_pb2.DECISION_DENY
