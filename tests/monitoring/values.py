"""What a metric gained during a test: the registry is the process's own, so values are compared."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import REGISTRY


def value(series: str, **labels: str) -> float:
    """The value of a series in this process; 0 where it has none yet."""
    return REGISTRY.get_sample_value(series, labels) or 0.0


def gained(series: str, **labels: str) -> Callable[[], float]:
    """What the series has gained since this call."""
    before = value(series, **labels)
    return lambda: value(series, **labels) - before
