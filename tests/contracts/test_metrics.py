"""Every metric stands in docs/METRICS.md, which is made from the code."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase

from tests.golden import assert_golden
from tests.monitoring.registry import full_name, own_metrics

PAGE = Path(__file__).parents[2] / "docs" / "METRICS.md"
INTRODUCTION = """\
# Metrics

Each service serves these at `/metrics` on its plain HTTP port, in Prometheus text form; beside them
stand the `process_*` and `python_*` metrics of the client library.

This page is made from the code by `make golden`.

| Metric | Type | Labels | Meaning |
| --- | --- | --- | --- |
"""


def row(metric: MetricWrapperBase) -> str:
    labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "none"
    return f"| `{full_name(metric)}` | {metric._type} | {labels} | {metric._documentation} |\n"


@pytest.mark.golden
def test_the_page_lists_every_metric() -> None:
    assert_golden(PAGE, INTRODUCTION + "".join(row(metric) for metric in own_metrics()))


def test_every_metric_is_described() -> None:
    for metric in own_metrics():
        assert metric._documentation.endswith("."), metric._name
