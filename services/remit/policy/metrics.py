"""What operators watch of policy: decisions by what was asked, and calls at the edge."""

from __future__ import annotations

import functools
from typing import Final

from prometheus_client import Counter

from remit import names
from remit.rpc.errors import RemitError

DECISIONS: Final = Counter(
    "remit_policy_decisions_total",
    "Decisions about effects, by kind of resource (model, tool, other) and decision: ALLOW, DENY,"
    " or the reason why there was none.",
    ["kind", "decision"],
)
EDGE: Final = Counter(
    "remit_edge_authorizations_total",
    "Client calls that the edge asked about, by result: ADMITTED or the reason of the refusal.",
    ["result"],
)
_KINDS: Final = ("model", "tool")


def count_decision(resource: str, decision: str) -> None:
    """Counts a decision. What was asked for is counted by its kind alone: it is the caller's."""
    kind = next((kind for kind in _KINDS if names.is_name(kind, resource)), "other")
    _decisions(kind, decision).inc()


def count_edge(error: RemitError | None = None) -> None:
    """Counts a call that the edge let in, or refused with an error."""
    _edge("ADMITTED" if error is None else error.reason_name).inc()


@functools.cache
def _decisions(kind: str, decision: str) -> Counter:
    return DECISIONS.labels(kind, decision)


@functools.cache
def _edge(result: str) -> Counter:
    return EDGE.labels(result)
