"""What claims, ledger and log say of the effects of a run, joined by claim and attempt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from google.protobuf import timestamp_pb2

from remit import names
from remit.agent import telling
from remit.api.agent.v1 import explanation_pb2
from remit.api.audit.v1 import audit_query_service_pb2, event_pb2
from remit.api.cost.v1 import cost_report_service_pb2
from remit.api.effects.v1 import attempt_pb2

LoggedEvent = audit_query_service_pb2.LoggedEvent
Record = cost_report_service_pb2.ReservationRecord
Attempt = attempt_pb2.Attempt
Explained = explanation_pb2.ExplainedAttempt
Place = tuple[str, int]
"""Claim and attempt."""
_NEVER_STARTED: Final = frozenset(
    {Attempt.STATE_UNSPECIFIED, Attempt.STATE_UNKNOWN, Attempt.STATE_CLAIMED, Attempt.STATE_REFUSED}
)
_NOT_DONE: Final = frozenset({event_pb2.OUTCOME_UNSPECIFIED, event_pb2.OUTCOME_REFUSED})


@dataclass(frozen=True)
class EffectRecords:
    """What the parts around a run say of its effects; None where one was away."""

    logged: Sequence[LoggedEvent] = ()
    """Events of the log, oldest first."""
    ledger: Sequence[Record] | None = ()
    claims: Mapping[str, Sequence[Attempt]] = field(default_factory=dict)
    """By the service that made them."""

    @property
    def places(self) -> set[Place]:
        """The attempts that log and ledger name."""
        logged = {_place_of(each.event) for each in self.logged if each.event.claim}
        return logged | {(each.key.claim, each.key.attempt) for each in self.ledger or ()}


@dataclass(frozen=True)
class Effects:
    """The effects of a run."""

    by_claim: dict[str, list[Explained]]
    """Its attempts, in order, of each claim; claims in the order of their first records."""
    resources: dict[str, str]
    times: dict[str, timestamp_pb2.Timestamp]
    """The first time that anybody says of each claim."""
    others: list[LoggedEvent]
    """Events of the log that are of no effect, or of one that has such an event already."""
    has_ledger: bool


@dataclass
class _Facts:
    """Of one attempt."""

    intent: LoggedEvent | None = None
    decided: list[LoggedEvent] = field(default_factory=list)
    """Policy's own entries of its decision."""
    outcomes: list[LoggedEvent] = field(default_factory=list)
    record: Record | None = None
    attempt: Attempt | None = None
    service: str = ""


def effects_of(records: EffectRecords) -> Effects:
    """Joins the records."""
    facts: dict[Place, _Facts] = {}
    others = [logged for logged in records.logged if not _taken(facts, logged)]
    for record in records.ledger or ():
        _at(facts, (record.key.claim, record.key.attempt)).record = record
    for service, attempts in records.claims.items():
        for attempt in attempts:
            if attempt.state != Attempt.STATE_UNKNOWN:
                found = _at(facts, (attempt.key.claim, attempt.key.attempt))
                found.attempt, found.service = attempt, service
    by_claim: dict[str, list[Explained]] = {}
    for place in _in_order(facts):
        by_claim.setdefault(place[0], []).append(_explained(place, facts[place]))
    return Effects(
        by_claim=by_claim,
        resources=_resources(facts),
        times=_times(facts),
        others=others,
        has_ledger=records.ledger is not None,
    )


def detail_of(logged: LoggedEvent) -> dict[str, object]:
    """An event's detail; empty where it has none, or its subject was erased."""
    try:
        detail = json.loads(logged.event.detail_json or "{}")
    except ValueError:
        return {}
    return detail if isinstance(detail, dict) else {}


def _at(facts: dict[Place, _Facts], place: Place) -> _Facts:
    return facts.setdefault(place, _Facts())


def _place_of(event: event_pb2.Event) -> Place:
    return event.claim, event.attempt


def _taken(facts: dict[Place, _Facts], logged: LoggedEvent) -> bool:
    """Whether an event is an intent or outcome of an effect; the facts then hold it."""
    event = logged.event
    if event.kind == event_pb2.EVENT_KIND_ACCESS:
        return _is_decision(facts, logged)
    if not event.claim:
        return False
    if event.kind == event_pb2.EVENT_KIND_OUTCOME:
        _at(facts, _place_of(event)).outcomes.append(logged)
        return True
    found = _at(facts, _place_of(event))
    if event.kind != event_pb2.EVENT_KIND_INTENT or found.intent is not None:
        return False
    found.intent = logged
    return True


def _is_decision(facts: dict[Place, _Facts], logged: LoggedEvent) -> bool:
    """Whether an entry of policy decides about effects, which its detail names."""
    named = _texts(detail_of(logged), "effects")
    places = {place for name in named if (place := _effect(name))}
    for place in places:
        _at(facts, place).decided.append(logged)
    return bool(places)


