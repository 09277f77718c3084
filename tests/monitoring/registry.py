"""The metrics that the code registers, and the names of their series."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re

from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from remit.rpc.contracts import AREAS

_SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}
_STRING = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'")
_MATCHERS = re.compile(r"\{[^{}]*\}")
_RANGE = re.compile(r"\[[^\]]*\]")
_GROUPING = re.compile(
    r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)", re.IGNORECASE
)
_WORD = re.compile(r"(?<![\w.:])([a-zA-Z_:][\w:]*)(\s*\()?")
_KEYWORDS = {"and", "or", "unless", "offset", "bool"}


@functools.cache
def own_metrics() -> tuple[MetricWrapperBase, ...]:
    """Every metric that a module of ours registers."""
    for area in ("rpc", "effects", *AREAS):
        package = importlib.import_module(f"remit.{area}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    for name in ("remit.telemetry", "remit.access_recorder"):
        importlib.import_module(name)
    collectors = set(REGISTRY._collector_to_names)
    ours = (c for c in collectors if isinstance(c, MetricWrapperBase))
    return tuple(sorted(ours, key=lambda metric: metric._name))


def full_name(metric: MetricWrapperBase) -> str:
    """The metric's name as Prometheus shows it."""
    name: str = metric._name
    return name + ("_total" if metric._type == "counter" else "")


def series_of(metric: MetricWrapperBase) -> set[str]:
    """The names of a metric's series."""
    return {metric._name + suffix for suffix in _SUFFIXES[str(metric._type)]}


@functools.cache
def own_series() -> dict[str, MetricWrapperBase]:
    """Every series that ours may have, with its metric."""
    return {series: metric for metric in own_metrics() for series in series_of(metric)}


def names_in(expr: str) -> set[str]:
    """The names of the series that a PromQL expression reads.

    What is left of an expression without strings, matchers, ranges and groupings are names: of
    functions, which a parenthesis follows, of keywords, and of series.
    """
    bare = _STRING.sub('""', expr)
    for noise in (_MATCHERS, _RANGE, _GROUPING):
        bare = noise.sub(" ", bare)
    words = [match for match in _WORD.finditer(bare) if not match[2]]
    return {match[1] for match in words if match[1].lower() not in _KEYWORDS} - _durations(bare)


def _durations(bare: str) -> set[str]:
    return set(re.findall(r"\boffset\s+(\w+)", bare))
