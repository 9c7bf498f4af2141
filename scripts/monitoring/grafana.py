"""Dashboards as the JSON that Grafana imports.

The fields are those that Grafana's own builder writes (grafana-foundation-sdk 10.1, which needs Python 3.11).
"""

from __future__ import annotations

import json
from typing import Any

from scripts.monitoring.engines_dashboard import ENGINES
from scripts.monitoring.fleet_dashboard import FLEET
from scripts.monitoring.panels import Dashboard, Panel
from scripts.monitoring.service_dashboard import SERVICE

DASHBOARDS = (SERVICE, ENGINES, FLEET)
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_SCHEMA_VERSION = 36  # of dashboards; later Grafanas migrate it
_ON_TIME_RANGE_CHANGED = 2
_WIDTH, _HEIGHT, _COLUMNS = 24, 8, 3  # of the grid; of a graph; graphs in a row
_VARIABLES = {
    "namespace": "label_values(completions_build_info, namespace)",
    "release": 'label_values(completions_build_info{namespace=~"$namespace"}, release)',
    "model": 'label_values(completions_ready{namespace=~"$namespace",release=~"$release"}, model)',
}
_NUMBER_OPTIONS = {
    "colorMode": "value",
    "graphMode": "area",
    "justifyMode": "auto",
    "orientation": "auto",
    "reduceOptions": {"calcs": ["lastNotNull"]},
    "textMode": "auto",
}
_GRAPH_OPTIONS = {
    "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
    "tooltip": {"mode": "multi", "sort": "desc"},
}


def to_json(board: Dashboard) -> str:
    """The dashboard as a file that Grafana imports."""
    places = _places(board)
    panels = [_panel(number, panel, places[number]) for number, panel in enumerate(board.panels)]
    source = {"label": "Prometheus", "name": "datasource", "query": "prometheus", "type": "datasource"}
    document = {
        "description": board.description,
        "editable": True,
        "graphTooltip": 1,  # one crosshair for all panels
        "panels": panels,
        "refresh": "30s",
        "schemaVersion": _SCHEMA_VERSION,
        "tags": ["triton-completions"],
        "templating": {"list": [source, *(_variable(name, query) for name, query in _VARIABLES.items())]},
        "time": {"from": "now-1h", "to": "now"},
        "title": board.title,
        "uid": board.uid,
    }
    return json.dumps(document, indent=1) + "\n"


def _places(board: Dashboard) -> list[dict[str, int]]:
    """A row of numbers, then rows of graphs."""
    numbers = sum(panel.is_number for panel in board.panels)
    places = [
        {"h": _HEIGHT // 2, "w": _WIDTH // numbers, "x": _WIDTH // numbers * number, "y": 0}
        for number in range(numbers)
    ]
    top, width = _HEIGHT // 2 if numbers else 0, _WIDTH // _COLUMNS
    for number in range(len(board.panels) - numbers):
        line, column = divmod(number, _COLUMNS)
        places.append({"h": _HEIGHT, "w": width, "x": width * column, "y": top + _HEIGHT * line})
    return places


def _variable(name: str, query: str) -> dict[str, Any]:
    """A list of values with "All", which also matches series without the label."""
    return {
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "datasource": _SOURCE,
        "includeAll": True,
        "multi": True,
        "name": name,
        "query": query,
        "refresh": _ON_TIME_RANGE_CHANGED,
        "type": "query",
    }


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    minimum = {} if panel.is_number else {"min": 0}
    return {
        "datasource": _SOURCE,
        "description": panel.description,
        "fieldConfig": {"defaults": {**minimum, "unit": panel.unit}, "overrides": []},
        "gridPos": place,
        "id": number + 1,
        "options": _NUMBER_OPTIONS if panel.is_number else _GRAPH_OPTIONS,
        "targets": [
            {
                "datasource": _SOURCE,
                "expr": expression,
                "legendFormat": legend or panel.title,
                "refId": "ABCDEFGH"[query],
            }
            for query, (expression, legend) in enumerate(panel.queries)
        ],
        "title": panel.title,
        "type": "stat" if panel.is_number else "timeseries",
    }
