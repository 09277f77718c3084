"""A preview of policies on the wire: which recorded decisions they would change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from remit.api.policy.v1 import permission_pb2, policy_set_service_pb2
from remit.policy.decision_record import DecisionRecord, Place
from remit.policy.read_log import ReadLog
from remit.policy.replay import Candidate, Change, PoolOf, Step, replay
from remit.policy.rule_sets import RuleSet
from remit.policy.set_messages import timestamp_of
from remit.policy.set_store import SetStore
from remit.rpc.clock import Clock
from remit.rpc.errors import Violation

_Request = policy_set_service_pb2.SimulatePolicyRequest
_Response = policy_set_service_pb2.SimulatePolicyResponse
_DEFAULT: Final = 100_000
_MOST: Final = 1_000_000
_ACTION: Final = "policies.simulate"
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Simulator:
    """Tries candidates on what was recorded."""

    sets: SetStore
    record: DecisionRecord
    reads: ReadLog
    clock: Clock
    pool_of: PoolOf

    async def run(self, rules: RuleSet, request: _Request) -> AsyncIterator[_Response]:
        """Yield what would change, step by step; the last message says that it is the last.

        Raises RemitError before anything is read if the log does not take who reads.
        """
        await self.reads.record(_ACTION, _detail(rules, request))
        await self.record.flush()
        candidate = Candidate(rules.source, (await self.sets.in_force()).grants)
        start = request.start_time.ToDatetime(UTC) if request.HasField("start_time") else _BEGINNING
        place = _place(request) or Place(
            request.end_time.ToDatetime(UTC) if request.HasField("end_time") else self.clock.now(),
            "",
            min(request.max_decisions or _DEFAULT, _MOST),
        )
        sequence = 0
        pages = self.record.read(start, place)
        async for step in replay(pages, candidate, self.pool_of):
            sequence += 1
            yield _step(sequence, step)
        yield _Response(sequence=sequence + 1, done=True)


def _detail(rules: RuleSet, request: _Request) -> dict[str, object]:
    """What was read, as the log tells it: a digest says which policies, not their text."""
    times = {
        name: getattr(request, name).ToJsonString()
        for name in ("start_time", "end_time")
        if request.HasField(name)
    }
    return {
        "digest": rules.source.digest.hex(),
        "max_decisions": min(request.max_decisions or _DEFAULT, _MOST),
        "resumes": bool(request.resume_token),
        **times,
    }


def _place(request: _Request) -> Place | None:
    """Where a preview goes on. Raises ValueError for a token that no preview gave."""
    if not request.resume_token:
        return None
    time, left, name = request.resume_token.split(" ")
    before = datetime.fromisoformat(time)
    if before.tzinfo is None or not 0 <= int(left) <= _MOST or not name.startswith("decisions/"):
        message = "a token has a time with its zone, a number and a decision"
        raise ValueError(message)
    return Place(before, name, int(left))


def violations(request: _Request) -> list[Violation]:
    """What is wrong with the window of a preview."""
    found = []
    if request.max_decisions < 0:
        found.append(Violation("max_decisions", "must not be negative"))
    for name in ("start_time", "end_time"):
        if request.HasField(name):
            try:
                getattr(request, name).ToDatetime(UTC)
            except (ValueError, OverflowError):
                found.append(Violation(name, "is no time between the years 1 and 9999"))
    try:
        _place(request)
    except ValueError:
        found.append(Violation("resume_token", "is not one that a preview came with"))
    return found


def _step(sequence: int, step: Step) -> _Response:
    place = step.place
    return _Response(
        sequence=sequence,
        decisions=step.looked_at,
        questions=step.distinct,
        erased=step.erased,
        newly_denied=step.newly_denied,
        newly_allowed=step.newly_allowed,
        changes=map(_change, step.changes),
        resume_token=f"{place.before.isoformat()} {place.left} {place.name}",
    )


def _change(change: Change) -> policy_set_service_pb2.DecisionChange:
    first, answer = change.first, change.answer
    return policy_set_service_pb2.DecisionChange(
        count=change.count,
        decision_id=first.decision_id,
        decision_time=timestamp_of(first.time),
        subject=first.question.principal.user,
        action=first.question.action,
        resource=first.question.resource,
        before=_decision(allowed=first.allowed),
        policy_ids_before=first.policy_ids,
        after=_decision(allowed=answer.allowed),
        policy_ids_after=answer.policy_ids,
        policy_id=first_difference(first.policy_ids, answer.policy_ids),
        reason=answer.reason,
    )


def first_difference(before: tuple[str, ...], after: tuple[str, ...]) -> str:
    """The first rule that makes the difference; empty if none decided on either side."""
    added = [name for name in after if name not in before]
    removed = [name for name in before if name not in after]
    return next(iter([*added, *removed]), "")


def _decision(*, allowed: bool) -> permission_pb2.Decision.ValueType:
    return permission_pb2.DECISION_ALLOW if allowed else permission_pb2.DECISION_DENY
