"""What the dashboard "AI Agent Production Metrics" shows: its rows, panels and PromQL.

Plain data; `scripts/dashboard.py` gives it Grafana's form. Each panel says what to do when it looks
wrong. Gauges that every replica reads from one database are taken as a maximum, what replicas count
for themselves as a sum. `$agent` narrows a panel to some agents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

USD_PER_NANO: Final = "1e9"
REQUESTS_PER_S: Final = "reqps"
OPERATIONS_PER_S: Final = "ops"
SECONDS: Final = "s"
COUNT: Final = "short"
SHARE: Final = "percentunit"
DOLLARS: Final = "currencyUSD"
BYTES: Final = "bytes"
TOKENS_PER_S: Final = "suffix: tok/s"
TOKENS: Final = "suffix: tok"

_QUANTILES: Final = (0.5, 0.95, 0.99)
_AGENT: Final = 'agent=~"$agent"'
_RATE: Final = "[$__rate_interval]"


@dataclass(frozen=True)
class Query:
    """One PromQL expression and the legend of its series."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel. `unit` is Grafana's name of the unit."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    most: float | None = None
    """Where given, the value from which the panel is red."""
    full_scale: float | None = None


@dataclass(frozen=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


def rate(metric: str, by: str, *, where: str = "") -> str:
    """The rate of a counter, summed over replicas."""
    return f"sum by ({by}) (rate({metric}{_selector(where)}{_RATE}))"


def quantile(share: float, histogram: str, *, by: str = "", where: str = "") -> str:
    """A quantile of a histogram over all replicas."""
    labels = f"le, {by}" if by else "le"
    buckets = f"rate({histogram}_bucket{_selector(where)}{_RATE})"
    return f"histogram_quantile({share}, sum by ({labels}) ({buckets}))"


def quantiles(
    histogram: str, *, by: str = "", where: str = "", shares: Sequence[float] = _QUANTILES
) -> tuple[Query, ...]:
    """The median and the tail of a histogram, a series for each value of `by`."""
    name = f"{{{{{by}}}}} " if by else ""
    return tuple(
        Query(quantile(share, histogram, by=by, where=where), f"{name}p{round(share * 100)}")
        for share in shares
    )


def by_service(expr: str) -> str:
    """The series with the label `service`, taken from the RPC's path."""
    return f'label_replace({expr}, "service", "$1", "method", "/(?:.+[.])?([^.]+)/.+")'


def _selector(where: str) -> str:
    return f"{{{where}}}" if where else ""


RUNS: Final = Row(
    "Runs",
    (
        Panel(
            "Request rate by status",
            "Runs that were accepted and that ended, by final state. FAILED rising: see `Errors by"
            " type`. Accepted above ended for long: the queue grows.",
            REQUESTS_PER_S,
            (
                Query(rate("agent_requests_total", "state", where=_AGENT), "{{state}}"),
                Query(f"sum(rate(agent_runs_created_total{{{_AGENT}}}{_RATE}))", "accepted"),
            ),
        ),
        Panel(
            "Latency p50, p95, p99",
            "Time from a run's creation to its end. When it rises, look where it goes: queue,"
            " model calls, time per tool, time to start an effect, commits.",
            SECONDS,
            quantiles("agent_execution_seconds", where=_AGENT),
        ),
        Panel(
            "Token consumption by type",
            "Tokens that ended runs used. A jump without more requests is a prompt that grew or an"
            " agent that loops: see model calls per run.",
            TOKENS_PER_S,
            (Query(rate("agent_tokens_total", "kind", where=_AGENT), "{{kind}}"),),
        ),
        Panel(
            "Errors by type",
            "Runs that failed, by ErrorReason. docs/ERRORS.md says of each what to do.",
            REQUESTS_PER_S,
            (Query(rate("agent_errors_total", "reason", where=_AGENT), "{{reason}}"),),
        ),
        Panel(
            "Success rate",
            "Share of ended runs that succeeded; cancelled runs count as ended.",
            SHARE,
            (
                Query(
                    f'sum(rate(agent_requests_total{{state="SUCCEEDED",{_AGENT}}}{_RATE}))'
                    f" / sum(rate(agent_requests_total{{{_AGENT}}}{_RATE}))",
                    "succeeded",
                ),
            ),
            full_scale=1,
        ),
    ),
)

INPUT: Final = Row(
    "Input",
    (
        Panel(
            "Refused requests by input and reason",
            "Requests for runs that were refused, by the field at fault. One client that sends"
            " rubbish shows here; OVERLOADED means that the queue of runs is full.",
            REQUESTS_PER_S,
            (Query(rate("agent_input_errors_total", "field, reason"), "{{field}} {{reason}}"),),
        ),
        Panel(
            "Request complexity: characters",
            "Characters of task and context of accepted requests. It explains a change of tokens"
            " and latency that no deployment explains.",
            COUNT,
            quantiles("agent_task_characters", where=_AGENT),
        ),
        Panel(
            "Request complexity: context entries",
            "Entries of the context of accepted requests.",
            COUNT,
            quantiles("agent_context_entries", where=_AGENT),
        ),
        Panel(
            "Input tokens of a model call",
            "Prompt of one model call, by model. It grows with each turn of a run.",
            TOKENS,
            quantiles(
                "gen_ai_client_token_usage",
                by="gen_ai_request_model",
                where='gen_ai_token_type="input"',
                shares=(0.5, 0.95),
            ),
        ),
    ),
)

PROCESSING: Final = Row(
    "Processing",
    (
        Panel(
            "Queue and runs at work",
            "Runs that wait for a worker (one queue for all replicas) and runs being worked on."
            " A queue that does not go down needs more agent replicas, or a faster model.",
            COUNT,
            (
                Query("max(agent_queue_length)", "queued"),
                Query("sum(agent_running)", "at work"),
            ),
            most=10,
        ),
        Panel(
            "Waiting runs by reason",
            "Runs that wait to try a step again, by the reason that made them wait. An outage of a"
            " provider or a service shows here. Runs that wait for people are under `Approvals that"
            " wait`.",
            COUNT,
            (Query("sum by (reason) (agent_runs_waiting)", "{{reason}}"),),
        ),
        Panel(
            "Calls of a run",
            "Model and tool calls of one run. A rising p95 is an agent that loops: lower its"
            " max_steps.",
            COUNT,
            quantiles("agent_calls", by="kind", where=_AGENT, shares=(0.5, 0.95)),
        ),
        Panel(
            "Second models by cause",
            "Steps that asked the agent's fallback, by cause: the first model FAILED, TIMED_OUT or"
            " had LOW_CONFIDENCE. Rising: look at the first model's provider.",
            REQUESTS_PER_S,
            (Query(rate("agent_fallbacks_total", "cause", where=_AGENT), "{{cause}}"),),
        ),
        Panel(
            "Results by kind",
            "Results of runs: an ANSWER, an ABSTENTION of an agent that was not sure enough, or a"
            " CANNED answer because every model failed.",
            REQUESTS_PER_S,
            (Query(rate("agent_answers_total", "kind", where=_AGENT), "{{kind}}"),),
        ),
        Panel(
            "Model calls by model",
            "Time of one model call. Slow here and nowhere else: the provider.",
            SECONDS,
            quantiles("gen_ai_client_operation_duration_seconds", by="gen_ai_request_model"),
        ),
        Panel(
            "Time to first chunk",
            "Time until a model's answer began to come. Rising: the model waits for its GPU or in"
            " its provider's queue, or prompts grew. If only `Model calls by model` rises, answers"
            " grew, or come more slowly.",
            SECONDS,
            quantiles(
                "gen_ai_client_operation_time_to_first_chunk_seconds",
                by="gen_ai_request_model",
                shares=(0.5, 0.95),
            ),
        ),
        Panel(
            "Failed model calls by type",
            "Model calls that failed, by model and ErrorReason: the provider, or its limits.",
            OPERATIONS_PER_S,
            (
                Query(
                    rate(
                        "gen_ai_client_operation_duration_seconds_count",
                        "gen_ai_request_model, error_type",
                        where='error_type!=""',
                    ),
                    "{{gen_ai_request_model}} {{error_type}}",
                ),
            ),
        ),
        Panel(
            "Token generation rate",
            "Output tokens of one model call by its time. Falling: the provider or the GPU is"
            " overloaded.",
            TOKENS_PER_S,
            quantiles("remit_generation_tokens_per_second", by="model", shares=(0.5, 0.05)),
        ),
        Panel(
            "Tool calls by tool and outcome",
            "Tool calls that ran. IN_DOUBT: nobody knows whether it took effect; ask the world.",
            OPERATIONS_PER_S,
            (Query(rate("remit_tool_calls_total", "tool, outcome"), "{{tool}} {{outcome}}"),),
        ),
        Panel(
            "Time per tool",
            "Time that each tool ran.",
            SECONDS,
            quantiles("remit_tool_seconds", by="tool", shares=(0.5, 0.95)),
        ),
        Panel(
            "Runs taken by origin",
            "`queue` is ordinary. `orphan` is a run whose worker died or stalled: many of them at"
            " once mean that agent replicas crash or are starved of processor time.",
            OPERATIONS_PER_S,
            (Query(rate("agent_runs_claimed_total", "origin"), "{{origin}}"),),
        ),
    ),
)

OUTPUT: Final = Row(
    "Output",
    (
        Panel(
            "Output tokens of a model call",
            "Answer of one model call, by model.",
            TOKENS,
            quantiles(
                "gen_ai_client_token_usage",
                by="gen_ai_request_model",
                where='gen_ai_token_type="output"',
                shares=(0.5, 0.95),
            ),
        ),
        Panel(
            "Post-processing time",
            "From the end of the last model turn until the run's end is committed. Rising with"
            " `Commit time`: the database.",
            SECONDS,
            quantiles("agent_post_processing_seconds", where=_AGENT),
        ),
        Panel(
            "Webhooks",
            "Tries to tell the end of a run, and webhooks that were delivered or given up. Whose"
            " they are: `webhook_failed` in agent's log.",
            OPERATIONS_PER_S,
            (
                Query(rate("agent_webhook_tries_total", "outcome"), "try {{outcome}}"),
                Query(rate("agent_webhooks_total", "state"), "{{state}}"),
            ),
        ),
        Panel(
            "Time until a run's end was told",
            "From a run's end until its webhook was delivered or given up.",
            SECONDS,
            quantiles("agent_webhook_seconds", by="state", shares=(0.5, 0.95)),
        ),
    ),
)
