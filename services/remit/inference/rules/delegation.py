"""Recognises requests to hand a part of the task to another agent.

The agent is named outright: "ask the researcher to ...", "delegate ... to the clerk". What it is
asked for is one clause; a longer task stands in quotation marks.
"""

from __future__ import annotations

import re
from typing import Final

from remit.inference.rules.clauses import unquoted
from remit.inference.rules.jobs import Delegation

_MAX_TASK_CHARS: Final = 10_000
_ID: Final = r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?"
_AGENT: Final = (
    rf"(?:agents/(?P<full>{_ID})|(?:the\s+)?agent\s+(?P<after>{_ID})"
    rf"|the\s+(?P<named>{_ID})(?:\s+agent)?)"
)
_POLITE: Final = r"^(?:please\s+)?(?:can you\s+|could you\s+)?"
_FORMS: Final = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        (
            rf"{_POLITE}(?:ask|tell|have|let|get|instruct)\s+{_AGENT}"
            r"\s*(?::|,|\bto\b)\s*(?P<task>\S.*)$"
        ),
        (
            rf"{_POLITE}ask\s+{_AGENT}\s+"
            r"(?P<task>(?:what|which|when|where|who|how|why|whether|if|for)\b.+)$"
        ),
        rf"{_POLITE}(?:delegate|hand|give|leave)\s+(?P<task>\S.*?)\s+to\s+{_AGENT}$",
    )
)
_NEGATED: Final = re.compile(r"\b(?:don.?t|do not|never)\b", re.IGNORECASE)


def delegation(clause: str) -> Delegation | None:
    """The task that a clause gives to another agent; None if it asks for anything else."""
    if len(clause) > _MAX_TASK_CHARS:
        return None
    text = clause.strip(" ?!.")
    for form in _FORMS:
        match = form.search(text)
        if match is not None and not _NEGATED.search(text[: match.start("task")]):
            agent = match["full"] or match["after"] or match["named"]
            return Delegation(agent.lower(), unquoted(match["task"]))
    return None
