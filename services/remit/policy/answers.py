"""Decisions that one rule book has made, kept for questions that are alike. Pure.

A book is of one epoch and is replaced as a whole by the next, so what it keeps ends with the epoch.
Questions are alike if they agree in all that some policy for them could look at: which run it is
and what the digest of the arguments is seldom matters. Where a policy looks at the time, and where
grants could decide, which end, nothing is kept. What is kept is what the policies say; a run's
fence, a revoked key and an approval are looked at each time, before and after.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

from remit.policy.entities import Principal

if TYPE_CHECKING:
    from remit.policy.rules import Decision, Question

MOST: Final = 8_192
"""Decisions kept at most; the one longest unasked goes."""
MAX_CONTEXT_CHARS: Final = 2_000
"""Of a question whose answer is kept, so that all together stay within some tens of megabytes."""

Key: TypeAlias = tuple[Principal, str, str, int, str, str]


def looked_at_of(context: Mapping[str, object], looked_at: frozenset[str]) -> dict[str, object]:
    """The context without what no policy looks at."""
    seen = dict(context)
    if "run" not in looked_at:
        seen.pop("run", None)
    tool_call = seen.get("tool_call")
    if "arguments_digest" not in looked_at and isinstance(tool_call, dict):
        seen["tool_call"] = {**tool_call, "arguments_digest": ""}
    return seen


def key_of(question: Question, looked_at: frozenset[str]) -> Key | None:
    """What questions share that are alike; None for one whose answer may not be kept."""
    if "now" in looked_at:
        return None
    context = looked_at_of(question.context, looked_at)
    try:
        stated = json.dumps(context, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError):
        return None  # no question for Cedar either, which denies it in its own words
    if len(stated) > MAX_CONTEXT_CHARS:
        return None
    return (
        question.principal,
        question.action,
        question.resource,
        question.permission_class,
        question.requester,
        stated,
    )


class Answers:
    """Decisions by what their questions share."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._kept: OrderedDict[Key, Decision] = OrderedDict()

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def get(self, key: Key | None) -> Decision | None:
        """The answer to a question like this one, if there was one."""
        found = self._kept.get(key) if key is not None else None
        if found is not None and key is not None:
            self._kept.move_to_end(key)
        return found

    def keep(self, key: Key | None, decision: Decision) -> Decision:
        """Keep an answer. What could not be evaluated is asked again, and told again."""
        if key is not None and not decision.errors:
            self._kept[key] = decision
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return decision
