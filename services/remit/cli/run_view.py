"""A run in words: events go in, lines for people come out. No clock, no terminal, no network.

The displays in `run_display` show what this view says; `--json` does not use it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from google.protobuf import struct_pb2
from google.rpc import status_pb2

from remit.api.agent.v1 import confidence_pb2, run_pb2
from remit.api.usage.v1 import usage_pb2
from remit.cli import documents
from remit.cli.output import Line
from remit.cli.wording import last_part, local_time, moment, shortened, span, usd
from remit.rpc.errors import RemitError

MOST_VALUE_CHARS: Final = 300
"""Arguments and results are cut there, with a mark: `--json` has them whole."""
ERASED: Final = "(erased)"
"""Stands where something was that concerned a person who was erased."""
STATE_STYLES: Final = {
    run_pb2.RUN_STATE_QUEUED: "yellow",
    run_pb2.RUN_STATE_RUNNING: "cyan",
    run_pb2.RUN_STATE_SUCCEEDED: "green",
    run_pb2.RUN_STATE_FAILED: "bold red",
    run_pb2.RUN_STATE_CANCELLED: "yellow",
    run_pb2.RUN_STATE_PAUSED: "yellow",
}
_STATE_PREFIX: Final = "RUN_STATE_"
_SUMMARISED: Final = (
    "state",
    "result",
    "confidence",
    "error",
    "artifacts",
    "usage",
    "cost_nanos",
    "last_leaf_index",
)
_CAUSES: Final = {
    run_pb2.FALLBACK_CAUSE_FAILED: "failed",
    run_pb2.FALLBACK_CAUSE_TIMED_OUT: "took too long",
    run_pb2.FALLBACK_CAUSE_LOW_CONFIDENCE: "is not sure enough",
}
_SOURCES: Final = {
    confidence_pb2.CONFIDENCE_SOURCE_MEASURED: "measured",
    confidence_pb2.CONFIDENCE_SOURCE_SELF_REPORTED: "self-reported",
}


class RunView:
    """What a person should know of a run so far."""

    def __init__(self) -> None:
        self.stage = "waiting for a worker"
        self.percent = 0
        self.text = ""
        """Text of the model's turn in progress."""
        self.run = run_pb2.Run()
        """The run as it was last told whole."""
        self._handlers = {
            "created": self._created,
            "started": self._started,
            "stage_started": self._stage,
            "text_delta": self._delta,
            "model_call_started": self._model_started,
            "model_call_ended": self._model_ended,
            "model_fallback": self._fallback,
            "tool_call_started": self._tool_started,
            "tool_call_ended": self._tool_ended,
            "sub_run_started": self._sub_run_started,
            "waiting": self._waiting,
            "cancel_requested": self._cancel,
            "paused": self._paused,
            "resumed": self._resumed,
            "ended": self._ended,
        }

    def apply(self, event: run_pb2.RunEvent) -> list[Line]:
        """Takes one event in; returns the lines that it is worth."""
        self.percent = max(self.percent, event.percent)
        kind = event.WhichOneof("event")
        handler = self._handlers.get(kind or "")
        return list(handler(event)) if handler else []

    def _created(self, event: run_pb2.RunEvent) -> Iterator[Line]:
        self.run = event.created.run
        yield Line(f"{event.run}  {last_part(self.run.agent)}", "bold")
        if self.run.HasField("fork"):
            taken = self.run.fork
            yield Line(f"  goes on from {taken.run} at event {taken.sequence}", "dim")
        if self.run.conversation:
            yield Line(f"  continues {continues(self.run)}", "dim")
        if self.run.HasField("schedule_time"):
            self.stage = "waiting for its time"
            yield Line(f"  {when(self.run)}", "dim")

    def _started(self, event: run_pb2.RunEvent) -> Iterator[Line]:
        self.stage = "running"
        again = event.started.fencing_token > 1
        what = "taken over by" if again else "taken by"
        yield Line(f"  {what} replica {event.started.replica}", "yellow" if again else "dim")

    def _stage(self, event: run_pb2.RunEvent) -> Iterator[Line]:
        self.stage = event.stage_started.stage
        yield Line(f"[{self.percent:>3} %] {self.stage}", "cyan")

    def _delta(self, event: run_pb2.RunEvent) -> Iterator[Line]:
        self.text += event.text_delta.text
        yield from ()

    def _model_started(self, event: run_pb2.RunEvent) -> Iterator[Line]:
        self.text = ""
        call = event.model_call_started
        yield Line(f"  step {call.step}: asks {call.model}", "dim")

    def _model_ended(self, event: run_pb2.RunEvent) -> Iterator[Line]:
        call = event.model_call_ended
        # The text of the last turn is the answer, which is shown at the end.
        text, self.text = self.text, ""
        if text and call.tool_calls:
            yield from (Line(f"  {line}") for line in text.splitlines())
        if call.kept_model and call.kept_model != call.model:
            yield Line(f"  keeps the turn of {call.kept_model}", "yellow")
        if call.HasField("error"):
            yield Line(f"  ✗ {call.model}: {_reason(call.error)}", "red")
            return
        effect = _effect(call.usage, call.cost_nanos, call.intent_leaf_index)
        yield Line(f"  {effect}{_sureness(call.confidence)}", "dim")

    def _fallback(self, event: run_pb2.RunEvent) -> Iterator[Line]:
        fallback = event.model_fallback
        why = _CAUSES.get(fallback.cause, "is not good enough")
        line = f"  ↪ {fallback.from_model} {why}; asks {fallback.to_model}"
        yield Line(line, "yellow")

    def _tool_started(self, event: run_pb2.RunEvent) -> Iterator[Line]:
        call = event.tool_call_started
        yield Line(f"  → {last_part(call.tool)}({_arguments(call.arguments)})", "magenta")
        if call.repeats_claim:
            yield Line(
                "    its outcome is unknown; people are asked whether to repeat it", "yellow"
            )

    def _tool_ended(self, event: run_pb2.RunEvent) -> Iterator[Line]:
        call = event.tool_call_ended
        tool = last_part(call.tool)
        if call.HasField("error"):
            yield Line(f"  ✗ {tool}: {_reason(call.error)}", "red")
            return
        yield Line(f"  ← {tool}: {_value(documents.of_struct(call.result))}", "green")
        for artifact in call.artifacts:
            yield Line(f"  + {artifact.name} ({artifact.size_bytes:,} bytes)", "green")
        yield Line(f"  {_effect_of(call)}", "dim")

    def _sub_run_started(self, event: run_pb2.RunEvent) -> Iterator[Line]:
        self.stage = "waiting for sub-runs"
        yield Line(f"  ⤷ {event.sub_run_started.run}", "magenta")

    def _waiting(self, event: run_pb2.RunEvent) -> Iterator[Line]:
        self.stage = "waiting"
        again = local_time(event.waiting.retry_time)
        yield Line(f"  … waits until {again}: {_reason(event.waiting.reason)}", "yellow")

    def _cancel(self, event: run_pb2.RunEvent) -> Iterator[Line]:
        self.stage = "stopping"
        yield Line(f"  cancellation asked for by {event.cancel_requested.subject}", "yellow")

    def _paused(self, event: run_pb2.RunEvent) -> Iterator[Line]:
        self.stage = "paused"
        yield Line(f"  paused by {event.paused.subject}; remit runs resume {event.run}", "yellow")

    def _resumed(self, event: run_pb2.RunEvent) -> Iterator[Line]:
        self.stage = "waiting for a worker"
        yield Line(f"  resumed by {event.resumed.subject}", "yellow")

    def _ended(self, event: run_pb2.RunEvent) -> Iterator[Line]:
        self.run = event.ended.run
        self.stage = state_name(self.run.state)
        self.percent = 100
        yield from ending(self.run)


