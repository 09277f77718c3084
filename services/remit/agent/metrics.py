"""What operators watch of runs: what comes in, how it is worked on, what comes out.

Counters are each replica's own, and a run is counted by the replica that ends it. The length of the
queue is read from the database that all replicas share: there take the maximum over replicas.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from prometheus_client import Counter, Gauge, Histogram

from remit import telemetry
from remit.agent.journal import Turn
from remit.api.agent.v1 import agent_service_pb2, confidence_pb2, run_pb2
from remit.api.usage.v1 import usage_pb2
from remit.rpc.errors import RemitError
from remit.telemetry.logs import own_text

# ------------------------------------------------------------------------------------------ input

CREATED: Final = Counter(
    "agent_runs_created_total", "Requests for runs that were accepted, by agent.", ["agent"]
)
TASK_CHARACTERS: Final = Histogram(
    "agent_task_characters",
    "Characters of an accepted request's task and context, by agent: how complex requests are.",
    ["agent"],
    buckets=(10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 510_000),
)
CONTEXT_ENTRIES: Final = Histogram(
    "agent_context_entries",
    "Entries of an accepted request's context, by agent.",
    ["agent"],
    buckets=(0, 1, 2, 5, 10, 20, 50),
)
INPUT_ERRORS: Final = Counter(
    "agent_input_errors_total",
    "Faults of requests for runs that were refused, by the field at fault (`request` where it is"
    " no single one) and reason.",
    ["field", "reason"],
)

# ------------------------------------------------------------------------------------- processing

RUN_SECONDS: Final = Histogram(
    "agent_execution_seconds",
    "Time from a run's creation to its end, in seconds.",
    ["agent"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600),
)
CALLS: Final = Histogram(
    "agent_calls",
    "Model and tool calls of a run that ended, by agent and kind (model, tool).",
    ["agent", "kind"],
    buckets=(0, 1, 2, 3, 5, 10, 20, 50, 100),
)
QUEUE_LENGTH: Final = Gauge(
    "agent_queue_length", "Runs that wait for a worker; the same on each replica."
)
RUNNING: Final = Gauge("agent_running", "Runs that this replica works on.")
WAITING: Final = Gauge(
    "agent_runs_waiting",
    "Runs that this replica works on and that wait to try a step again, by reason.",
    ["reason"],
)
CLAIMED: Final = Counter(
    "agent_runs_claimed_total",
    "Runs that this replica took, by origin: `queue`, or `orphan` whose worker was gone.",
    ["origin"],
)

# ----------------------------------------------------------------------------------------- output

RUNS: Final = Counter(
    "agent_requests_total", "Runs that ended, by agent and final state.", ["agent", "state"]
)
TOKENS: Final = Counter(
    "agent_tokens_total", "Tokens that runs used, by agent and kind.", ["agent", "kind"]
)
ERRORS: Final = Counter(
    "agent_errors_total", "Runs that failed, by agent and reason.", ["agent", "reason"]
)
FALLBACKS: Final = Counter(
    "agent_fallbacks_total",
    "Steps of ended runs that asked a second model, by agent and cause (FAILED, TIMED_OUT,"
    " LOW_CONFIDENCE).",
    ["agent", "cause"],
)
ANSWERS: Final = Counter(
    "agent_answers_total",
    "Results of runs, by agent and kind: ANSWER, ABSTENTION where the agent was not sure enough,"
    " CANNED where every model failed.",
    ["agent", "kind"],
)
POST_PROCESSING_SECONDS: Final = Histogram(
    "agent_post_processing_seconds",
    "Time from the end of a run's last model turn until its end was committed, in seconds: what"
    " the answer waited for after the model had given it.",
    ["agent"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)

WEBHOOK_TRIES: Final = Counter(
    "agent_webhook_tries_total",
    "Tries to tell the end of a run, by outcome (delivered, failed).",
    ["outcome"],
)
WEBHOOKS: Final = Counter(
    "agent_webhooks_total", "Webhooks that were delivered or given up, by state.", ["state"]
)
WEBHOOK_SECONDS: Final = Histogram(
    "agent_webhook_seconds",
    "Time from a run's end until its webhook was delivered or given up, in seconds.",
    ["state"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300, 3600, 21_600, 86_400),
)

# A series that appears with its first event hides that event from `increase`.
for _origin in ("queue", "orphan"):
    CLAIMED.labels(_origin)
for _outcome in ("delivered", "failed"):
    WEBHOOK_TRIES.labels(_outcome)
for _state in ("DELIVERED", "FAILED"):
    WEBHOOKS.labels(_state)
    WEBHOOK_SECONDS.labels(_state)

_FIELDS: Final = frozenset(agent_service_pb2.CreateRunRequest.DESCRIPTOR.fields_by_name)

log = telemetry.logger(__name__)


class _Series(NamedTuple):
    """The series of one agent; agents are those of the catalogue, so they are few."""

    created: Counter
    task_characters: Histogram
    context_entries: Histogram
    seconds: Histogram
    model_calls: Histogram
    tool_calls: Histogram
    input_tokens: Counter
    cached_input_tokens: Counter
    output_tokens: Counter
    post_processing_seconds: Histogram


@functools.cache
def _series(agent: str) -> _Series:
    return _Series(
        CREATED.labels(agent),
        TASK_CHARACTERS.labels(agent),
        CONTEXT_ENTRIES.labels(agent),
        RUN_SECONDS.labels(agent),
        CALLS.labels(agent, "model"),
        CALLS.labels(agent, "tool"),
        TOKENS.labels(agent, "input"),
        TOKENS.labels(agent, "cached_input"),
        TOKENS.labels(agent, "output"),
        POST_PROCESSING_SECONDS.labels(agent),
    )


def count_created(run: run_pb2.Run) -> None:
    """Counts a run that was accepted, and how complex its request is."""
    series = _series(run.agent)
    given = sum(len(key) + len(value) for key, value in run.context.items())
    series.created.inc()
    series.task_characters.observe(len(run.task) + given)
    series.context_entries.observe(len(run.context))


@contextlib.contextmanager
def refusals_counted() -> Iterator[None]:
    """Counts the faults of a request for a run that the body refuses."""
    try:
        yield
    except RemitError as error:
        for field in _fields_at_fault(error):
            INPUT_ERRORS.labels(field, error.reason_name).inc()
        raise


def _fields_at_fault(error: RemitError) -> set[str]:
    """The request's own fields at fault: what lies below them is the client's to name."""
    tops = {violation.field.split(".")[0].split("[")[0] for violation in error.violations}
    return {top if top in _FIELDS else "request" for top in tops or {"request"}}


def count_claimed(are_orphans: Iterable[bool]) -> None:
    """Counts runs that were taken, each by whether its worker was gone."""
    for is_orphan in are_orphans:
        CLAIMED.labels("orphan" if is_orphan else "queue").inc()


def count_webhook_try(outcome: str) -> None:
    """Counts a try to tell a run's end: `delivered` or `failed`."""
    WEBHOOK_TRIES.labels(outcome).inc()


