"""The names of series are found in any expression that the panels and rules use."""

from __future__ import annotations

import pytest

from tests.monitoring.registry import names_in

EXPRESSIONS = {
    "up": {"up"},
    'sum by (a, b) (rate(x_total{c=~"y|z",d!=""}[5m]))': {"x_total"},
    "max(a) - max(b) > 0 unless sum(c) > 0": {"a", "b", "c"},
    "histogram_quantile(0.95, sum by (le) (rate(h_bucket[$__rate_interval])))": {"h_bucket"},
    "a offset 5m and on (job, instance) b": {"a", "b"},
    'label_replace(rate(r_total[1m]), "service", "$1", "method", "/(.+)/.+")': {"r_total"},
    "agent:x_y:rate5m / 1e9 * 3600": {"agent:x_y:rate5m"},
    "time() - max(t_seconds) > 7 * 86400": {"t_seconds"},
    'absent(r{area="a"}) or absent(r{area="b"})': {"r"},
}


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_series_are_found(expr: str) -> None:
    assert names_in(expr) == EXPRESSIONS[expr]
