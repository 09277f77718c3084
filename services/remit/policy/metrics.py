"""What operators watch of policy: decisions by what was asked, and calls at the edge.

A question that the rules could not decide is denied, and yet it is no DENY: nobody meant it. It is
counted apart and logged, wherever it was asked.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import Counter, Gauge

from remit import names, telemetry
from remit.policy.rules import Decision
from remit.rpc.errors import RemitError

DECISIONS: Final = Counter(
    "remit_policy_decisions_total",
    "Decisions about effects, by kind of resource (model, tool, other) and decision: ALLOW, DENY,"
    " APPROVAL_REQUIRED where people decide, UNDECIDED where a policy failed, or the reason why"
    " nothing was asked. UNDECIDED counts questions of runs and of the edge too.",
    ["kind", "decision"],
)
EDGE: Final = Counter(
    "remit_edge_authorizations_total",
    "Client calls that the edge asked about, by result: ADMITTED or the reason of the refusal.",
    ["result"],
)
DECISIONS_RECORDED: Final = Counter(
    "remit_policy_decisions_recorded_total",
    "Decisions that were stored, so that candidate policies can be tried on them.",
)
DECISIONS_DROPPED: Final = Counter(
    "remit_policy_decisions_dropped_total",
    "Decisions that were made and not stored, by reason: QUEUE_FULL, INTERNAL for one that no table"
    " takes, or what kept the batch from being stored. A decision never waits for its record.",
    ["reason"],
)
SHADOWED: Final = Counter(
    "remit_policy_shadow_decisions_total",
    "Decisions that a candidate in shadow was to see, by outcome: AGREED, NEWLY_DENIED,"
    " NEWLY_ALLOWED, NEWLY_ASKED where it would have asked people, FAILED where a policy of it did,"
    " DROPPED where there were too many at once.",
    ["outcome"],
)
EPOCH: Final = Gauge(
    "remit_policy_epoch",
    "The policy epoch that this replica last loaded: replicas that differ for longer than the look"
    " for new ones have lost their database.",
)
LIMITED: Final = Counter(
    "remit_policy_rate_limit_checks_total",
    "Client calls that count against rate limits, by result: ADMITTED, the kind of limit that"
    " refused (user, api_key, org), UNCOUNTED where the store was away and calls pass all the same,"
    " or the reason why nothing was counted.",
    ["result"],
)
ADMITTED: Final = "ADMITTED"
UNCOUNTED: Final = "UNCOUNTED"
_KINDS: Final = ("model", "tool")

log = telemetry.logger(__name__)


def count_decision(resource: str, decision: str) -> None:
    """Counts a decision. What was asked for is counted by its kind alone: it is the caller's."""
    kind = next((kind for kind in _KINDS if names.is_name(kind, resource)), "other")
    _decisions(kind, decision).inc()


@contextlib.contextmanager
def unasked_counted(resources: Iterable[str]) -> Iterator[None]:
    """Counts a decision for each of these with the error that the body raises."""
    try:
        yield
    except RemitError as error:
        for resource in resources:
            count_decision(resource, error.reason_name)
        raise


def note_undecided(answer: Decision, action: str, resource: str, **facts: object) -> None:
    """Counts and logs a question that the rules could not decide; says nothing of any other.

    The log names the policies that failed. What they failed with may quote arguments.
    """
    if answer.errors:
        count_decision(resource, "UNDECIDED")
        failed = list(answer.failed_policies)
        log.error("decision_failed", action=action, policies=failed, epoch=answer.epoch, **facts)


def count_edge(error: RemitError | None = None) -> None:
    """Counts a call that the edge let in, or refused with an error."""
    _edge(ADMITTED if error is None else error.reason_name).inc()


def count_limited(result: str) -> None:
    """Counts a call that was, or was not, counted against rate limits."""
    _limited(result).inc()


@functools.cache
def _decisions(kind: str, decision: str) -> Counter:
    return DECISIONS.labels(kind, decision)


@functools.cache
def _edge(result: str) -> Counter:
    return EDGE.labels(result)


@functools.cache
def _limited(result: str) -> Counter:
    return LIMITED.labels(result)
