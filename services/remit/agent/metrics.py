"""What operators watch: runs by their end, time, tokens, errors, the queue."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

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


def count_ended(run: run_pb2.Run) -> None:
    """Counts a run that ended."""
    state = run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_")
    RUNS.labels(run.agent, state).inc()
    seconds = (run.end_time.ToNanoseconds() - run.create_time.ToNanoseconds()) / 1e9
    RUN_SECONDS.labels(run.agent).observe(max(0.0, seconds))
    TOKENS.labels(run.agent, "input").inc(run.usage.input_tokens)
    TOKENS.labels(run.agent, "output").inc(run.usage.output_tokens)
    if run.state == run_pb2.RUN_STATE_FAILED:
        ERRORS.labels(run.agent, RemitError.from_status(run.error).reason_name).inc()
