"""Decisions as they are recorded: a question in a form that can be asked again, and its answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from remit.policy.answers import looked_at_of
from remit.policy.entities import Principal
from remit.policy.rules import Question


@dataclass(frozen=True)
class Recorded:
    """A decision that was made."""

    decision_id: str
    question: Question
    """With its time."""
    allowed: bool
    policy_ids: tuple[str, ...]
    epoch: int

    @property
    def time(self) -> datetime:
        """When it was made."""
        if self.question.time is None:
            message = "a recorded question has its time"
            raise AssertionError(message)
        return self.question.time


def question_json(question: Question) -> bytes:
    """A question without its time; the same question is the same bytes."""
    who = question.principal
    stated = {
        "who": [who.user, who.org, who.team, *who.roles],
        "action": question.action,
        "resource": question.resource,
        "class": question.permission_class,
        "context": question.context,
    }
    return json.dumps(stated, sort_keys=True, separators=(",", ":")).encode()


def question_of(stated: bytes, time: datetime | None = None) -> Question:
    """Read what `question_json` wrote."""
    parts: dict[str, Any] = json.loads(stated)
    user, org, team, *roles = parts["who"]
    return Question(
        Principal(user, org, team, tuple(roles)),
        parts["action"],
        parts["resource"],
        parts["class"],
        parts["context"],
        time,
    )


def reduced(question: Question, looked_at: frozenset[str]) -> Question:
    """The question without what no policy looks at, so that questions alike are asked once."""
    context = looked_at_of(question.context, looked_at)
    time = question.time if "now" in looked_at else None
    return replace(question, context=context, time=time)
