"""Whether the log is complete: plain rules over one attempt of an effect, no I/O.

The promise (DESIGN 5): an intent is in the log before its effect starts, an outcome after it ends.
Each rule rests on the order in which the stores are written: a claim before its intent, the intent
before the start, the start before money is posted, the end before its outcome, the outcome before
the claim is closed, and all of it before a run's journal has the result. So what two looks, one
after the other, both find is no matter of timing; only the rules of lag ask for ages, which one
clock measured (ADR 29 for the ledger, ADR 34 for the log).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from remit.api.audit.v1 import log_difference_pb2

IN_DOUBT: Final = "IN_DOUBT"
_OPEN: Final = frozenset({"CLAIMED", "STARTED"})
_STARTED: Final = frozenset({"STARTED", "DONE", "CLOSED", "IN_DOUBT"})


class Kind(IntEnum):
    """What differs. The numbers are the contract's."""

    INTENT_MISSING = log_difference_pb2.LogDifference.KIND_INTENT_MISSING
    INTENT_ELSEWHERE = log_difference_pb2.LogDifference.KIND_INTENT_ELSEWHERE
    OUTCOME_MISSING = log_difference_pb2.LogDifference.KIND_OUTCOME_MISSING
    OUTCOME_DIFFERS = log_difference_pb2.LogDifference.KIND_OUTCOME_DIFFERS
    OUTCOME_OVERDUE = log_difference_pb2.LogDifference.KIND_OUTCOME_OVERDUE
    OPEN_TOO_LONG = log_difference_pb2.LogDifference.KIND_OPEN_TOO_LONG
    OUTCOME_WHILE_OPEN = log_difference_pb2.LogDifference.KIND_OUTCOME_WHILE_OPEN
    ATTEMPT_MISSING = log_difference_pb2.LogDifference.KIND_ATTEMPT_MISSING
    OWNER_DIFFERS = log_difference_pb2.LogDifference.KIND_OWNER_DIFFERS
    PAID_WITHOUT_INTENT = log_difference_pb2.LogDifference.KIND_PAID_WITHOUT_INTENT
    JOURNAL_WITHOUT_INTENT = log_difference_pb2.LogDifference.KIND_JOURNAL_WITHOUT_INTENT
    JOURNAL_WITHOUT_CLAIM = log_difference_pb2.LogDifference.KIND_JOURNAL_WITHOUT_CLAIM


_RESTORED: Final = (
    "A database was restored to an earlier moment, or a row deleted by hand: find which and when;"
    " an export and a checkpoint kept outside say what the log had."
)
_BY_HAND: Final = (
    "No code path writes this: find who changed a row by hand, and verify an export of the log"
    " against a checkpoint kept outside before you believe either side."
)
_SWEEPER: Final = (
    "Look at the enforcement service: `remit_closings_delayed_total` and its log say why its"
    " sweeper does not record it. It records it once it can."
)
NEXT_STEPS: Final[Mapping[Kind, str]] = MappingProxyType(
    {
        Kind.INTENT_MISSING: _RESTORED,
        Kind.INTENT_ELSEWHERE: _RESTORED,
        Kind.OUTCOME_MISSING: _RESTORED,
        Kind.OUTCOME_DIFFERS: _BY_HAND,
        Kind.OUTCOME_OVERDUE: _SWEEPER,
        Kind.OPEN_TOO_LONG: "Its owner lives and renews its lease: cancel its run, or restart the"
        " replica that performs it.",
        Kind.OUTCOME_WHILE_OPEN: _RESTORED,
        Kind.ATTEMPT_MISSING: _RESTORED,
        Kind.OWNER_DIFFERS: _BY_HAND,
        Kind.PAID_WITHOUT_INTENT: _RESTORED,
        Kind.JOURNAL_WITHOUT_INTENT: _RESTORED,
        Kind.JOURNAL_WITHOUT_CLAIM: _RESTORED,
    }
)
"""What to do about each."""


class Key(NamedTuple):
    """Names an attempt: the claim's name and its number."""

    claim: str
    attempt: int


