"""The sentences of a run's story. Money and times stand in fields beside them, not in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from google.rpc import status_pb2

from remit.api.agent.v1 import explanation_pb2, run_pb2
from remit.api.audit.v1 import audit_query_service_pb2, event_pb2
from remit.api.cost.v1 import reservation_pb2
from remit.api.effects.v1 import attempt_pb2
from remit.rpc.errors import RemitError

MOST_CHARS: Final = 500
"""Of what an error says; the journal has it whole."""
_ENDS: Final = {
    run_pb2.RUN_STATE_SUCCEEDED: "the run ended with an answer",
    run_pb2.RUN_STATE_FAILED: "the run failed",
    run_pb2.RUN_STATE_CANCELLED: "the run was cancelled",
}
_CAUSES: Final = {
    run_pb2.FALLBACK_CAUSE_FAILED: "failed",
    run_pb2.FALLBACK_CAUSE_TIMED_OUT: "took too long",
    run_pb2.FALLBACK_CAUSE_LOW_CONFIDENCE: "was less sure than the agent wants",
}
_OUTCOMES: Final = {
    event_pb2.OUTCOME_SUCCEEDED: "took place",
    event_pb2.OUTCOME_FAILED: "took place and failed",
    event_pb2.OUTCOME_REFUSED: "never took place",
    event_pb2.OUTCOME_CANCELLED: "was stopped",
    event_pb2.OUTCOME_IN_DOUBT: "is in doubt: it was started, its owner died, and nobody knows"
    " whether it took place",
}
_MONEY: Final = {
    reservation_pb2.Reservation.STATE_HELD: "its money is still held",
    reservation_pb2.Reservation.STATE_SETTLED: "its bill is posted",
    reservation_pb2.Reservation.STATE_RELEASED: "its hold was released",
}


def moment(event: run_pb2.RunEvent) -> str:
    """What an event says that is no part of a call."""
    kind = event.WhichOneof("event") or ""
    say = _SAY.get(kind)
    return say(event) if say else f"the journal says `{kind or 'nothing that is known here'}`"


def asked(model: str) -> str:
    """A model was asked, and no answer is recorded for this asking."""
    return f"asked {model}; the journal has no end of it"


def called(resource: str) -> str:
    """A tool or agent was called, and no end is recorded."""
    return f"called {resource}; the journal has no end of it"


def sub_run(started: run_pb2.SubRunStarted) -> str:
    """A call became a run."""
    return f"a call became {started.run}"


def model_call(ended: run_pb2.ModelCallEnded) -> str:
    """How a model's turn ended."""
    if ended.HasField("error"):
        return f"asked {ended.model}, which failed: {failure(ended.error)}"
    answer = "an answer"
    if ended.tool_calls:
        answer = f"{ended.tool_calls} {'call' if ended.tool_calls == 1 else 'calls'} to make"
    kept = ""
    if ended.kept_model and ended.kept_model != ended.model:
        kept = f"; the answer of {ended.kept_model} was kept"
    return f"asked {ended.model}, which gave {answer}{kept}"


def tool_call(ended: run_pb2.ToolCallEnded) -> str:
    """How a call ended."""
    what = f"called {ended.tool}" + (f" as {ended.run}" if ended.run else "")
    if ended.HasField("error"):
        return f"{what}, which failed: {failure(ended.error)}"
    return f"{what}, which answered"


def in_doubt(tool: str) -> str:
    """A call whose end nobody knows, and that is asked to be repeated."""
    return f"called {tool}, and whether it took effect is unknown"


def unnamed_effect(resource: str, attempts: Sequence[explanation_pb2.ExplainedAttempt]) -> str:
    """An effect of the run that its journal does not name."""
    what = resource or "an effect"
    if any(each.outcome == event_pb2.OUTCOME_UNSPECIFIED for each in attempts):
        return f"{what}: an effect that has not ended, or whose end the journal does not have"
    return f"{what}: an effect that the journal does not name"


def record(logged: audit_query_service_pb2.LoggedEvent) -> str:
    """An event of the log that is of no effect."""
    kind = event_pb2.EventKind.DESCRIPTOR.values_by_number.get(logged.event.kind)
    name = kind.name.removeprefix("EVENT_KIND_").lower() if kind else "unknown"
    return f"the log has leaf {logged.leaf_index}, of kind {name}: {logged.event.action}"


