"""How a model's turn ended, as the journal says it: what it used, how sure it is, what is kept."""

from __future__ import annotations

from typing import Final

from google.rpc import status_pb2

from remit.agent.confidence import of_answer, said
from remit.agent.fallback import Rules, is_better
from remit.agent.journal import Progress
from remit.agent.logbook import Draft
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import inference_service_pb2, message_pb2
from remit.rpc.errors import RemitError

_CUT: Final = {
    message_pb2.FINISH_REASON_BUDGET: (reasons.ERROR_REASON_BUDGET_EXHAUSTED, "the budget ended"),
    message_pb2.FINISH_REASON_DEADLINE: (
        reasons.ERROR_REASON_DEADLINE_EXCEEDED,
        "the deadline of the call came",
    ),
    message_pb2.FINISH_REASON_PERMISSION: (
        reasons.ERROR_REASON_PERMISSION_DENIED,
        "the permission was withdrawn",
    ),
}
"""What ends a turn whose generation was not let go on."""


def add_end(draft: Draft, ended: run_pb2.ModelCallEnded) -> bool:
    """Adds the end of a model's turn; returns whether it is the one that the step keeps."""
    ended.kept_model = kept_model(draft.progress, ended)
    draft.add(ended)
    return ended.kept_model in {"", ended.model}


def kept_model(progress: Progress, ended: run_pb2.ModelCallEnded) -> str:
    """The model whose turn a step keeps that asked two, when the second's ends; else empty."""
    turn = progress.turn
    aside = turn.aside if turn is not None else None
    if aside is None:
        return ""
    may_call = ended.step < progress.max_steps
    is_kept = is_better(ended, aside.ended, may_call=may_call)
    return ended.model if is_kept else aside.ended.model


def end_of(
    step: int, model: str, response: inference_service_pb2.GenerateTextResponse, rules: Rules
) -> run_pb2.ModelCallEnded:
    """How a model's turn ended, and how sure its answer is where the rules want to know."""
    error = _unfinished(model, response.finish_reason) or _empty(step, response, rules)
    ended = run_pb2.ModelCallEnded(
        step=step,
        model=model,
        tool_calls=0 if error else len(response.message.tool_calls),
        usage=response.usage,
        cost_nanos=response.cost_nanos,
        claim=response.claim,
        intent_leaf_index=response.intent_leaf_index,
        error=error,
    )
    wants_to_know = rules.fallback is not None or rules.confidence is not None
    if wants_to_know and not (error or ended.tool_calls):
        measured = response.confidence if response.HasField("confidence") else None
        answer = of_answer(rules.confidence, response.message.text, measured)
        ended.confidence.CopyFrom(answer)
    return ended


def _empty(
    step: int, response: inference_service_pb2.GenerateTextResponse, rules: Rules
) -> status_pb2.Status | None:
    message = response.message
    if message.tool_calls or said(rules.confidence, message.text).strip():
        return None
    return RemitError(
        reasons.ERROR_REASON_PROVIDER_FAILED,
        f"the model ended step {step} with neither text nor a tool call",
    ).to_status()


def _unfinished(
    model: str, finish_reason: message_pb2.FinishReason.ValueType
) -> status_pb2.Status | None:
    """Why a turn that ended is no answer: a text that was cut is never passed off as whole."""
    if finish_reason == message_pb2.FINISH_REASON_LENGTH:
        return RemitError(
            reasons.ERROR_REASON_RUN_LIMIT_REACHED,
            f"{model} stopped at its limit of output tokens before its turn was complete",
        ).to_status()
    if finish_reason in _CUT:
        reason, text = _CUT[finish_reason]
        return RemitError(reason, f"{text} before the turn of {model} was complete").to_status()
    if finish_reason == message_pb2.FINISH_REASON_CONTENT_FILTER:
        return RemitError(
            reasons.ERROR_REASON_PROVIDER_FAILED, f"the provider's filter ended the turn of {model}"
        ).to_status()
    return None
