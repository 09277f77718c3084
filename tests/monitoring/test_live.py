"""A real Prometheus over a real mesh of several replicas: every panel has data, every metric moves.

Where nothing can be expected of a metric here, it is named with the reason and the test that moves
it instead.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from remit.policy.schema import SHIPPED_POLICIES
from scripts import alerts
from scripts.dashboard_mesh_panels import ROWS
from scripts.dashboard_panels import Panel, Query
from tests.integration.conftest import RunningMesh, started_mesh
from tests.monitoring.load import ENVIRONMENT, POLICY, PRICES, TOOLS, go_through_everything
from tests.monitoring.moved import moves
from tests.monitoring.prometheus import Prometheus, scraping
from tests.monitoring.registry import full_name, names_in, own_metrics, own_series, series_of
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(240)


class Elsewhere(NamedTuple):
    """Why nothing can be expected here, and the test that moves it instead."""

    why: str
    module: str


RULES: Final[tuple[alerts.Record | alerts.Alert, ...]] = (*alerts.RECORDS, *alerts.ALERTS)
QUERIES: Final = [(panel, query) for row in ROWS for panel in row.panels for query in panel.queries]
STILL: Final = {
    "agent_fallbacks_total": Elsewhere(
        "no agent here has a second model", "tests/agent/test_second_model"
    ),
    "remit_hold_extensions_total": Elsewhere(
        "no answer here is longer than a lease", "tests/effects/test_holds"
    ),
    "remit_generations_cut_total": Elsewhere(
        "money, time and permission suffice here", "tests/inference/test_leases"
    ),
    "remit_overrun_nanos_total": Elsewhere(
        "no provider here bills above its bound", "tests/cost/test_metrics"
    ),
    "remit_budget_alerts_total": Elsewhere(
        "no budget here is nearly spent", "tests/cost/test_budgets"
    ),
    "remit_closings_delayed_total": Elsewhere("cost and audit live", "tests/effects/test_metrics"),
    "remit_commit_failures_total": Elsewhere("the database lives", "tests/rpc/test_metrics"),
    "remit_rpc_overloaded_total": Elsewhere("there is room for all", "tests/rpc/test_server"),
    "remit_spans_lost_total": Elsewhere("nothing is traced here", "tests/telemetry/test_export"),
    "remit_ledger_holds_oldest_seconds": Elsewhere(
        "no hold here is older than a minute", "tests/cost/test_hold_watch"
    ),
    "remit_ledger_holds_overdue": Elsewhere("the sweepers live", "tests/cost/test_hold_watch"),
    "remit_audit_tiles_failures_total": Elsewhere(
        "the disk takes what it is given", "tests/audit/test_tile_writer"
    ),
    "remit_audit_archive_failing": Elsewhere(
        "nothing here is a month old", "tests/audit/test_old_months"
    ),
    "remit_ledger_holds_unclaimed": Elsewhere("no claim is lost", "tests/cost/test_hold_watch"),
    "remit_policy_decisions_dropped_total": Elsewhere(
        "the record keeps up with so few decisions", "tests/policy/test_decision_record"
    ),
    "remit_edge_log_entries_total": Elsewhere(
        "the gateway need not refuse anything alone", "tests/audit/test_edge_log"
    ),
    "remit_audit_rolled_back": Elsewhere("no database is restored", "tests/audit/test_guard"),
}
"""Metrics that may stay at 0 here."""
EMPTY: Final = {
    ("Failed model calls by type", "{{gen_ai_request_model}} {{error_type}}"): Elsewhere(
        "no model call fails here", "tests/inference/test_metrics"
    ),
    ("Holds extended by result", "{{result}}"): STILL["remit_hold_extensions_total"],
    ("Generations cut by cause", "{{model}} {{cause}}"): STILL["remit_generations_cut_total"],
    ("Second models by cause", "{{cause}}"): STILL["agent_fallbacks_total"],
    ("Budget alerts of the last day", "{{enforcement}} {{level}}"): STILL[
        "remit_budget_alerts_total"
    ],
    ("Tiles behind the checkpoint", "failed {{reason}}"): STILL["remit_audit_tiles_failures_total"],
    ("What sweepers do", "delayed {{reason}}"): STILL["remit_closings_delayed_total"],
    ("Decisions on record", "dropped {{reason}}"): STILL["remit_policy_decisions_dropped_total"],
    ("RPCs refused as overloaded", "{{method}}"): STILL["remit_rpc_overloaded_total"],
}
"""Queries, by panel and legend, that may find nothing."""
FREE_TEXT: Final = re.compile(r"orgs/|runs/|claims/|users/|[0-9a-f]{8}-[0-9a-f]{4}-")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus, after the mesh that it watches went through everything."""
    folder = tmp_path_factory.mktemp("monitoring")
    (folder / "going_wrong.py").write_text(TOOLS)
    (folder / "prices.yaml").write_text(PRICES)
    (folder / "policies").mkdir()
    (folder / "policies" / "sign.cedar").write_text(POLICY)
    for shipped in SHIPPED_POLICIES.glob("*.cedar"):
        (folder / "policies" / shipped.name).write_text(shipped.read_text())
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    replicas = {"agent": 2, "policy": 2}
    files = {
        "PYTHONPATH": path,
        "REMIT_COST_PRICES_FILE": str(folder / "prices.yaml"),
        "REMIT_POLICY_POLICIES_DIR": str(folder / "policies"),
    }
    with (
        started_mesh(replicas, environment=ENVIRONMENT | files) as mesh,
        scraping(mesh.topology, folder) as prometheus,
    ):
        asyncio.run(_load(mesh, prometheus))
        yield prometheus