def attempt(explained: explanation_pb2.ExplainedAttempt) -> str:
    """What permitted, paid for and recorded an attempt, and how it ended."""
    parts = [_permitted(explained), _ended(explained), _money(explained), _recorded(explained)]
    return f"attempt {explained.key.attempt} {'; '.join(filter(None, parts))}"


def refusal(detail: Mapping[str, object]) -> str:
    """Why an attempt was refused, as the detail of its outcome has it."""
    reason, message = detail.get("reason", ""), detail.get("message", "")
    return _shortened(": ".join(str(part) for part in (reason, message) if part))


def failure(status: status_pb2.Status) -> str:
    """An error by its reason and message."""
    error = RemitError.from_status(status)
    return _shortened(f"{error.reason_name}: {error.message}")


def _permitted(explained: explanation_pb2.ExplainedAttempt) -> str:
    decision = explained.decision
    if decision.allowed:
        return f"was allowed{f' by {decision.name}' if decision.name else ''}{_policies(decision)}"
    return f"was refused{_policies(decision)}: {decision.reason}" if decision.reason else ""


def _policies(decision: explanation_pb2.ExplainedDecision) -> str:
    if not decision.policy_epoch:
        return ""
    named = ", ".join(decision.policy_ids) or "no policy"
    return f" ({named}; policies of epoch {decision.policy_epoch})"


def _ended(explained: explanation_pb2.ExplainedAttempt) -> str:
    if explained.outcome in _OUTCOMES:
        return _OUTCOMES[explained.outcome]
    if explained.state == attempt_pb2.Attempt.STATE_STARTED:
        return "is under way"
    if explained.state == attempt_pb2.Attempt.STATE_CLAIMED:
        return "is asking for its permits"
    return "has no end that is known"


def _money(explained: explanation_pb2.ExplainedAttempt) -> str:
    return _MONEY.get(explained.reservation.state, "")


def _recorded(explained: explanation_pb2.ExplainedAttempt) -> str:
    intent = f"intent {explained.intent.leaf_index}" if explained.HasField("intent") else ""
    ends = ", ".join(str(leaf.leaf_index) for leaf in explained.outcomes)
    leaves = " and ".join(filter(None, (intent, f"outcome {ends}" if ends else "")))
    return f"the log has its {leaves}" if leaves else ""


def _created(event: run_pb2.RunEvent) -> str:
    run = event.created.run
    parts = [f"{run.subject} started the run of {run.agent}"]
    if run.parent:
        parts.append(f"as a step of {run.parent}")
    if run.HasField("fork"):
        parts.append(f"going on from event {run.fork.sequence} of {run.fork.run}")
    if run.conversation:
        parts.append(f"in {run.conversation}")
    return " ".join(parts)


def _started(event: run_pb2.RunEvent) -> str:
    started = event.started
    return f"a worker took the run: {started.replica}, with fencing token {started.fencing_token}"


def _fallback(event: run_pb2.RunEvent) -> str:
    fallback = event.model_fallback
    cause = _CAUSES.get(fallback.cause, "was not enough")
    return f"{fallback.from_model} {cause}, so {fallback.to_model} is asked"


def _waiting(event: run_pb2.RunEvent) -> str:
    return f"waited, to try again: {failure(event.waiting.reason)}"


def _ended_run(event: run_pb2.RunEvent) -> str:
    run = event.ended.run
    text = _ENDS.get(run.state, "the run ended")
    return f"{text}: {failure(run.error)}" if run.HasField("error") else text


_SAY: Final[Mapping[str, Callable[[run_pb2.RunEvent], str]]] = {
    "created": _created,
    "started": _started,
    "model_fallback": _fallback,
    "waiting": _waiting,
    "cancel_requested": lambda e: f"{e.cancel_requested.subject} asked the run to stop",
    "paused": lambda e: f"{e.paused.subject} halted the run",
    "resumed": lambda e: f"{e.resumed.subject} let the run go on",
    "ended": _ended_run,
}


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARS else f"{text[:MOST_CHARS]}…"