def _effect(name: str) -> Place | None:
    """The attempt of a name as `claims/{claim}-{attempt}`."""
    claim, _, attempt = name.rpartition("-")
    if names.is_name("claim", claim) and attempt.isascii() and attempt.isdecimal():
        return claim, int(attempt)
    return None


def _texts(detail: Mapping[str, object], field: str) -> list[str]:
    found = detail.get(field)
    return [str(each) for each in found] if isinstance(found, list) else []


def _in_order(facts: Mapping[Place, _Facts]) -> Iterable[Place]:
    """Claims in the order in which they first appear, attempts by number."""
    ranks: dict[str, int] = {}
    for claim, _ in facts:
        ranks.setdefault(claim, len(ranks))
    return sorted(facts, key=lambda place: (ranks[place[0]], place[1]))


def _explained(place: Place, facts: _Facts) -> Explained:
    attempt, record = facts.attempt, facts.record
    explained = Explained(
        key=attempt_pb2.AttemptKey(claim=place[0], attempt=place[1]),
        service=facts.service or (record.service if record else ""),
        state=attempt.state if attempt else Attempt.STATE_UNSPECIFIED,
        outcome=_outcome(facts),
        reservation=record.reservation if record else None,
        price_source=record.price_source if record else "",
        intent=_leaf(facts.intent) if facts.intent else None,
        outcomes=[_leaf(each) for each in facts.outcomes],
        trace_id=_trace_id(facts),
    )
    if attempt is not None and attempt.HasField("used"):
        explained.used.CopyFrom(attempt.used)
    elif record is not None and record.HasField("used"):
        explained.used.CopyFrom(record.used)
    explained.decision.CopyFrom(_decision(facts, explained))
    explained.text = telling.attempt(explained)
    return explained


def _outcome(facts: _Facts) -> event_pb2.Outcome.ValueType:
    if facts.attempt is not None:
        return facts.attempt.outcome
    return facts.outcomes[-1].event.outcome if facts.outcomes else event_pb2.OUTCOME_UNSPECIFIED


def _leaf(logged: LoggedEvent) -> explanation_pb2.ExplainedLeaf:
    return explanation_pb2.ExplainedLeaf(
        leaf_index=logged.leaf_index,
        event_time=logged.event.event_time,
        outcome=logged.event.outcome,
    )


def _decision(facts: _Facts, explained: Explained) -> explanation_pb2.ExplainedDecision:
    detail = detail_of(facts.outcomes[-1]) if facts.outcomes else {}
    name = facts.attempt.decision if facts.attempt else ""
    decided = detail_of(facts.decided[0]) if facts.decided else {}
    epoch = decided.get("policy_epoch")
    refused = explained.outcome == event_pb2.OUTCOME_REFUSED
    return explanation_pb2.ExplainedDecision(
        name=name or str(detail.get("decision", "")),
        allowed=explained.state not in _NEVER_STARTED or explained.outcome not in _NOT_DONE,
        reason=telling.refusal(detail) if refused else "",
        policy_ids=_texts(decided, "policy_ids"),
        policy_epoch=epoch if isinstance(epoch, int) else 0,
        leaf_indices=[each.leaf_index for each in facts.decided],
    )


def _trace_id(facts: _Facts) -> str:
    logged = [*([facts.intent] if facts.intent else []), *facts.outcomes]
    return next((each.event.trace_id for each in logged if each.event.trace_id), "")


def _resources(facts: Mapping[Place, _Facts]) -> dict[str, str]:
    found: dict[str, str] = {}
    for place in _in_order(facts):
        each = facts[place]
        stated = [
            each.intent.event.resource if each.intent else "",
            each.attempt.resource if each.attempt else "",
            each.record.reservation.item if each.record else "",
            *(outcome.event.resource for outcome in each.outcomes),
            *(decided.event.resource for decided in each.decided),
        ]
        resource = next(filter(None, stated), "")
        if resource:
            found.setdefault(place[0], resource)
    return found


def _times(facts: Mapping[Place, _Facts]) -> dict[str, timestamp_pb2.Timestamp]:
    found: dict[str, timestamp_pb2.Timestamp] = {}
    for place in _in_order(facts):
        time = _time(facts[place])
        if time is not None:
            found.setdefault(place[0], time)
    return found


def _time(facts: _Facts) -> timestamp_pb2.Timestamp | None:
    if facts.attempt is not None:
        return facts.attempt.create_time
    if facts.intent is not None:
        return facts.intent.event.event_time
    if facts.record is not None:
        return facts.record.reservation.create_time
    logged = [*facts.outcomes, *facts.decided]
    return logged[0].event.event_time if logged else None
