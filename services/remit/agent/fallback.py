"""When a step asks a second model, whose turn it keeps, and what comes last: the rules. Pure.

A step asks two models at most, the agent's own and its fallback. Everything is decided from how
their turns ended, which is journalled; so whoever takes a run up decides the same. A turn is never
given up for a worse one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from remit import names
from remit.agent.confidence import ConfidenceRule
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError

MAX_TRIES: Final = 3
"""Times that a model is asked whose provider is unavailable, before it counts as failed."""

Cause = run_pb2.FallbackCause

_NOT_OF_THE_MODEL: Final = frozenset(
    {
        reasons.ERROR_REASON_BUDGET_EXHAUSTED,
        reasons.ERROR_REASON_CANCELLED,
        reasons.ERROR_REASON_DATA_CORRUPT,
        reasons.ERROR_REASON_FENCED,
        reasons.ERROR_REASON_KEY_REUSED,
        reasons.ERROR_REASON_REMIT_INVALID,
        reasons.ERROR_REASON_TOOL_NOT_FOUND,
    }
)
"""Failures that another model would meet too, or that must not be gone around."""

_FAILED, _CALLS, _ANSWER = range(3)
_UNKNOWN: Final = -1.0


class FallbackRule(BaseModel):
    """What a run does when its model fails it, as its definition says it under `fallback`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(default="", max_length=100)
    min_confidence: float = Field(default=0.7, ge=0, le=1)
    timeout_s: float = Field(default=30.0, ge=0.1, le=300)
    canned_answer: str = Field(default="", max_length=10_000)

    @field_validator("model")
    @classmethod
    def _is_a_name(cls, model: str) -> str:
        if model and not names.is_name("model", f"models/{model}"):
            message = "must be the short name of a model, such as builtin-rules"
            raise ValueError(message)
        return model

    @model_validator(mode="after")
    def _falls_somewhere(self) -> Self:
        if not (self.model or self.canned_answer.strip()):
            message = "needs a model, a canned_answer, or both"
            raise ValueError(message)
        return self

    @property
    def model_name(self) -> str:
        """`models/{model}`; empty without one."""
        return names.model_name(self.model) if self.model else ""


@dataclass(frozen=True, slots=True)
class Rules:
    """What an agent's definition says of failing and unsure models."""

    fallback: FallbackRule | None = None
    confidence: ConfidenceRule | None = None

    @property
    def measures(self) -> bool:
        """Whether models are asked to measure their confidence."""
        if self.confidence is not None:
            return not self.confidence.is_self_reported
        return self.fallback is not None

    @property
    def timeout_s(self) -> float | None:
        """Most seconds of one model call; None: the call's own deadline alone."""
        return self.fallback.timeout_s if self.fallback is not None else None


class TookTooLong(RemitError):  # noqa: N818 - what happened, not a fault
    """A model did not end its turn within the time that its agent allows."""

    def __init__(self, model: str, limit_s: float) -> None:
        super().__init__(
            reasons.ERROR_REASON_DEADLINE_EXCEEDED,
            f"{model} did not end its turn within {limit_s:g} s",
        )


def cause_of(rules: Rules, ended: run_pb2.ModelCallEnded) -> Cause.ValueType | None:
    """Why a turn that ended so is not good enough; None if it is, or no rule says."""
    rule = rules.fallback
    if rule is None:
        return None
    if ended.HasField("error"):
        reason = RemitError.from_status(ended.error).reason
        if reason in _NOT_OF_THE_MODEL:
            return None
        if reason == reasons.ERROR_REASON_DEADLINE_EXCEEDED:
            return run_pb2.FALLBACK_CAUSE_TIMED_OUT
        return run_pb2.FALLBACK_CAUSE_FAILED
    # What nobody measured is not known to be low; a turn that asks for tools is no answer yet.
    is_unsure = ended.confidence.HasField("value") and ended.confidence.value < rule.min_confidence
    return run_pb2.FALLBACK_CAUSE_LOW_CONFIDENCE if is_unsure and not ended.tool_calls else None


def is_better(
    second: run_pb2.ModelCallEnded, first: run_pb2.ModelCallEnded, *, may_call: bool
) -> bool:
    """Whether the second model's turn is kept: only if it is known to be better than the first's.

    Of two answers the surer one is better, and one of unknown confidence is not known to be. A wish
    for tools is better than an unsure answer while there is a step left to use their results in
    (`may_call`): the answer is then kept in reserve. Anything is better than a failure.
    """
    if second.tool_calls and not second.HasField("error"):
        return may_call or first.HasField("error")
    return _rank(second) > _rank(first)


def is_surer(one: run_pb2.ModelCallEnded, other: run_pb2.ModelCallEnded) -> bool:
    """Whether one answer is known to be surer than another."""
    known = one.confidence.HasField("value") and other.confidence.HasField("value")
    return known and one.confidence.value > other.confidence.value


def gives_up(rule: FallbackRule, error: RemitError, refusals: int) -> bool:
    """Whether a model that failed so for now counts as failed, after `refusals` of its provider.

    An outage of the mesh itself is waited out as ever: another model would meet it too.
    """
    if isinstance(error, TookTooLong):
        return True
    if error.reason != reasons.ERROR_REASON_PROVIDER_UNAVAILABLE:
        return False
    return refusals + 1 >= MAX_TRIES or (error.retry_after_s or 0.0) > rule.timeout_s


def _rank(ended: run_pb2.ModelCallEnded) -> tuple[int, float]:
    if ended.HasField("error"):
        return _FAILED, _UNKNOWN
    if ended.tool_calls:
        return _CALLS, _UNKNOWN
    known = ended.confidence.HasField("value")
    return _ANSWER, ended.confidence.value if known else _UNKNOWN