def ending(run: run_pb2.Run) -> Iterator[Line]:
    """The end of a run: its answer, or why there is none, and what it used."""
    yield Line("")
    if run.result:
        yield Line(run.result, "bold green")
    if run.HasField("error"):
        yield from _error_lines(run)
    yield Line("")
    for artifact in run.artifacts:
        size = f"{artifact.size_bytes:,} bytes, {artifact.media_type}"
        yield Line(f"file    {artifact.name} ({size})")
    if _is_telling(run.confidence):
        yield Line(f"sure    {sureness(run.confidence)}")
    yield Line(f"run     {run.name} {state_name(run.state)}{_took(run)}")
    yield Line(f"tokens  {tokens(run.usage)}")
    yield Line(f"cost    {usd(run.cost_nanos)}")
    yield Line(f"audit   {audit_position(run)}")


def _error_lines(run: run_pb2.Run) -> Iterator[Line]:
    error = RemitError.from_status(run.error)
    style = STATE_STYLES.get(run.state, "")
    yield Line(f"{state_name(run.state)}: {error.message} [{error.reason_name}]", style)
    yield from (Line(f"  {v.field}: {v.description}") for v in error.violations)
    yield from (Line(f"  {q.subject}: {q.description}") for q in error.quota)
    yield Line(f"  next: {error.next_step}")


def summary(run: run_pb2.Run, exit_code: int) -> documents.Document:
    """The last object of `--json`: what a script wants to know of a run that ended."""
    document = documents.of_message(run)
    return {
        "type": "summary",
        "run": run.name,
        **{name: document[name] for name in _SUMMARISED if name in document},
        "duration_s": duration_s(run),
        "exit_code": exit_code,
    }


