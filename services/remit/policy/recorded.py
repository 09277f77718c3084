"""Decisions as they are recorded: a question in a form that can be asked again, and its answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from remit.policy.entities import Principal
from remit.policy.rules import Question


@dataclass(frozen=True)
class Recorded:
    """A decision that was made, as it was read; its question is parsed when it is looked at."""

    decision_id: str
    stated: bytes
    """The question without its time, as `question_json` writes it."""
    time: datetime
    """When it was made."""
    allowed: bool
    policy_ids: tuple[str, ...]
    epoch: int

    @cached_property
    def question(self) -> Question:
        """What was asked, with its time."""
        return question_of(self.stated, self.time)


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
