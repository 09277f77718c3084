"""What the worker of a run must do now: decided from the run's progress and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from google.rpc import status_pb2

from remit.agent.confidence import Answer, canned, given, said
from remit.agent.fallback import cause_of, is_surer
from remit.agent.journal import Aside, Progress, ToolCall, Turn
from remit.api.agent.v1 import confidence_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError


@dataclass(frozen=True, slots=True)
class AskModel:
    """Ask for the model turn of a step."""

    step: int
    is_journalled: bool
    """Whether the journal already says that the present worker asks for it."""


@dataclass(frozen=True, slots=True)
class FallBack:
    """Ask another model for the turn of a step."""

    event: run_pb2.ModelFallback
    """Says so in the journal."""


@dataclass(frozen=True, slots=True)
class CallTools:
    """Call the tools of a step that have not ended; their starts are journalled."""

    step: int
    calls: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True)
class AwaitSubRuns:
    """See that the sub-runs of a step go on, and record those that ended."""

    step: int
    calls: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True)
class End:
    """End the run."""

    state: run_pb2.RunState.ValueType
    result: str = ""
    error: status_pb2.Status | None = None
    confidence: confidence_pb2.Confidence | None = None
    """How sure the result is; None without a result."""


@dataclass(frozen=True, slots=True)
class Rest:
    """The run has ended or is paused; there is nothing to do."""


Action: TypeAlias = AskModel | FallBack | CallTools | AwaitSubRuns | End | Rest


def next_action(progress: Progress) -> Action:
    """What the run's worker must do now."""
    if progress.ended is not None:
        return Rest()
    if progress.cancelled_by:
        return _cancelled(progress)
    if progress.paused_by:
        return Rest()
    turn = progress.turn
    if turn is None:
        return AskModel(1, is_journalled=False)
    return _after_turn(progress, turn)


def limit_reached(message: str) -> End:
    """The end of a run that used up one of its limits."""
    error = RemitError(reasons.ERROR_REASON_RUN_LIMIT_REACHED, message)
    return End(run_pb2.RUN_STATE_FAILED, error=error.to_status())


def failed(error: RemitError) -> End:
    """The end of a run that cannot go on."""
    return End(run_pb2.RUN_STATE_FAILED, error=error.to_status())


def _after_turn(progress: Progress, turn: Turn) -> Action:
    instead = _instead(progress, turn)
    if instead is not None:
        return instead
    if turn.fatal_error is not None:
        return End(run_pb2.RUN_STATE_FAILED, error=turn.fatal_error)
    if turn.ended is None:
        return AskModel(turn.step, is_journalled=turn.asked_by == progress.fencing_token)
    return _after_ended_turn(progress, turn, turn.ended)


def _instead(progress: Progress, turn: Turn) -> FallBack | End | None:
    """What the agent does in place of a turn that is not good enough; None: nothing."""
    rule, ended = progress.rules.fallback, turn.ended
    if rule is None or ended is None:
        return None
    cause = cause_of(progress.rules, ended)
    if cause is None:
        return None
    if rule.model and turn.fallback is None:
        return FallBack(
            run_pb2.ModelFallback(
                step=turn.step, from_model=ended.model, to_model=rule.model_name, cause=cause
            )
        )
    if not ended.HasField("error"):
        return None
    if progress.reserve is not None:
        return _in_reserve(progress, progress.reserve)
    return _succeeded(canned(rule.canned_answer)) if rule.canned_answer else None


def _after_ended_turn(progress: Progress, turn: Turn, ended: run_pb2.ModelCallEnded) -> Action:
    if ended.tool_calls == 0:
        return _answered(progress, turn, ended)
    if turn.step >= progress.max_steps:
        if progress.reserve is not None:
            return _in_reserve(progress, progress.reserve)
        return limit_reached(f"the run used its {progress.max_steps} steps without an answer")
    if not turn.is_recorded:
        # Its calls were not journalled with it: the same key returns the recorded turn.
        return AskModel(turn.step, is_journalled=False)
    if turn.pending:
        return _pending(turn)
    return AskModel(turn.step + 1, is_journalled=False)


def _pending(turn: Turn) -> Action:
    """Calls are made before sub-runs are waited for, which takes no worker."""
    to_make = tuple(call for call in turn.pending if not call.run)
    if to_make:
        return CallTools(turn.step, to_make)
    return AwaitSubRuns(turn.step, turn.pending)


def _answered(progress: Progress, turn: Turn, ended: run_pb2.ModelCallEnded) -> End:
    rule, reserve = progress.rules.confidence, progress.reserve
    if reserve is not None and is_surer(reserve.ended, ended):
        return _in_reserve(progress, reserve)
    if said(rule, turn.text).strip():
        return _succeeded(given(rule, turn.text, ended.confidence))
    return failed(
        RemitError(
            reasons.ERROR_REASON_PROVIDER_FAILED,
            f"the model ended step {turn.step} with neither text nor a tool call",
        )
    )


def _in_reserve(progress: Progress, reserve: Aside) -> End:
    """The end with an answer that was not sure enough, and that nothing better came after."""
    confidence = reserve.ended.confidence
    return _succeeded(given(progress.rules.confidence, reserve.text, confidence))


def _succeeded(answer: Answer) -> End:
    return End(run_pb2.RUN_STATE_SUCCEEDED, result=answer.text, confidence=answer.confidence)


def _cancelled(progress: Progress) -> End:
    error = RemitError(
        reasons.ERROR_REASON_CANCELLED,
        f"{progress.accepted.name} was cancelled by {progress.cancelled_by}",
    )
    return End(run_pb2.RUN_STATE_CANCELLED, error=error.to_status())
