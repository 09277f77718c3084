"""What operators watch: runs by their end, time, tokens, errors, the queue."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from remit import telemetry
from remit.api.agent.v1 import run_pb2
from remit.rpc.errors import RemitError

RUNS: Final = Counter(
    "agent_requests_total", "Runs that ended, by agent and final state.", ["agent", "state"]
)
RUN_SECONDS: Final = Histogram(
    "agent_execution_seconds",
    "Time from a run's creation to its end, in seconds.",
    ["agent"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600),
)
TOKENS: Final = Counter(
    "agent_tokens_total", "Tokens that runs used, by agent and kind.", ["agent", "kind"]
)
ERRORS: Final = Counter(
    "agent_errors_total", "Runs that failed, by agent and reason.", ["agent", "reason"]
)
QUEUE_LENGTH: Final = Gauge("agent_queue_length", "Runs that wait for a worker.")
RUNNING: Final = Gauge("agent_running", "Runs that this replica works on.")
ADOPTED: Final = Counter("agent_runs_claimed_total", "Runs taken from the queue or adopted.")

log = telemetry.logger(__name__)


def count_ended(run: run_pb2.Run) -> None:
    """Counts and logs a run that ended."""
    state = run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_")
    _log_ended(run, state)
    RUNS.labels(run.agent, state).inc()
    RUN_SECONDS.labels(run.agent).observe(_seconds(run))
    TOKENS.labels(run.agent, "input").inc(run.usage.input_tokens)
    TOKENS.labels(run.agent, "output").inc(run.usage.output_tokens)
    if run.state == run_pb2.RUN_STATE_FAILED:
        ERRORS.labels(run.agent, RemitError.from_status(run.error).reason_name).inc()


def _seconds(run: run_pb2.Run) -> float:
    nanos = run.end_time.ToNanoseconds() - run.create_time.ToNanoseconds()
    return max(0.0, nanos / 1e9)


def _log_ended(run: run_pb2.Run, state: str) -> None:
    facts = {
        "run": run.name,
        "agent": run.agent,
        "state": state,
        "duration_s": round(_seconds(run), 6),
        "calls": run.usage.calls,
        "output_tokens": run.usage.output_tokens,
        "cost_nanos": run.cost_nanos,
    }
    if run.state == run_pb2.RUN_STATE_FAILED:
        error = RemitError.from_status(run.error)
        log.warning(
            "agent_execution_failed", reason=error.reason_name, error=error.message, **facts
        )
    else:
        log.info("agent_execution_completed", **facts)