def count_webhook_ended(state: str, age_s: float) -> None:
    """Counts a webhook that is `DELIVERED` or `FAILED`, `age_s` after its run's end."""
    WEBHOOKS.labels(state).inc()
    WEBHOOK_SECONDS.labels(state).observe(age_s)


@contextlib.contextmanager
def waiting_for(reason: str) -> Iterator[None]:
    """Counts a run as waiting for this reason during the body."""
    series = WAITING.labels(reason)
    series.inc()
    try:
        yield
    finally:
        series.dec()


def count_ended(
    run: run_pb2.Run, turns: Sequence[Turn], events: Sequence[run_pb2.RunEvent], now: datetime
) -> None:
    """Counts and logs a run of these turns that ended with these events, committed at `now`."""
    state = run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_")
    # What a fork took over was counted where it was done.
    tool_calls = sum(not call.inherited for turn in turns for call in turn.calls)
    _log_ended(run, state, tool_calls)
    series = _series(run.agent)
    RUNS.labels(run.agent, state).inc()
    series.seconds.observe(_seconds(run))
    below = _of_sub_runs(turns)  # which count their own
    series.input_tokens.inc(run.usage.input_tokens - below.input_tokens)
    series.cached_input_tokens.inc(run.usage.cached_input_tokens - below.cached_input_tokens)
    series.output_tokens.inc(run.usage.output_tokens - below.output_tokens)
    series.model_calls.observe(sum(turn.model_calls for turn in turns))
    series.tool_calls.observe(tool_calls)
    if run.state == run_pb2.RUN_STATE_FAILED:
        ERRORS.labels(run.agent, RemitError.from_status(run.error).reason_name).inc()
    _count_answer(run, turns)
    for event in events:
        if event.WhichOneof("event") == "model_call_ended":
            after_s = (now - event.event_time.ToDatetime(UTC)).total_seconds()
            series.post_processing_seconds.observe(max(0.0, after_s))


def _count_answer(run: run_pb2.Run, turns: Sequence[Turn]) -> None:
    """Counts which models were asked beside the agent's own, and what came of it."""
    for fallback in (turn.fallback for turn in turns if turn.fallback is not None):
        cause = run_pb2.FallbackCause.Name(fallback.cause).removeprefix("FALLBACK_CAUSE_")
        FALLBACKS.labels(run.agent, cause).inc()
    if run.confidence.kind:
        kind = confidence_pb2.AnswerKind.Name(run.confidence.kind).removeprefix("ANSWER_KIND_")
        ANSWERS.labels(run.agent, kind).inc()


def _of_sub_runs(turns: Sequence[Turn]) -> usage_pb2.Usage:
    """What of a run's usage its sub-runs used."""
    used = usage_pb2.Usage()
    for call in (call for turn in turns for call in turn.calls):
        if call.run and call.ended is not None:
            used.input_tokens += call.ended.usage.input_tokens
            used.cached_input_tokens += call.ended.usage.cached_input_tokens
            used.output_tokens += call.ended.usage.output_tokens
    return used


def _seconds(run: run_pb2.Run) -> float:
    nanos = run.end_time.ToNanoseconds() - run.create_time.ToNanoseconds()
    return max(0.0, nanos / 1e9)


def _log_ended(run: run_pb2.Run, state: str, tool_calls: int) -> None:
    facts = {
        "run": run.name,
        "agent": run.agent,
        "user": run.subject,
        "state": state,
        "success": run.state == run_pb2.RUN_STATE_SUCCEEDED,
        "duration_s": round(_seconds(run), 6),
        "tool_calls": tool_calls,
        "output_tokens": run.usage.output_tokens,
        "cost_nanos": run.cost_nanos,
    }
    if run.state == run_pb2.RUN_STATE_FAILED:
        error = RemitError.from_status(run.error)
        log.warning(
            "agent_execution_failed", error_type=error.reason_name, error=own_text(error), **facts
        )
    else:
        log.info("agent_execution_completed", **facts)
