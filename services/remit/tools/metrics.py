"""What operators watch of tools: how often each ran, how it ended, how long it took."""

from __future__ import annotations

import functools
from typing import Final

from prometheus_client import Counter, Histogram

TOOL_CALLS: Final = Counter(
    "remit_tool_calls_total", "Tool calls that ran, by tool and outcome.", ["tool", "outcome"]
)
TOOL_SECONDS: Final = Histogram(
    "remit_tool_seconds",
    "Time that a tool ran, in seconds.",
    ["tool"],
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 50),
)


def count_call(tool: str, outcome: str, seconds: float) -> None:
    """Counts a call that ran. Tools are those of the registry, so they are few."""
    _calls(tool, outcome).inc()
    _seconds(tool).observe(seconds)


@functools.cache
def _calls(tool: str, outcome: str) -> Counter:
    return TOOL_CALLS.labels(tool, outcome)


@functools.cache
def _seconds(tool: str) -> Histogram:
    return TOOL_SECONDS.labels(tool)