@dataclass(slots=True)
class Recorded:
    """What the log has of an attempt."""

    org: str
    """Empty where all of it is of dropped months: only the ids of its events are left then."""
    run: str
    began: datetime
    """When the log took the first of it."""
    intents: list[int] = field(default_factory=list)
    outcomes: list[tuple[int, str]] = field(default_factory=list)
    """Leaf and outcome."""

    @property
    def leaf_index(self) -> int:
        """The first leaf of it."""
        return min([*self.intents, *(leaf for leaf, _ in self.outcomes)])


@dataclass(frozen=True, slots=True)
class Attempt:
    """What an enforcement service says of an attempt; ages by its own database's clock."""

    service: str
    org: str
    run: str
    state: str
    outcome: str
    """Empty while it is open."""
    intent_leaf: int | None
    """Of its intent, as the claim has it; None if it never started."""
    began: datetime
    age_s: float
    lapsed_s: float | None
    """How long its owner has been gone; None while the lease holds, and once it has ended."""
    ended_s: float | None
    is_closed: bool
    closing_bound_s: float
    """After which its service has closed what ended."""


@dataclass(frozen=True, slots=True)
class Paid:
    """What the ledger says of an attempt."""

    service: str
    org: str
    posted_nanos: int
    began: datetime


@dataclass(frozen=True, slots=True)
class Call:
    """A call whose end a run's journal records."""

    run: str
    sequence: int
    org: str
    service: str
    claim: str
    intent_leaf: int | None
    began: datetime


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the log and what happened part, and what that means."""

    kind: Kind
    org: str
    claim: str
    attempt: int
    service: str
    leaf_index: int | None
    run: str
    explanation: str


@dataclass(frozen=True, slots=True)
class Sight:
    """What each store says of one attempt."""

    key: Key
    recorded: Recorded | None
    attempt: Attempt | None
    paid: Paid | None

    @property
    def began(self) -> datetime:
        """The first time that any of them says."""
        return min(each.began for each in (self.recorded, self.attempt, self.paid) if each)

    def difference(self, kind: Kind, text: str, leaf_index: int | None = None) -> Difference:
        """A difference of this attempt."""
        sides = [each for each in (self.attempt, self.recorded, self.paid) if each]
        service = next((each.service for each in (self.attempt, self.paid) if each), "")
        run = next((each.run for each in (self.attempt, self.recorded) if each), "")
        return Difference(kind, sides[0].org, *self.key, service, leaf_index, run, text)


def difference(sight: Sight, *, open_limit_s: float) -> Difference | None:
    """How the stores differ about one attempt; the gravest way, or None.

    `open_limit_s`: longer than any effect lasts.
    """
    if sight.attempt is None:
        return _without_attempt(sight)
    for found in (_intent(sight, sight.attempt), _owner(sight, sight.attempt)):
        if found is not None:
            return found
    if sight.attempt.state in _OPEN:
        return _open(sight, sight.attempt, open_limit_s)
    return _ended(sight, sight.attempt)


def call_difference(call: Call, intent_of: Key | None, *, is_known: bool) -> Difference | None:
    """How a run's journal differs from log and claims.

    `intent_of`: whose intent the leaf is that the call names; None if it is none. `is_known`:
    whether its service knows the attempt.
    """
    where = f"event {call.sequence} of {call.run} records a call of {call.claim}"
    if call.intent_leaf is not None and (intent_of is None or intent_of.claim != call.claim):
        found = f"the intent of {intent_of.claim}" if intent_of else "no intent"
        text = f"{where} with leaf {call.intent_leaf}, where the log has {found}"
        return _of_call(Kind.JOURNAL_WITHOUT_INTENT, call, intent_of, text)
    if not is_known:
        text = f"{where}, which {call.service} does not know"
        return _of_call(Kind.JOURNAL_WITHOUT_CLAIM, call, intent_of, text)
    return None


# ---------------------------------------------------------------------------------------- rules


def _without_attempt(sight: Sight) -> Difference | None:
    if sight.recorded is not None:
        leaf = sight.recorded.leaf_index
        text = f"the log has it from leaf {leaf} on, and no enforcement service knows it"
        return sight.difference(Kind.ATTEMPT_MISSING, text, leaf)
    if sight.paid is not None and sight.paid.posted_nanos:
        return _paid(sight, sight.paid)
    return None  # a hold without a claim is the ledger's to explain


def _paid(sight: Sight, paid: Paid) -> Difference:
    text = f"{paid.posted_nanos} nano-USD are posted, and the log has no intent of it"
    return sight.difference(Kind.PAID_WITHOUT_INTENT, text)


def _intent(sight: Sight, attempt: Attempt) -> Difference | None:
    intents = sight.recorded.intents if sight.recorded else []
    leaf = attempt.intent_leaf
    if not intents and (leaf is not None or attempt.state in _STARTED):
        stated = f" at leaf {leaf}" if leaf is not None else ""
        text = f"{attempt.service} says {attempt.state}{stated}, and the log has no intent of it"
        return sight.difference(Kind.INTENT_MISSING, text, leaf)
    if leaf is not None and leaf not in intents:
        text = f"its claim names leaf {leaf} as its intent, and the log has it at {intents[0]}"
        return sight.difference(Kind.INTENT_ELSEWHERE, text, intents[0])
    if not intents and sight.paid is not None and sight.paid.posted_nanos:
        return _paid(sight, sight.paid)
    return None


def _owner(sight: Sight, attempt: Attempt) -> Difference | None:
    logged = sight.recorded
    if logged is None or not logged.org or (logged.org, logged.run) == (attempt.org, attempt.run):
        return None
    text = (
        f"the log has it for {logged.org} and {logged.run or 'no run'}, its claim for"
        f" {attempt.org} and {attempt.run or 'no run'}"
    )
    return sight.difference(Kind.OWNER_DIFFERS, text, logged.leaf_index)


def _open(sight: Sight, attempt: Attempt, open_limit_s: float) -> Difference | None:
    outcomes = sight.recorded.outcomes if sight.recorded else []
    leaf = sight.recorded.leaf_index if sight.recorded else None
    if outcomes:
        index, outcome = outcomes[0]
        text = f"the log says {outcome} at leaf {index}, and its claim is {attempt.state}"
        return sight.difference(Kind.OUTCOME_WHILE_OPEN, text, index)
    bound = f"the bound is {attempt.closing_bound_s:.0f} s"
    if attempt.lapsed_s is not None and attempt.lapsed_s > attempt.closing_bound_s:
        text = f"its owner is gone for {attempt.lapsed_s:.0f} s, and it has no outcome; {bound}"
        return sight.difference(Kind.OUTCOME_OVERDUE, text, leaf)
    if attempt.age_s > open_limit_s:
        text = f"it is {attempt.state} for {attempt.age_s:.0f} s, and it has no outcome"
        return sight.difference(Kind.OPEN_TOO_LONG, text, leaf)
    return None


def _ended(sight: Sight, attempt: Attempt) -> Difference | None:
    outcomes = sight.recorded.outcomes if sight.recorded else []
    told = {outcome for _, outcome in outcomes}
    # A doubt that a late result resolved has both.
    others = [(leaf, o) for leaf, o in outcomes if o not in {attempt.outcome, IN_DOUBT}]
    if others:
        leaf, outcome = others[0]
        text = f"the log says {outcome} at leaf {leaf}, its claim {attempt.outcome}"
        return sight.difference(Kind.OUTCOME_DIFFERS, text, leaf)
    if attempt.outcome in told:
        return None
    intent = sight.recorded.leaf_index if sight.recorded else None
    if attempt.is_closed:
        text = f"its claim is closed as {attempt.outcome}, and the log has no such outcome"
        return sight.difference(Kind.OUTCOME_MISSING, text, intent)
    if attempt.ended_s is not None and attempt.ended_s > attempt.closing_bound_s:
        text = (
            f"it ended {attempt.ended_s:.0f} s ago as {attempt.outcome}, and has no outcome in the"
            f" log; the bound is {attempt.closing_bound_s:.0f} s"
        )
        return sight.difference(Kind.OUTCOME_OVERDUE, text, intent)
    return None


def _of_call(kind: Kind, call: Call, intent_of: Key | None, text: str) -> Difference:
    attempt = intent_of.attempt if intent_of and intent_of.claim == call.claim else 0
    return Difference(
        kind, call.org, call.claim, attempt, call.service, call.intent_leaf, call.run, text
    )
