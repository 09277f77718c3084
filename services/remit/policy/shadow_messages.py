"""Candidates in shadow on the wire."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from google.protobuf import timestamp_pb2

from remit.api.policy.v1 import permission_pb2, policy_set_service_pb2
from remit.policy.set_messages import timestamp_of
from remit.policy.shadow_store import ShadowRow
from remit.policy.shadow_tally import ChangeKey, Example, Kind
from remit.rpc.errors import Violation

MIN_LIFETIME_S: Final = 60
MAX_LIFETIME_S: Final = 30 * 86_400
_DEFAULT_LIFETIME_S: Final = 7 * 86_400
_COUNTS: Final = (
    *("agreed", "newly_denied", "newly_allowed", "newly_asked"),
    *("failed", "dropped", "unlisted"),
)
_SHADOW = policy_set_service_pb2.PolicyShadow
_KINDS: Final = {
    Kind.ALLOW: permission_pb2.DECISION_ALLOW,
    Kind.DENY: permission_pb2.DECISION_DENY,
    Kind.APPROVAL_REQUIRED: permission_pb2.DECISION_APPROVAL_REQUIRED,
}


def shadow_message(row: ShadowRow) -> policy_set_service_pb2.PolicyShadow:
    """A candidate with what it would have decided."""
    counts = {name: getattr(row, name) for name in _COUNTS}
    return _SHADOW(
        digest=row.digest,
        author=row.author,
        message=row.message,
        policy_count=row.policy_count,
        create_time=timestamp_of(row.create_time),
        expire_time=timestamp_of(row.expire_time),
        end_time=_time(row.end_time),
        end=_SHADOW.End.Value(f"END_{row.ended}") if row.ended else _SHADOW.END_UNSPECIFIED,
        changes=[_change(*change) for change in row.changes],
        **counts,
    )


def lifetime_s_of(request: policy_set_service_pb2.StartPolicyShadowRequest) -> float:
    """How long a candidate is to see decisions, in seconds."""
    if not request.HasField("lifetime"):
        return _DEFAULT_LIFETIME_S
    return request.lifetime.ToNanoseconds() / 1e9


def lifetime_violations(
    request: policy_set_service_pb2.StartPolicyShadowRequest,
) -> list[Violation]:
    """What is wrong with the lifetime that is asked for."""
    if MIN_LIFETIME_S <= lifetime_s_of(request) <= MAX_LIFETIME_S:
        return []
    return [Violation("lifetime", f"must be {MIN_LIFETIME_S} to {MAX_LIFETIME_S} seconds")]


def _change(key: ChangeKey, count: int, example: Example) -> policy_set_service_pb2.DecisionChange:
    return policy_set_service_pb2.DecisionChange(
        count=count,
        decision_id=example.decision_id,
        decision_time=timestamp_of(example.decision_time),
        action=key.action,
        resource=example.resource,
        before=_KINDS[key.before],
        policy_ids_before=example.policy_ids_before,
        after=_KINDS[key.after],
        policy_ids_after=example.policy_ids_after,
        policy_id=key.policy_id,
        reason=example.reason,
    )


def _time(time: datetime | None) -> timestamp_pb2.Timestamp | None:
    return None if time is None else timestamp_of(time.astimezone(UTC))
