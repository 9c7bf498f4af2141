"""The tables of docs/monitoring.md, from the lists of alerts and panels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from scripts.monitoring.alerts import ALERTS
from scripts.monitoring.panels import Dashboard
from scripts.monitoring.parameters import defaults, filled_in


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """The page with new content between its marks `<!-- name -->` and `<!-- end -->`."""
    for name, table in tables.items():
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert end, name  # which is after the mark, if there is one
        page = before + mark + table + end + after
    return page


def alert_table() -> str:
    """One line for each alert, with the defaults."""
    parameters = defaults()
    lines = ["| alert | severity | after | condition | needs |", "| --- | --- | --- | --- | --- |"]
    for alert in ALERTS:
        link = f"[{alert.name}](runbooks.md#{alert.name.lower()})"
        held = filled_in(alert.hold, parameters)
        lines.append(f"| {link} | {alert.severity} | {held} | {alert.meaning} | {', '.join(alert.needs)} |")
    return filled_in("\n".join(lines), parameters) + "\n"


def panel_tables(dashboards: Iterable[Dashboard]) -> str:
    """One table for each dashboard."""
    return "\n".join(_table(board) for board in dashboards)


def _table(board: Dashboard) -> str:
    lines = [f"### {board.title}", "", board.description, "", "| panel | shows | needs |", "| --- | --- | --- |"]
    lines += [f"| {panel.title} | {panel.description} | {panel.needs} |" for panel in board.panels]
    return "\n".join(lines) + "\n"
