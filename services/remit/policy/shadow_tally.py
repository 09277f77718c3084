"""What a candidate would have decided otherwise, counted; plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from remit.policy.rules import Decision

MOST_CHANGES: Final = 100
"""Kinds of changes that are listed; more are counted alone."""
_MOST_IDS: Final = 4
"""Of the policies that decide one side, those that an example names."""
_MOST_REASON_CHARS: Final = 400
_UNDECIDED: Final = "no policy decides it"


class Kind(StrEnum):
    """What a decision comes to."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    APPROVAL_REQUIRED = "APPROVAL_REQUIRED"


class Outcome(StrEnum):
    """How a candidate compares on one decision."""

    AGREED = "AGREED"
    NEWLY_DENIED = "NEWLY_DENIED"
    NEWLY_ALLOWED = "NEWLY_ALLOWED"
    NEWLY_ASKED = "NEWLY_ASKED"
    FAILED = "FAILED"
    DROPPED = "DROPPED"


_NEWLY: Final = {
    Kind.ALLOW: Outcome.NEWLY_ALLOWED,
    Kind.DENY: Outcome.NEWLY_DENIED,
    Kind.APPROVAL_REQUIRED: Outcome.NEWLY_ASKED,
}


@dataclass(frozen=True)
class ChangeKey:
    """Changes that are one."""

    action: str
    policy_id: str
    """The first rule that makes the difference; empty if none decided on either side."""
    before: Kind
    after: Kind


@dataclass(frozen=True)
class Example:
    """A decision that stands for those alike."""

    decision_id: str
    decision_time: datetime
    resource: str
    policy_ids_before: tuple[str, ...]
    policy_ids_after: tuple[str, ...]
    reason: str


@dataclass
class Tally:
    """What was counted since it was stored last; bounded, whatever is decided meanwhile."""

    outcomes: dict[Outcome, int] = field(default_factory=dict)
    changes: dict[ChangeKey, tuple[int, Example]] = field(default_factory=dict)
    unlisted: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to store."""
        return not self.outcomes

    def count(self, outcome: Outcome, number: int = 1) -> None:
        """Counts decisions alike."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + number

    def differs(self, key: ChangeKey, example: Example, number: int = 1) -> None:
        """Counts decisions that differ under their kind, if there is room for the kind."""
        known = self.changes.get(key)
        if known is None and len(self.changes) >= MOST_CHANGES:
            self.unlisted += number
            return
        self.changes[key] = ((known[0] if known else 0) + number, example)

    def take(self, other: Tally) -> None:
        """Count what another counted too."""
        for outcome, number in other.outcomes.items():
            self.count(outcome, number)
        for key, (number, example) in other.changes.items():
            self.differs(key, example, number)
        self.unlisted += other.unlisted

    def unlist(self) -> None:
        """Keep the counts alone: what is listed could not be stored."""
        self.unlisted += sum(count for count, _ in self.changes.values())
        self.changes.clear()


def kind_of(decision: Decision) -> Kind:
    """What a decision comes to for who asked."""
    if decision.allow:
        return Kind.ALLOW
    return Kind.APPROVAL_REQUIRED if decision.approval is not None else Kind.DENY


def compared(before: Decision, after: Decision) -> Outcome:
    """How a candidate's decision compares; one that it could not make is none that it meant."""
    if after.errors:
        return Outcome.FAILED
    return Outcome.AGREED if kind_of(before) is kind_of(after) else _NEWLY[kind_of(after)]


def example_of(
    name: str, time: datetime, resource: str, before: Decision, after: Decision
) -> Example:
    """A decision as it is told: bounded, and without a word about who asked."""
    return Example(
        name,
        time,
        resource,
        before.policy_ids[:_MOST_IDS],
        after.policy_ids[:_MOST_IDS],
        _reason_of(after)[:_MOST_REASON_CHARS],
    )


def _reason_of(decision: Decision) -> str:
    """Why a candidate decides so. Where no policy does, its words would name who asked."""
    if decision.errors:
        return f"could not be evaluated: {', '.join(decision.failed_policies) or 'all policies'}"
    return decision.reason if decision.policy_ids else _UNDECIDED
