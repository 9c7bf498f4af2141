"""Dashboards as Grafana's JSON, by Grafana's own typed builders: no server was available to check it."""

from __future__ import annotations

import json

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, GridPos, VariableRefresh

from scripts.monitoring.engines_dashboard import ENGINES
from scripts.monitoring.fleet_dashboard import FLEET
from scripts.monitoring.panels import Dashboard, Panel
from scripts.monitoring.service_dashboard import SERVICE

DASHBOARDS = (SERVICE, ENGINES, FLEET)
_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_WIDTH, _HEIGHT, _COLUMNS = 24, 8, 3  # of the grid; of a graph; graphs in a row
_VARIABLES = {
    "namespace": "label_values(completions_build_info, namespace)",
    "release": 'label_values(completions_build_info{namespace=~"$namespace"}, release)',
    "model": 'label_values(completions_ready{namespace=~"$namespace",release=~"$release"}, model)',
}


def to_json(board: Dashboard) -> str:
    """The dashboard as a file that Grafana imports."""
    builder = dashboard.Dashboard(board.title)
    builder.uid(board.uid).description(board.description).tags(["triton-completions"])
    builder.refresh("30s").time("now-1h", "now").tooltip(DashboardCursorSync.CROSSHAIR)
    builder.with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    for name, query in _VARIABLES.items():
        builder.with_variable(_variable(name, query))
    for panel, position in zip(board.panels, positions(board), strict=True):
        builder.with_panel(_panel(panel, position))
    return json.dumps(builder.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def positions(board: Dashboard) -> list[GridPos]:
    """A row of numbers, then rows of graphs: the builder's own layout exceeds the grid's width."""
    numbers = sum(panel.is_number for panel in board.panels)
    row = [GridPos(h=_HEIGHT // 2, w=_WIDTH // numbers, x=_WIDTH // numbers * n, y=0) for n in range(numbers)]
    top, width = _HEIGHT // 2 if numbers else 0, _WIDTH // _COLUMNS
    for number in range(len(board.panels) - numbers):
        line, column = divmod(number, _COLUMNS)
        row.append(GridPos(h=_HEIGHT, w=width, x=width * column, y=top + _HEIGHT * line))
    return row


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    """A list of values with "All", which also matches series without the label."""
    variable = dashboard.QueryVariable(name)
    variable.datasource(_SOURCE).query(query).refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    variable.include_all(True).all_value(".*").multi(True)
    return variable


def _panel(panel: Panel, position: GridPos) -> stat.Panel | timeseries.Panel:
    builder: stat.Panel | timeseries.Panel
    if panel.is_number:
        builder = stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    else:
        builder = timeseries.Panel()
        builder.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode("multi")))
        builder.legend(common.VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode("list")))
        builder.min(0)
    builder.title(panel.title).description(panel.description).datasource(_SOURCE).unit(panel.unit).grid_pos(position)
    for number, (expression, legend) in enumerate(panel.queries):
        query = prometheus.Dataquery().datasource(_SOURCE).ref_id("ABCDEFGH"[number])
        builder.with_target(query.expr(expression).legend_format(legend or panel.title))
    return builder
