"""The dashboards' expressions are valid, and read metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache

import promql_parser
import pytest

from scripts.monitoring.files import BOARDS
from scripts.monitoring.grafana import DASHBOARDS, to_json
from scripts.monitoring.panels import Dashboard, Panel
from scripts.monitoring.parameters import ROOT, defaults, filled_in
from scripts.monitoring.rules import rule_groups
from tests.support.dashboards import answerable
from tests.support.sample_metrics import every_metric

# Metrics of other exporters, by the exporter.
FOREIGN = {
    "Prometheus": {"up"},
    "kube-state-metrics": {
        "kube_horizontalpodautoscaler_spec_max_replicas",
        "kube_horizontalpodautoscaler_status_condition",
        "kube_horizontalpodautoscaler_status_current_replicas",
        "kube_horizontalpodautoscaler_status_desired_replicas",
        "kube_pod_container_status_restarts_total",
        "kube_pod_init_container_status_restarts_total",
        "kube_pod_status_ready",
    },
    "KEDA": {"keda_scaled_object_errors_total", "keda_scaler_detail_errors_total"},
    "DCGM exporter": {
        "DCGM_FI_DEV_FB_USED",
        "DCGM_FI_DEV_GPU_UTIL",
        "DCGM_FI_DEV_POWER_USAGE",
        "DCGM_FI_DEV_XID_ERRORS",
        "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
    },
}
ALL_FOREIGN = {name for names in FOREIGN.values() for name in names}
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")
RULES = [rule for group in rule_groups() for rule in group["rules"]]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}


def names_in(expression: str) -> set[str]:
    """Names of the series that an expression reads. ValueError if it is no PromQL."""
    found: set[str] = set()

    def visit(node: object) -> bool:
        if isinstance(node, promql_parser.VectorSelector) and node.name:
            found.add(node.name)
        if isinstance(node, promql_parser.MatrixSelector) and node.vector_selector.name:
            found.add(node.vector_selector.name)
        return True

    promql_parser.walk(promql_parser.parse(expression), pre_visit=visit)
    return found


@cache
def exported() -> set[str]:
    """Names of all series of a front end."""
    metrics = every_metric()
    families = [*metrics.registry.collect(), *metrics.shared_registry.collect()]
    return {sample.name for family in families for sample in family.samples}


def all_panels() -> list[tuple[Dashboard, Panel]]:
    return [(board, panel) for board in DASHBOARDS for panel in board.panels]


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.uid)
def test_a_dashboard_reads_metrics_that_exist(board: Dashboard) -> None:
    known = exported() | RECORDED | ALL_FOREIGN
    for panel in board.panels:
        for expression, _ in panel.queries:
            names = names_in(answerable(expression))
            assert names, panel.title
            assert names <= known, panel.title


def test_rules_read_metrics_that_exist() -> None:
    known = exported() | RECORDED | ALL_FOREIGN
    for rule in RULES:
        assert names_in(filled_in(rule["expr"], defaults())) <= known


def test_runbooks_read_metrics_that_exist() -> None:
    blocks = re.findall(r"```promql\n(.*?)```", RUNBOOKS, flags=re.DOTALL)
    known = exported() | RECORDED | ALL_FOREIGN
    assert len(blocks) > 8
    for expression in "".join(blocks).splitlines():
        assert names_in(expression) <= known, expression


def test_commands_of_the_runbooks_are_shell() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", RUNBOOKS, flags=re.DOTALL)
    assert len(blocks) > 5
    for commands in blocks:
        run = subprocess.run(["bash", "-n"], input=commands, text=True, capture_output=True, timeout=20, check=False)
        assert run.stderr == "", commands


def test_every_foreign_and_recorded_metric_is_read() -> None:
    read: set[str] = set()
    for _, panel in all_panels():
        for expression, _ in panel.queries:
            read |= names_in(answerable(expression))
    for rule in RULES:
        read |= names_in(filled_in(rule["expr"], defaults()))
    assert read >= ALL_FOREIGN
    assert read >= RECORDED


def test_a_panel_names_the_exporter_that_it_needs() -> None:
    for _, panel in all_panels():
        names = {name for expression, _ in panel.queries for name in names_in(answerable(expression))}
        needed = {exporter for exporter, theirs in FOREIGN.items() if names & theirs} - {"Prometheus"}
        assert needed <= {panel.needs}, panel.title


def test_a_misspelt_expression_is_refused() -> None:
    """So that the tests above can fail."""
    with pytest.raises(ValueError, match="parenthesis"):
        names_in("sum by (model (up{})")


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.uid)
def test_panels_fill_the_grid_without_overlap(board: Dashboard) -> None:
    taken: set[tuple[int, int]] = set()
    panels = json.loads(to_json(board))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        columns = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken
        taken |= cells


def test_there_are_no_other_files() -> None:
    assert {path.stem for path in BOARDS.iterdir()} == {board.uid for board in DASHBOARDS}
