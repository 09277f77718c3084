"""What a failed effect means for its run: try again, tell the model, stop, or end the run.

Retries between services are the gateway's; what is decided here is the run's own policy: a run
outlives an outage, so it waits for what will come back, until its deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from google.rpc import status_pb2

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError


class Verdict(Enum):
    """What happens next."""

    RETRY = auto()
    """The same call under the same key, later."""
    ASK_ONCE_MORE = auto()
    """The outcome is unknown here: the same key tells it; a second time it is final."""
    RENEW_REMIT = auto()
    """The same call with a new remit."""
    TELL_MODEL = auto()
    """The call failed for good; the model is told and may go on."""
    IN_DOUBT = auto()
    """Whether it happened is unknown to everybody; the definition says what then."""
    AWAIT_APPROVAL = auto()
    """People must approve it first: the run waits for them without a worker."""
    STOP = auto()
    """Another worker owns the run, or its subject was erased: write nothing, ask for nothing."""
    FAIL = auto()
    """The run ends with this error."""


_ALWAYS: Final = {
    reasons.ERROR_REASON_FENCED: Verdict.STOP,
    # The run cannot go on, and nothing of it may be written as if it could.
    reasons.ERROR_REASON_SUBJECT_ERASED: Verdict.STOP,
    reasons.ERROR_REASON_APPROVAL_REQUIRED: Verdict.AWAIT_APPROVAL,
    reasons.ERROR_REASON_REMIT_INVALID: Verdict.RENEW_REMIT,
    # Nobody but a draining service or a broken connection cancels a call of ours.
    reasons.ERROR_REASON_CANCELLED: Verdict.RETRY,
    reasons.ERROR_REASON_DEADLINE_EXCEEDED: Verdict.ASK_ONCE_MORE,
}
_OF_TOOLS: Final = {
    reasons.ERROR_REASON_TOOL_FAILED: Verdict.TELL_MODEL,
    reasons.ERROR_REASON_TOOL_NOT_FOUND: Verdict.TELL_MODEL,
    reasons.ERROR_REASON_INVALID_TOOL_ARGUMENTS: Verdict.TELL_MODEL,
    reasons.ERROR_REASON_INVALID_REQUEST: Verdict.TELL_MODEL,
    reasons.ERROR_REASON_SUSPICIOUS_INPUT: Verdict.TELL_MODEL,
    reasons.ERROR_REASON_OUTPUT_REFUSED: Verdict.TELL_MODEL,
    reasons.ERROR_REASON_PERMISSION_DENIED: Verdict.TELL_MODEL,
    reasons.ERROR_REASON_TOO_LARGE: Verdict.TELL_MODEL,
    reasons.ERROR_REASON_EFFECT_IN_DOUBT: Verdict.IN_DOUBT,
}


def judge_model_failure(error: RemitError) -> Verdict:
    """What a failed model call means."""
    return _ALWAYS.get(error.reason) or _otherwise(error)


def judge_tool_failure(error: RemitError) -> Verdict:
    """What a failed tool call means."""
    return _ALWAYS.get(error.reason) or _OF_TOOLS.get(error.reason) or _otherwise(error)


_OF_SUB_RUNS: Final = {
    reasons.ERROR_REASON_AGENT_NOT_FOUND: Verdict.TELL_MODEL,
    reasons.ERROR_REASON_INVALID_REQUEST: Verdict.TELL_MODEL,
    reasons.ERROR_REASON_SUSPICIOUS_INPUT: Verdict.TELL_MODEL,
    reasons.ERROR_REASON_PERMISSION_DENIED: Verdict.TELL_MODEL,
    reasons.ERROR_REASON_TOO_LARGE: Verdict.TELL_MODEL,
}


def judge_sub_run_failure(error: RemitError) -> Verdict:
    """What it means that a sub-run could not be started."""
    return _ALWAYS.get(error.reason) or _OF_SUB_RUNS.get(error.reason) or _otherwise(error)


def is_told_to_model(status: status_pb2.Status) -> bool:
    """Whether the run goes on after a tool call that ended with this status."""
    error = RemitError.from_status(status)
    told = {Verdict.TELL_MODEL, Verdict.ASK_ONCE_MORE}
    return judge_tool_failure(error) in told


def backoff_s(
    attempt: int,
    advised_s: float | None,
    *,
    base_s: float,
    cap_s: float,
    chance: Callable[[], float],
) -> float:
    """Seconds to wait before try number `attempt` + 1: the advice, or more by backoff with jitter.

    Exponential, spread by jitter over its upper half; `chance` gives numbers in [0, 1). An advice
    above the cap is honoured: whoever gave it knows better.
    """
    ceiling_s = min(cap_s, base_s * 2.0 ** min(attempt - 1, 30))
    jittered_s = ceiling_s * (0.5 + chance() / 2)
    return max(advised_s or 0.0, jittered_s)


def _otherwise(error: RemitError) -> Verdict:
    return Verdict.RETRY if error.retryable else Verdict.FAIL
