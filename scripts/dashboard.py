"""Renders the Grafana dashboard "AI Agent Production Metrics" from its panels.

The JSON is a golden file: nobody edits it, `make golden` renews it, and a dashboard that somebody
changed in Grafana is changed here instead. It is of Grafana's classic schema, which Grafana 10 and
later import.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphTresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from scripts.dashboard_mesh_panels import ROWS
from scripts.dashboard_panels import Panel, Row

ROOT: Final = Path(__file__).resolve().parents[1]
FILE: Final = ROOT / "k8s/components/observability/dashboards" / "ai-agent-production-metrics.json"
TITLE: Final = "AI Agent Production Metrics"
UID: Final = "ai-agent-production-metrics"

_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
_COLUMNS: Final = 24
_HEIGHT: Final = 8
_FILL_PERCENT: Final = 10


def rendered() -> str:
    """The dashboard as JSON."""
    built = _dashboard().build()
    return json.dumps(built, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _dashboard() -> dashboard.Dashboard:
    board = (
        dashboard.Dashboard(TITLE)
        .uid(UID)
        .description("Runs, effects, money and the mesh of Remit; see docs/MONITORING.md.")
        .tags(["remit", "ai-agents"])
        .timezone("browser")
        .readonly()
        .refresh("30s")
        .time("now-1h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(_datasource())
        .with_variable(_agent())
    )
    ids = itertools.count(1)
    for row in ROWS:
        _add_row(board, row, ids)
    return board


def _datasource() -> dashboard.DatasourceVariable:
    return dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")


def _agent() -> dashboard.QueryVariable:
    everything = VariableOption(selected=True, text="All", value="$__all")
    return (
        dashboard.QueryVariable("agent")
        .label("Agent")
        .datasource(_SOURCE)
        .query("label_values(agent_runs_created_total, agent)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".*")
        .current(everything)
    )


def _add_row(board: dashboard.Dashboard, row: Row, ids: Iterator[int]) -> None:
    board.with_row(dashboard.Row(row.title).id(next(ids)))
    for index, panel in enumerate(row.panels):
        width = _width(index, len(row.panels))
        board.with_panel(_panel(panel).id(next(ids)).span(width).height(_HEIGHT))


def _width(index: int, count: int) -> int:
    """Columns of the panel at `index` of `count`: lines of three, the last ones shared evenly."""
    left_over = count % 3
    if left_over == 0 or index < count - left_over:
        return _COLUMNS // 3
    return _COLUMNS // left_over


def _panel(panel: Panel) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.description)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .min(0)
        .fill_opacity(_FILL_PERCENT)
        .show_points(VisibilityMode.AUTO)
        .legend(_legend())
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if panel.full_scale is not None:
        built.max(panel.full_scale)
    if panel.most is not None:
        _mark_red(built, panel.most)
    for number, query in enumerate(panel.queries):
        built.with_target(
            prometheus.Dataquery()
            .ref_id(chr(ord("A") + number))
            .datasource(_SOURCE)
            .expr(query.expr)
            .legend_format(query.legend)
            .range()
        )
    return built


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(show_legend=True)
    )


def _mark_red(built: timeseries.Panel, most: float) -> None:
    steps = [Threshold(value=None, color="green"), Threshold(value=most, color="red")]
    built.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    built.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED))
