"""The schema of the values: unknown keys are refused everywhere, and settings are those of the programs."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from scripts.chart_files import CHART, EXAMPLES, SCHEMA, schema, setting_names
from tests.support.chart import VARIANTS, refusal

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
DOCUMENT: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(DOCUMENT)
# Objects whose keys are the user's: labels, annotations, selectors.
FREE = {
    ("nodeSelector",),
    ("podLabels",),
    ("podAnnotations",),
    ("service", "annotations"),
    ("tracing", "resourceAttributes"),
}
FREE |= {("monitoring", part, "labels") for part in ("podMonitor", "rules", "dashboards")}
FREE |= {("monitoring", "dashboards", "annotations")}
QUANTITIES = {("requests",), ("limits",)}  # of any resource
SETTINGS = {("stack", "settings"), ("frontend", "settings"), ("triton", "settings"), ("multiNode", "environment")}


def objects(value: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all objects in the values."""
    yield path
    for name, child in value.items():
        if isinstance(child, dict):
            yield from objects(child, (*path, name))


def at(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = value[name]
    return value


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    return DOCUMENT["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part


def test_the_schema_is_valid_and_current() -> None:
    jsonschema.Draft202012Validator.check_schema(DOCUMENT)
    assert SCHEMA.read_text(encoding="utf-8") == schema(), "run: python -m scripts.chart_files"


def test_the_default_values_are_valid() -> None:
    assert list(VALIDATOR.iter_errors(VALUES)) == []


@pytest.mark.parametrize("path", EXAMPLES.values(), ids=lambda path: path.stem)
def test_examples_are_valid(path: Any) -> None:
    assert list(VALIDATOR.iter_errors(yaml.safe_load(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "path", [path for path in objects(VALUES) if path not in FREE and path[-1:] not in QUANTITIES], ids="/".join
)
def test_an_unknown_key_is_refused_everywhere(path: tuple[str, ...]) -> None:
    values = copy.deepcopy(VALUES)
    at(values, path)["unknownKey"] = "1"
    assert list(VALIDATOR.iter_errors(values)) != []


def test_schema_and_default_values_have_the_same_keys() -> None:
    for path in objects(VALUES):
        if path in FREE | SETTINGS or path[-1:] in QUANTITIES:
            continue
        part = DOCUMENT
        for name in path:
            part = resolved(part["properties"][name])
        assert set(part["properties"]) - {"global"} == set(at(VALUES, path)), path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"replcas": 3}, "'replcas' not allowed"),
        ({"drain": {"preStopSecond": 3}}, "'preStopSecond' not allowed"),
        ({"frontend": {"settings": {"MAX_INFLIGHT": 3}}}, "MAX_INFLIGHT"),
        ({"frontend": {"settings": {"TRITON_SECRET": "a-secret-in-the-values"}}}, "TRITON_SECRET"),
        ({"frontend": {"settings": {"DRAIN_TIMEOUT_S": 5}}}, "DRAIN_TIMEOUT_S"),
        ({"triton": {"settings": {"TRITON_HOST": "0.0.0.0"}}}, "TRITON_HOST"),
        ({"runtime": "gpu"}, "runtime"),
        ({"replicas": "3"}, "replicas"),
        ({"replicas": -1}, "replicas"),
        ({"engine": {"store": "nfs"}}, "store"),
        ({"engine": {"path": "/absolute"}}, "path"),
        ({"engine": {"path": "a/../../b"}}, "path"),
        ({"engine": {"gpus": 0}}, "gpus"),
        ({"engine": {"image": {"reference": "registry.example.com/engines:latest"}}}, "reference"),
        ({"images": {"triton": {"digest": "sha256:1234"}}}, "digest"),
        ({"apiKeys": {"existingSecret": "Not A Name"}}, "existingSecret"),
        ({"limits": {"onFailure": "guess"}}, "onFailure"),
        ({"gpu": {"computeCapability": "sm90"}}, "computeCapability"),
        ({"triton": {"runAsUser": 0}}, "runAsUser"),
        ({"tracing": {"endpoint": "collector:4318"}}, "endpoint"),
        ({"tracing": {"endpoint": "https://user:password@collector"}}, "endpoint"),
        ({"tracing": {"sampleRatio": 1.5}}, "sampleRatio"),
        ({"tracing": {"protocol": "http/json"}}, "protocol"),
        ({"monitoring": {"slo": {"availability": 1}}}, "availability"),
        ({"monitoring": {"slo": {"firstTokenSeconds": 3}}}, "firstTokenSeconds"),
        ({"autoscaling": {"slowFirstTokens": {"seconds": 2}}}, "seconds"),
        ({"autoscaling": {"minReplicas": 0}}, "minReplicas"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_helm_refuses_an_invalid_value(changes: dict[str, Any], expected: str) -> None:
    message = refusal(changes)
    assert "don't meet the specifications of the schema" in message
    assert expected in message


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_the_tests_are_valid(name: str) -> None:
    assert list(VALIDATOR.iter_errors(VARIANTS[name])) == []


def test_no_secret_is_a_setting() -> None:
    names = {name for names in setting_names().values() for name in names}
    assert not names & {"API_KEY", "API_KEYS_FILE", "TRITON_SECRET", "TENANT_SECRET", "LIMITS_URL"}
    assert {"MAX_IN_FLIGHT", "CPU_KV_CACHE_GIB", "TRTLLM_GUIDED_DECODING"} <= names


def test_image_tags_follow_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = (CHART.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{chart["appVersion"]}"' in project


def test_the_page_names_values_that_exist() -> None:
    page = (CHART.parents[1] / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    named = [tuple(name.split(".")) for name in re.findall(r"`([a-zA-Z]\w+(?:\.[a-zA-Z]\w+)+)`", page)]
    of_values = [path for path in named if path[0] in VALUES]
    assert len(of_values) > 10
    for path in of_values:
        at(VALUES, path)
