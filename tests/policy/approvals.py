"""A policy service whose policies want people, and what the tests ask it."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

from google.protobuf import struct_pb2

from remit.api.errors.v1.error_reason_pb2 import ErrorReason
from remit.api.policy.v1 import (
    approval_pb2,
    approval_service_pb2,
    permission_pb2,
    policy_service_pb2,
)
from remit.approvals import ExactAction
from remit.policy.epochs import checked, read_policies
from remit.policy.rule_sets import PolicySource
from remit.policy.schema import SHIPPED_POLICIES, schema_text
from remit.policy.set_store import NewSet
from remit.rpc.errors import RemitError
from tests.policy.world import ALICE, World

TEAM = "orgs/acme/teams/ops"
OLGA, OTTO = "orgs/acme/users/olga", "orgs/acme/users/otto"
ALLOW = permission_pb2.DECISION_ALLOW
DENY = permission_pb2.DECISION_DENY
REQUIRED = permission_pb2.DECISION_APPROVAL_REQUIRED
APPROVE, NO = approval_pb2.APPROVAL_VERDICT_APPROVE, approval_pb2.APPROVAL_VERDICT_DENY
COST = 5_000_000
DEFINITION = hashlib.sha256(b"definition").digest()
GUARDED = """
@id("mail-with-approval")
@reason("mail leaves the house only with approval")
@approval("{terms}")
forbid (principal, action == Action::"tools.call", resource is Tool)
when {{
  [Tool::"tools/send_mail", Tool::"tools/send_mails", Tool::"tools/send_fax"].contains(resource)
}};
"""


def guarded(terms: str = "team:ops") -> PolicySource:
    """The shipped policies, and one that wants an approval for mail."""
    files = dict(read_policies(SHIPPED_POLICIES).files)
    return PolicySource(files | {"mail.cedar": GUARDED.format(terms=terms)}, schema_text())


async def guard(world: World, terms: str = "team:ops") -> None:
    """Puts `guarded` in force."""
    await put(world, guarded(terms))


async def put(world: World, source: PolicySource) -> None:
    """Puts policies in force, checked as those of a service that starts."""
    rules = await checked(source)
    await world.sets.accept(NewSet(source, len(rules.policies), "FILES"))
    await world.policies.refresh()


def new_claim() -> str:
    return f"claims/{uuid.uuid4()}"


def exact(claim: str, **fields: Any) -> ExactAction:
    """What a member's call of the tool is, outside runs."""
    given: dict[str, Any] = {
        "claim": claim,
        "subject": ALICE,
        "team": "",
        "agent": "",
        "run": "",
        "action": "tools.call",
        "resource": "tools/send_mail",
        "permission_class": permission_pb2.PERMISSION_CLASS_WRITE,
        "definition_digest": DEFINITION,
        "arguments_digest": hashlib.sha256(b"{}").digest(),
        "cost_bound_nanos": COST,
    }
    return ExactAction(**given | fields)


def question(
    remit: str, action: ExactAction, *, attempt: int = 1, digest: bytes | None = None, **more: Any
) -> policy_service_pb2.CheckPermissionRequest:
    """The gate's second question about an action; `digest=b""` makes it the first."""
    stated = action.digest() if digest is None else digest
    arguments = struct_pb2.Struct()
    arguments.update({"to": "ann@example.com"})
    return policy_service_pb2.CheckPermissionRequest(
        remit=remit,
        action=action.action,
        resource=action.resource,
        permission_class=action.permission_class,  # type: ignore[arg-type]
        arguments=arguments,
        arguments_digest=action.arguments_digest,
        claim=action.claim,
        attempt=attempt,
        definition_digest=action.definition_digest,
        repeats_claim=action.repeats_claim,
        cost_bound_nanos=action.cost_bound_nanos if stated else None,
        action_digest=stated,
        **more,
    )


async def asked(world: World, action: ExactAction, **more: Any) -> Any:
    """The answer to the second question of a member's call."""
    return await world.hot().CheckPermission(question(world.client_token(), action, **more))


def approver(world: World, user: str = OLGA, team: str = TEAM) -> str:
    """The remit of somebody of the team."""
    return world.client_token(user, team=team)


async def seen(world: World, name: str, by: str = OLGA) -> approval_pb2.Approval:
    """An approval as somebody of the team sees it."""
    request = approval_service_pb2.GetApprovalRequest(name=name)
    answer = await world.people().GetApproval(request, metadata=as_(approver(world, by)))
    return answer.approval


def as_(token: str) -> tuple[tuple[str, str], ...]:
    return (("remit-token", token),)


async def decide(
    world: World,
    name: str,
    *,
    by: str | None = None,
    verdict: approval_pb2.ApprovalVerdict.ValueType = APPROVE,
    **fields: Any,
) -> approval_pb2.Approval:
    """Somebody's decision about the approval as it is; `by` is a token."""
    row = await world.approvals.get(name.removeprefix("approvals/"))
    assert row is not None
    given: dict[str, Any] = {
        "name": name,
        "verdict": verdict,
        "reason": "looks right",
        "digest": row.digest,
        "request_id": str(uuid.uuid4()),
    }
    answer = await world.people().DecideApproval(
        approval_service_pb2.DecideApprovalRequest(**given | fields),
        metadata=as_(by or approver(world)),
    )
    return answer.approval


def recorded(world: World, action: str) -> list[dict[str, Any]]:
    """What the audit log was told of an action, the details."""
    return [
        json.loads(event.detail_json) | {"outcome": event.outcome, "subject": event.subject}
        for event in world.audit.events.values()
        if event.action == action
    ]


def is_because(error: RemitError, reason: ErrorReason.ValueType) -> bool:
    return error.reason == reason
