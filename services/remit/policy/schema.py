"""The Cedar schema: the shipped types, and one action for every permission of the contracts.

Generated, so that an RPC whose permission no schema knows cannot exist: an unknown action would be
denied for ever, and a policy that names a misspelt one is refused at load.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from remit.rpc.contracts import permissions

SHIPPED_POLICIES: Final = Path(__file__).parent / "policies"
SCHEMA_FILE: Final = SHIPPED_POLICIES / "schema.cedarschema"
RUN_AGENT: Final = "agents.run"
"""Starting a run under an agent: asked by IssueRemit, not by the edge, so no RPC names it."""
APPLY_GUARDRAILS: Final = "guardrails.apply"
"""What `@guardrails` is said on: asked with each remit that is issued, and permits nothing."""

_ORG: Final = "Org"
# Besides the org itself, what an action of each noun may be about.
_RESOURCES: Final = {
    "agents": ("Agent",),
    "approvals": ("Approval",),
    "audit": ("User",),
    "budgets": ("Team", "User"),
    "conversations": ("Conversation",),
    "guardrails": ("Agent",),
    "keys": ("ApiKey", "User", "Team"),
    "limits": ("ApiKey", "User"),
    "models": ("Model",),
    "principals": ("User",),
    "runs": ("Run", "Agent"),
    "spend": ("Team", "User"),
    "tools": ("Tool",),
}


def actions() -> tuple[str, ...]:
    """Every policy action: those of the contracts, `agents.run` and `guardrails.apply`."""
    return tuple(sorted({*permissions(), RUN_AGENT, APPLY_GUARDRAILS}))


def schema_text() -> str:
    """The whole schema in Cedar's own syntax."""
    return SCHEMA_FILE.read_text(encoding="utf-8") + "\n" + _declarations(actions())


def _declarations(names: Iterable[str]) -> str:
    """Declare each action in the group of its noun, so that a policy may say `action in runs`."""
    ordered = sorted(names)
    groups = sorted({_noun(name) for name in ordered})
    lines = [f'action "{group}";' for group in groups]
    lines += [_declaration(name) for name in ordered]
    return "\n".join(lines) + "\n"


def _declaration(name: str) -> str:
    resources = ", ".join((_ORG, *_RESOURCES.get(_noun(name), ())))
    return (
        f'action "{name}" in ["{_noun(name)}"] appliesTo '
        f"{{ principal: [User], resource: [{resources}], context: Circumstances }};"
    )


def _noun(name: str) -> str:
    return name.partition(".")[0]
