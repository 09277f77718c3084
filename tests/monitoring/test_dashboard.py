"""The dashboard is the one that the code describes, complete, and reads only what there is."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

from scripts import alerts, dashboard
from scripts.dashboard_mesh_panels import ROWS
from scripts.dashboard_panels import Panel
from tests.golden import assert_golden
from tests.monitoring.registry import full_name, names_in, own_metrics, own_series

PANELS = tuple(panel for row in ROWS for panel in row.panels)
FEATURES = {
    "Request rate by status": {"agent_requests_total", "agent_runs_created_total"},
    "Latency p50, p95, p99": {"agent_execution_seconds_bucket"},
    "Token consumption by type": {"agent_tokens_total"},
    "Errors by type": {"agent_errors_total"},
    "Queue and runs at work": {"agent_queue_length", "agent_running"},
    "Waiting runs by reason": {"agent_runs_waiting"},
    "Approvals that wait": {"remit_approvals_open"},
    "Approvals by what they became": {"remit_approvals_total"},
    "Time until people decide": {"remit_approval_decision_seconds_bucket"},
    "Time to first chunk": {"gen_ai_client_operation_time_to_first_chunk_seconds_bucket"},
    "Effects in doubt": {"remit_effects_total", "remit_claims_lapsed_total"},
    "Open holds": {"remit_holds_open"},
    "Spend per hour by item": {"remit_spent_nanos_total"},
    "Audit lag": {"remit_effects_standing_oldest_seconds"},
    "RPC latency p95 by service": {"remit_rpc_seconds_bucket"},
    "RPC errors by service and code": {"remit_rpc_requests_total"},
    "Group commit: commits": {"remit_commit_items_count"},
    "Circuit breakers open": {
        "envoy_cluster_circuit_breakers_default_rq_open",
        "envoy_cluster_circuit_breakers_high_rq_open",
        "envoy_cluster_circuit_breakers_default_rq_pending_open",
        "envoy_cluster_circuit_breakers_high_rq_pending_open",
    },
    "Calls refused by breakers": {
        "envoy_cluster_upstream_rq_active_overflow",
        "envoy_cluster_upstream_rq_pending_overflow",
    },
    "Retries by cluster": {
        "envoy_cluster_upstream_rq_retry",
        "envoy_cluster_upstream_rq_retry_overflow",
    },
}
"""What somebody who was promised this dashboard looks for first."""

OTHERS = re.compile(r"(envoy|process)_\w+|up")
"""Series that are not ours; test_live.py finds each of them in a real scrape."""


def names_of(panel: Panel) -> set[str]:
    return set().union(*(names_in(query.expr) for query in panel.queries))


@pytest.mark.golden
def test_the_dashboard_is_rendered_from_its_panels() -> None:
    assert_golden(dashboard.FILE, dashboard.rendered())


@pytest.mark.parametrize("title", FEATURES)
def test_what_was_promised_is_on_a_panel(title: str) -> None:
    (panel,) = [panel for panel in PANELS if panel.title == title]
    assert names_of(panel) == FEATURES[title]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_a_panel_tells_what_it_shows(panel: Panel) -> None:
    assert panel.description.endswith(".")
    assert panel.unit
    assert all(query.legend for query in panel.queries)
    assert not {n for n in names_of(panel) if n not in own_series() and not OTHERS.fullmatch(n)}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_a_legend_names_labels_that_its_query_keeps(panel: Panel) -> None:
    for query in panel.queries:
        asked = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
        kept = set(itertools.chain(*map(_split, re.findall(r"by \(([^)]*)\)", query.expr))))
        assert asked <= kept | {"job", "instance"}, query.legend


def test_every_metric_of_ours_is_shown() -> None:
    shown = set().union(*(names_of(panel) for panel in PANELS))
    shown |= set().union(*(names_in(record.expr) for record in alerts.RECORDS))
    shown |= set().union(*(names_in(alert.expr) for alert in alerts.ALERTS))
    known = own_series()
    hidden = {full_name(metric) for metric in own_metrics()}
    hidden -= {full_name(known[name]) for name in shown if name in known}
    assert not hidden, "put these on a panel or into a rule"


def test_titles_are_unique() -> None:
    titles = [panel.title for panel in PANELS]
    assert len(set(titles)) == len(titles)


def test_the_json_is_one_that_grafana_reads() -> None:
    board = json.loads(dashboard.rendered())
    panels: list[dict[str, Any]] = board["panels"]
    assert board["title"] == "AI Agent Production Metrics"
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "agent"}
    ids = [panel["id"] for panel in panels]
    assert ids == list(range(1, len(ids) + 1))
    shown = [panel for panel in panels if panel["type"] != "row"]
    assert [panel["title"] for panel in shown] == [panel.title for panel in PANELS]
    for panel in shown:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert [target["refId"] for target in panel["targets"]] == list(
            "ABCDEF"[: len(panel["targets"])]
        )


def test_panels_fill_their_lines_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(dashboard.rendered())["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    height = max(y for _, y in taken) + 1
    assert len(taken) == 24 * height


def _split(labels: str) -> list[str]:
    return [label.strip() for label in labels.split(",")]
