"""What the chart makes for Prometheus' operator and for Grafana: off by default, and the same as the plain files."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from scripts.chart_files import CHART
from scripts.monitoring.files import BOARDS, rule_file
from scripts.monitoring.parameters import of_values
from scripts.monitoring.rules import rule_groups
from tests.support.chart import VARIANTS, Document, Values, documents, only, refusal, rendered

VALUES: Values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
KINDS = ("PodMonitor", "PrometheusRule")


def monitoring(**changes: Values) -> tuple[Document, ...]:
    """The objects of the GPU variant with rules, and some values of `monitoring` replaced."""
    return rendered({"monitoring": {"rules": {"enabled": True}, **changes}})


def of_kind(found: tuple[Document, ...], kind: str) -> Document:
    (document,) = [document for document in found if document["kind"] == kind]
    return document


def rules_text(found: tuple[Document, ...]) -> str:
    return str(yaml.safe_dump(of_kind(found, "PrometheusRule")["spec"], width=1000))


@pytest.mark.parametrize("name", ["cpu", "engine-pvc"])
def test_nothing_is_made_by_default(name: str) -> None:
    for document in documents(name):
        assert document["kind"] not in KINDS
        assert "grafana_dashboard" not in document["metadata"]["labels"]


@pytest.mark.parametrize("seconds", [2.5, 1, 0.75])
def test_the_rules_are_those_of_the_plain_file_for_this_release(seconds: float) -> None:
    values = {**VALUES["monitoring"], "slo": {**VALUES["monitoring"]["slo"], "firstTokenSeconds": seconds}}
    pods = '{0}namespace="default",{0}pod=~"demo-[a-z0-9]+-[a-z0-9]+"'
    parameters = of_values(
        values,
        scope='namespace="default",release="demo"',
        pods=pods.format(""),
        exported_pods=pods.format("exported_"),
        scaled_object='scaledObject="demo"',
        autoscaler='namespace="default",horizontalpodautoscaler="keda-hpa-demo"',
        pod_not_ready_seconds="422",  # a drain of 362 s, and a minute
    )
    found = of_kind(monitoring(slo={"firstTokenSeconds": seconds}), "PrometheusRule")
    assert found["apiVersion"] == "monitoring.coreos.com/v1"
    assert found["spec"] == yaml.safe_load(rule_file(rule_groups(), parameters))


def test_objectives_and_thresholds_are_values() -> None:
    text = rules_text(
        monitoring(
            slo={"availability": 0.95, "firstTokenSeconds": 10, "firstTokenRatio": 0.9},
            thresholds={"kvCacheFraction": 0.8, "queueFullRatio": 0.03, "queuedRatio": 2, "podNotReadySeconds": 77},
        )
    )
    for expected in ("* (1 - 0.95)", 'le="10.0"', "* (1 - 0.9)", "> 0.8)", "> 0.03", "> 2 * completions", "for: 77s"):
        assert expected in text, expected
    assert "<<" not in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "for: 422s"),
        ({"engine": {**VARIANTS["engine-pvc"]["engine"], "sizeGiB": 400}}, "for: 1820s"),
        ({"drain": {"requestTimeoutSeconds": 20, "drainTimeoutSeconds": 20}}, "for: 300s"),
    ],
    ids=["a drain is the longest", "a start is", "neither is longer than five minutes"],
)
def test_a_pod_may_take_a_start_and_a_drain_until_it_is_reported(changes: Values, expected: str) -> None:
    assert expected in rules_text(rendered({**changes, "monitoring": {"rules": {"enabled": True}}}))


def test_runbooks_are_at_the_address_of_the_values() -> None:
    text = rules_text(documents("everything-else"))
    assert "runbook_url: https://wiki.example.com/runbooks#completionsnoreadypod" in text


def test_the_monitor_scrapes_the_front_end_with_a_key() -> None:
    found = documents("everything-else")
    monitor = of_kind(found, "PodMonitor")
    assert monitor["metadata"]["labels"]["e"] == "f"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["authorization"] == {"credentials": {"name": "metrics", "key": "api-key"}}
    pod = of_kind(found, "Deployment")["spec"]["template"]
    ports = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
    assert endpoint["port"] in ports
    assert monitor["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert set(monitor["spec"]["podTargetLabels"]) <= set(pod["metadata"]["labels"])
    relabelings = {entry.get("targetLabel"): entry for entry in endpoint["relabelings"]}
    assert relabelings["release"]["sourceLabels"] == ["__meta_kubernetes_pod_label_app_kubernetes_io_instance"]
    assert relabelings[None] == {"action": "labeldrop", "regex": "endpoint"}


@pytest.mark.parametrize("variant", ["engine-pvc", "cpu-pvc"])
def test_a_monitor_without_a_key_is_refused_unless_none_is_needed(variant: str) -> None:
    on: dict[str, Any] = {"monitoring": {"podMonitor": {"enabled": True}}}
    assert "/metrics needs a key" in refusal(on, variant)
    part = "stack" if variant == "cpu-pvc" else "frontend"
    found = rendered({**on, part: {"settings": {"METRICS_NEEDS_KEY": "off"}}}, variant)
    assert "authorization" not in of_kind(found, "PodMonitor")["spec"]["podMetricsEndpoints"][0]
    assert of_kind(rendered({**on, "requireApiKey": False}, variant), "PodMonitor")


def test_the_dashboards_are_the_files() -> None:
    found = only(documents("everything-else"), "ConfigMap", "dashboards")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"] == {"g": "h"}
    files = {path.name: path.read_text(encoding="utf-8").strip() for path in BOARDS.iterdir()}
    assert {name: text.strip() for name, text in found["data"].items()} == files