async def _load(mesh: RunningMesh, prometheus: Prometheus) -> None:
    await eventually(lambda: _up(prometheus) == _targets(mesh), 30)
    await go_through_everything(mesh, prometheus)
    await eventually(lambda: _up(prometheus) == _targets(mesh), 30)
    # One look of every gauge and one scrape more, so that what has ended is seen to have ended.
    await eventually(lambda: not _values(prometheus, "max(remit_ledger_held_nanos) > 0"), 30)


def _targets(mesh: RunningMesh) -> int:
    return 1 + sum(len(replicas) for replicas in mesh.topology.replicas.values())


def _up(prometheus: Prometheus) -> int:
    return len(_values(prometheus, f'up{{job=~"{alerts.JOBS}"}} == 1'))


def _values(prometheus: Prometheus, expr: str) -> list[float]:
    return [sample.value for sample in prometheus.query(expr)]


@pytest.mark.parametrize(
    ("panel", "query"), QUERIES, ids=[f"{panel.title}: {query.legend}" for panel, query in QUERIES]
)
def test_a_panel_shows_data(watched: Prometheus, panel: Panel, query: Query) -> None:
    found = watched.panel_query(query.expr)
    assert found or (panel.title, query.legend) in EMPTY, query.expr


def test_every_metric_moves(watched: Prometheus) -> None:
    still = {
        full_name(metric)
        for metric in own_metrics()
        if not any(
            _values(watched, f"max(max_over_time({series}[10m])) > 0")
            for series in series_of(metric)
        )
    }
    assert still <= STILL.keys(), "these never were above 0"


@pytest.mark.parametrize("name", STILL)
def test_what_may_stay_still_is_moved_elsewhere(name: str) -> None:
    (metric,) = [metric for metric in own_metrics() if full_name(metric) == name]
    assert moves(series_of(metric), STILL[name].module)


@pytest.mark.parametrize("place", EMPTY, ids=": ".join)
def test_what_may_be_empty_is_filled_elsewhere(place: tuple[str, str]) -> None:
    (query,) = [q for panel, q in QUERIES if (panel.title, q.legend) == place]
    assert moves(names_in(query.expr), EMPTY[place].module)


def test_the_series_of_others_are_real(watched: Prometheus) -> None:
    named = set().union(*(names_in(query.expr) for _, query in QUERIES))
    named |= set().union(*(names_in(record.expr) for record in alerts.RECORDS))
    named |= set().union(*(names_in(alert.expr) for alert in alerts.ALERTS))
    recorded = {record.name for record in alerts.RECORDS}
    others = named - own_series().keys() - recorded
    assert others, "the gateway's at least"
    assert not {name for name in others if not watched.query(f"count({name})")}


def test_the_shipped_rules_are_evaluated(watched: Prometheus) -> None:
    rules = {rule["name"]: rule for rule in watched.rules()}
    assert rules.keys() == {rule.name for rule in RULES}
    assert {rule["health"] for rule in rules.values()} == {"ok"}, rules
    assert rules["RemitEffectsInDoubt"]["state"] == "firing", "an effect is in doubt"
    assert rules["RemitServiceMissing"]["state"] == "inactive"
    assert rules["RemitCertificateExpires"]["state"] == "inactive"


def test_recorded_series_have_data(watched: Prometheus) -> None:
    for record in alerts.RECORDS:
        assert watched.query(f"last_over_time({record.name}[5m])"), record.name


def test_no_label_carries_a_user_or_a_run(watched: Prometheus) -> None:
    for metric in own_metrics():
        for series in series_of(metric):
            for labels in watched.series(series):
                values = {k: v for k, v in labels.items() if k not in {"__name__", "instance"}}
                assert not FREE_TEXT.search(" ".join(values.values())), labels


def test_shared_state_is_the_same_on_each_replica(watched: Prometheus) -> None:
    assert _values(watched, "count(agent_queue_length)") == [2.0]
    assert _values(watched, "max(agent_queue_length) - min(agent_queue_length)") == [0.0]
    assert _values(watched, 'count(remit_ready{area="policy"})') == [2.0]


def test_what_waits_for_people_is_counted_once(watched: Prometheus) -> None:
    """Two replicas of policy read one approval that nobody decided, beside two that ended."""
    assert _values(watched, 'count(remit_approvals_open{state="PENDING"})') == [2.0]
    assert _values(watched, 'max(remit_approvals_open{state="PENDING"})') == [1.0]
    ended = {"PENDING": 3.0, "APPROVED": 1.0, "DENIED": 1.0, "USED": 1.0, "EXPIRED": 0.0}
    for state, count in ended.items():
        assert _values(watched, f'sum(remit_approvals_total{{state="{state}"}})') == [count], state


def test_what_is_counted_twice_agrees(watched: Prometheus) -> None:
    """Counters that replicas keep for themselves sum to one truth, of the replicas that lived."""
    allowed = 'sum(remit_policy_decisions_total{decision="ALLOW",kind="model"})'
    edge = 'sum(remit_edge_authorizations_total{result="CREDENTIAL_INVALID"})'
    assert _values(watched, edge) == [1.0]
    model_effects = 'sum(remit_effects_total{action="models.generate",outcome=~"SUCCEEDED"})'
    assert 0 < _values(watched, model_effects)[0] <= _values(watched, allowed)[0]
    spent = "sum(remit_spent_nanos_total)"
    assert _values(watched, spent)[0] > 0
    assert Path(alerts.FILE).is_file()