def event_document(event: run_pb2.RunEvent) -> documents.Document:
    """One event for machines: its kind under `type`, the rest as in the contracts."""
    return {"type": event.WhichOneof("event") or "unknown", **documents.of_message(event)}


def task_of(run: run_pb2.Run, most_chars: int) -> str:
    """A run's task on one line."""
    return ERASED if run.erased else shortened(run.task, most_chars)


def state_name(state: run_pb2.RunState.ValueType) -> str:
    """The state in lower case, such as `succeeded`."""
    known = run_pb2.RunState.DESCRIPTOR.values_by_number.get(state)
    return known.name.removeprefix(_STATE_PREFIX).lower() if known else f"state {state}"


def continues(run: run_pb2.Run) -> str:
    """The conversation of a run and what it sees of it; empty if it has none."""
    count = run.history_runs
    seen = f"sees {count} exchange{'' if count == 1 else 's'} of it"
    return f"{run.conversation}, {seen}" if run.conversation else ""


def when(run: run_pb2.Run) -> str:
    """When a run that was accepted starts, and how soon."""
    start = "starts at once"
    if run.HasField("schedule_time"):
        start = f"starts at {local_time(run.schedule_time)}"
    elif run.state == run_pb2.RUN_STATE_QUEUED:
        start = "waits for a worker"
    return f"{start}, with priority {run.priority or 3}"


def sureness(confidence: confidence_pb2.Confidence) -> str:
    """How sure a result is, in words, and what it is where it is no answer of a model."""
    if confidence.kind == confidence_pb2.ANSWER_KIND_CANNED:
        return "not at all: every model failed, and this is the agent's canned answer"
    value = f"{confidence.value:.2f}" if confidence.HasField("value") else "nobody says"
    source = _SOURCES.get(confidence.source, "")
    said = f"{value} ({source})" if source else value
    if confidence.kind == confidence_pb2.ANSWER_KIND_ABSTENTION:
        return f"{said}; not enough, so the agent abstains"
    return said


def _is_telling(confidence: confidence_pb2.Confidence) -> bool:
    """Whether there is more to say than that a model answered."""
    is_plain = confidence.kind <= confidence_pb2.ANSWER_KIND_ANSWER
    return confidence.HasField("value") or not is_plain


def tokens(usage: usage_pb2.Usage) -> str:
    """What was used, in words."""
    cached = f" ({usage.cached_input_tokens:,} cached)" if usage.cached_input_tokens else ""
    about = " (estimated)" if usage.estimated else ""
    calls = f"{usage.calls:,} call{'' if usage.calls == 1 else 's'}"
    return f"{usage.input_tokens:,} in{cached}, {usage.output_tokens:,} out, {calls}{about}"


def audit_position(run: run_pb2.Run) -> str:
    """Where the log records the newest effect of the run."""
    if not run.HasField("last_leaf_index"):
        return "no effect was started"
    return f"leaf {run.last_leaf_index}; remit audit list --run {run.name}"


def duration_s(run: run_pb2.Run) -> float | None:
    """Seconds from a run's creation to its end; None while it has none."""
    if not run.HasField("end_time"):
        return None
    return (moment(run.end_time) - moment(run.create_time)).total_seconds()


def _took(run: run_pb2.Run) -> str:
    length_s = duration_s(run)
    return "" if length_s is None else f" after {span(length_s)}"


def _effect(usage: usage_pb2.Usage, cost_nanos: int, leaf_index: int) -> str:
    used = ""
    if usage.input_tokens or usage.output_tokens:
        used = f"{usage.input_tokens:,} in, {usage.output_tokens:,} out, "
    return f"  {used}{usd(cost_nanos)}, audit leaf {leaf_index}"


def _effect_of(call: run_pb2.ToolCallEnded) -> str:
    if call.run:  # whose effects have leaves of their own
        return f"  {tokens(call.usage)}, {usd(call.cost_nanos)}; remit runs show {call.run}"
    return _effect(call.usage, call.cost_nanos, call.intent_leaf_index)


def _sureness(confidence: confidence_pb2.Confidence) -> str:
    return f", confidence {sureness(confidence)}" if confidence.HasField("value") else ""


def _reason(status: status_pb2.Status) -> str:
    error = RemitError.from_status(status)
    return f"{shortened(error.message, MOST_VALUE_CHARS)} [{error.reason_name}]"


def _arguments(arguments: struct_pb2.Struct) -> str:
    pairs = documents.of_struct(arguments).items()
    return ", ".join(f"{shortened(key, 40)}={_value(value)}" for key, value in pairs)


def _value(value: object) -> str:
    return shortened(json.dumps(value, ensure_ascii=False), MOST_VALUE_CHARS)
