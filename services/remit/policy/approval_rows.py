"""Approvals as the database holds them, and as the contract shows them; plain data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import asyncpg
from google.protobuf import struct_pb2, timestamp_pb2

from remit import names
from remit.api.policy.v1 import approval_pb2
from remit.approvals import ExactAction
from remit.policy.approval_terms import Rule, Terms


class State(StrEnum):
    """Where an approval stands."""

    PENDING = "PENDING"
    APPROVED = "APPROVED"
    DENIED = "DENIED"
    EXPIRED = "EXPIRED"
    USED = "USED"
    WITHDRAWN = "WITHDRAWN"


class Verdict(StrEnum):
    """What a person says."""

    APPROVE = "APPROVE"
    DENY = "DENY"


OPEN: Final = frozenset({State.PENDING, State.APPROVED})
COLUMNS: Final = (
    "approval, sequence, state, org, claim, digest, action_digest, requester, team, agent, run,"
    " action, resource, permission_class, definition_digest, arguments_digest, cost_bound_nanos,"
    " repeats_claim, policy_ids, policy_reason, policy_epoch, rules, arguments, create_time,"
    " expire_time, end_time, used_by_attempt, expire_time <= clock_timestamp() AS is_late,"
    " extract(epoch FROM clock_timestamp() - create_time)::float8 AS age_s"
)


@dataclass(frozen=True)
class Asked:
    """What is asked of people, for one attempt of a claim."""

    action: ExactAction
    org: str
    attempt: int
    action_digest: bytes
    digest: bytes
    """Over the action and the version of the policies."""
    policy_ids: tuple[str, ...]
    policy_reason: str
    policy_epoch: int
    terms: Terms
    arguments: bytes
    """google.protobuf.Struct, sealed where it is stored."""
    trace_id: str


@dataclass(frozen=True)
class Vote:
    """What one person said."""

    subject: str
    verdict: Verdict
    reason: str
    words: frozenset[str]
    request_id: str
    create_time: datetime


@dataclass(frozen=True)
class ApprovalRow:
    """An approval. `votes` are those that count."""

    approval: str
    sequence: int
    state: State
    org: str
    action: ExactAction
    digest: bytes
    action_digest: bytes
    policy_ids: tuple[str, ...]
    policy_reason: str
    policy_epoch: int
    rules: tuple[Rule, ...]
    arguments: bytes
    create_time: datetime
    expire_time: datetime
    end_time: datetime | None
    used_by_attempt: int | None
    is_late: bool
    """Whether its time had gone by when it was read."""
    age_s: float
    """Seconds since it was asked for, when it was read."""
    votes: tuple[Vote, ...] = ()

    @property
    def name(self) -> str:
        """`approvals/{approval}`."""
        return names.approval_name(self.approval)

    @property
    def requester(self) -> str:
        """On whose behalf it is asked."""
        return self.action.subject

    @property
    def denial(self) -> Vote | None:
        """The first that said no."""
        return next((vote for vote in self.votes if vote.verdict is Verdict.DENY), None)

    @property
    def is_met(self) -> bool:
        """Whether enough people approved, by every rule."""
        voices = [vote.words for vote in self.votes if vote.verdict is Verdict.APPROVE]
        return all(rule.is_met(voices) for rule in self.rules)


def rules_text(rules: Sequence[Rule]) -> str:
    """Rules as a column holds them."""
    return json.dumps([dataclasses.asdict(rule) for rule in rules])


def row_of(row: asyncpg.Record, votes: Iterable[Vote] = ()) -> ApprovalRow:
    """A row with its votes."""
    action = ExactAction(
        claim=names.claim_name(str(row["claim"])),
        subject=row["requester"],
        **{name: row[name] for name in _ACTION_FIELDS},
    )
    rules = tuple(Rule(tuple(r["approvers"]), r["quorum"]) for r in json.loads(row["rules"]))
    return ApprovalRow(
        approval=str(row["approval"]),
        state=State(row["state"]),
        action=action,
        policy_ids=tuple(row["policy_ids"]),
        rules=rules,
        arguments=row["arguments"] or b"",
        votes=tuple(votes),
        **{name: row[name] for name in _PLAIN},
    )


_ACTION_FIELDS: Final = tuple(
    name for name in ExactAction.__dataclass_fields__ if name not in {"claim", "subject"}
)
_PLAIN: Final = (
    "sequence",
    "org",
    "digest",
    "action_digest",
    "policy_reason",
    "policy_epoch",
    "create_time",
    "expire_time",
    "end_time",
    "used_by_attempt",
    "is_late",
    "age_s",
)


def vote_of(row: asyncpg.Record) -> Vote:
    """A vote."""
    return Vote(
        subject=row["subject"],
        verdict=Verdict(row["verdict"]),
        reason=row["reason"],
        words=frozenset(row["words"]),
        request_id=row["request_id"],
        create_time=row["create_time"],
    )


def to_message(row: ApprovalRow, *, with_arguments: bool = False) -> approval_pb2.Approval:
    """An approval as the contract shows it."""
    shared: dict[str, Any] = {
        name: getattr(row.action, name) for name in (*_ACTION_FIELDS, "claim")
    }
    return approval_pb2.Approval(
        name=row.name,
        state=state_of(row.state),
        requester=row.requester,
        arguments=(
            struct_pb2.Struct.FromString(row.arguments)
            if with_arguments and row.arguments
            else None
        ),
        policy_ids=row.policy_ids,
        policy_reason=row.policy_reason,
        policy_epoch=row.policy_epoch,
        digest=row.digest,
        rules=[
            approval_pb2.ApprovalRule(approvers=r.approvers, quorum=r.quorum) for r in row.rules
        ],
        votes=[_vote(vote) for vote in row.votes],
        create_time=_timestamp(row.create_time),
        expire_time=_timestamp(row.expire_time),
        end_time=_timestamp(row.end_time),
        used_by_attempt=row.used_by_attempt or 0,
        sequence=row.sequence,
        **shared,
    )


def state_of(state: State | None) -> approval_pb2.ApprovalState.ValueType:
    """A state as the contract names it; UNSPECIFIED for none."""
    if state is None:
        return approval_pb2.APPROVAL_STATE_UNSPECIFIED
    return approval_pb2.ApprovalState.Value(f"APPROVAL_STATE_{state}")


def _vote(vote: Vote) -> approval_pb2.ApprovalVote:
    return approval_pb2.ApprovalVote(
        subject=vote.subject,
        verdict=approval_pb2.ApprovalVerdict.Value(f"APPROVAL_VERDICT_{vote.verdict}"),
        reason=vote.reason,
        create_time=_timestamp(vote.create_time),
    )


def _timestamp(time: datetime | None) -> timestamp_pb2.Timestamp | None:
    if time is None:
        return None
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(time)
    return stamp
