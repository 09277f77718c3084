"""Every metric stands in docs/METRICS.md, which is made from the code."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

import remit
from remit.rpc.contracts import AREAS
from tests.golden import assert_golden

PAGE = Path(__file__).parents[2] / "docs" / "METRICS.md"
INTRODUCTION = """\
# Metrics

Each service serves these at `/metrics` on its plain HTTP port, in Prometheus text form; beside them
stand the `process_*` and `python_*` metrics of the client library.

This page is made from the code by `make golden`.

| Metric | Type | Labels | Meaning |
| --- | --- | --- | --- |
"""


def own_metrics() -> list[MetricWrapperBase]:
    """Every metric that a module of ours registers."""
    for area in ("rpc", "effects", *AREAS):
        package = importlib.import_module(f"remit.{area}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    importlib.import_module("remit.telemetry")
    collectors = set(REGISTRY._collector_to_names)
    return sorted(
        (c for c in collectors if isinstance(c, MetricWrapperBase)), key=lambda c: c._name
    )


def row(metric: MetricWrapperBase) -> str:
    name = metric._name + ("_total" if metric._type == "counter" else "")
    labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "none"
    return f"| `{name}` | {metric._type} | {labels} | {metric._documentation} |\n"


@pytest.mark.golden
def test_the_page_lists_every_metric() -> None:
    assert_golden(PAGE, INTRODUCTION + "".join(row(metric) for metric in own_metrics()))


def test_every_metric_is_described() -> None:
    assert remit.__doc__
    for metric in own_metrics():
        assert metric._documentation.endswith("."), metric._name
