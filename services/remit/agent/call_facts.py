"""Which effect a call was: what stays in clear of an entry that tells of its end.

The log holds the same facts in clear. Without them nobody could compare journals with the log once
a subject was erased.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from remit import names
from remit.api.agent.v1 import run_pb2
from remit.rpc.errors import RemitError

Ended = run_pb2.ModelCallEnded | run_pb2.ToolCallEnded


@dataclass(frozen=True, slots=True)
class CallFacts:
    """The effect of a model or tool call that ended."""

    claim: UUID
    resource: str
    """`models/{model}` or `tools/{tool}`."""
    intent_leaf_index: int | None
    """None where an error does not name it."""


def ended_call(event: run_pb2.RunEvent) -> Ended | None:
    """How a model or tool call ended; None for any other event, and for a sub-run."""
    if event.HasField("model_call_ended"):
        return event.model_call_ended
    if event.HasField("tool_call_ended") and not event.tool_call_ended.run:
        return event.tool_call_ended
    return None


def claim_of(ended: Ended) -> tuple[str, int | None]:
    """The claim of a call and the leaf of its intent: its own, or those that its error names."""
    if ended.claim:
        return ended.claim, ended.intent_leaf_index
    if not ended.HasField("error"):
        return "", None
    metadata = RemitError.from_status(ended.error).metadata
    leaf = metadata.get("intent_leaf_index", "")
    return metadata.get("claim", ""), int(leaf) if leaf.isascii() and leaf.isdecimal() else None


def facts_of(event: run_pb2.RunEvent) -> CallFacts | None:
    """The facts of an event; None for one that tells of no effect."""
    ended = ended_call(event)
    if ended is None:
        return None
    claim, leaf = claim_of(ended)
    if not names.is_name("claim", claim):
        return None
    resource = ended.model if isinstance(ended, run_pb2.ModelCallEnded) else ended.tool
    return CallFacts(UUID(names.parse("claim", claim)[0]), resource, leaf)


def leave_out(event: run_pb2.RunEvent) -> None:
    """Takes from an event what its facts say; `put_back` gives it again."""
    ended = ended_call(event)
    if ended is None or ended.HasField("error") or not names.is_name("claim", ended.claim):
        return
    for field in ("claim", "intent_leaf_index", _resource_field(ended)):
        ended.ClearField(field)  # type: ignore[arg-type]


def put_back(event: run_pb2.RunEvent, facts: CallFacts) -> None:
    """Gives an event what was left out of it."""
    ended = ended_call(event)
    if ended is None or ended.HasField("error"):
        return
    ended.claim = names.claim_name(str(facts.claim))
    ended.intent_leaf_index = facts.intent_leaf_index or 0
    setattr(ended, _resource_field(ended), facts.resource)


def _resource_field(ended: Ended) -> str:
    return "model" if isinstance(ended, run_pb2.ModelCallEnded) else "tool"
