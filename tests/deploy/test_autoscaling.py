"""The ScaledObject: valid for KEDA, its queries for Prometheus, and the numbers of replicas that follow from them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.fleet.autoscaler import Autoscaler
from benchmarks.fleet.chart import scaler_spec
from benchmarks.fleet.prometheus import find_program
from benchmarks.systems.programs import ServerError
from frontend.observability.metrics import Metrics
from llm_pipeline.protocol.engine_metrics import FAMILIES
from scripts.chart_files import CHART
from tests.support.chart import VARIANTS, Document, documents, only, refusal, rendered
from tests.support.custom_resources import complaints

ON = VARIANTS["autoscaled"]["autoscaling"]
NAME = "autoscaled"


def scaler(**changes: Any) -> Document:
    return only(rendered({"autoscaling": {**ON, **changes}}), "ScaledObject")


def queries(document: Document) -> dict[str, str]:
    return {trigger["name"]: trigger["metadata"]["query"] for trigger in document["spec"]["triggers"]}


# --- The object ------------------------------------------------------------------------------------------------------


def test_it_is_valid_without_unknown_fields() -> None:
    document = only(documents(NAME), "ScaledObject")
    assert complaints(document) == []
    document = {**document, "spec": {**document["spec"], "minReplicas": 2}}
    assert complaints(document) != []  # so that the line above can fail


def test_it_scales_the_deployment_which_leaves_the_number_to_it() -> None:
    found = documents(NAME)
    deployment = only(found, "Deployment")
    assert only(found, "ScaledObject")["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    assert only(found, "PodDisruptionBudget")


def test_it_scales_groups_of_pods_where_a_replica_has_several() -> None:
    found = rendered({"autoscaling": ON}, "multi-node-engine")
    scaler_of_groups, groups = only(found, "ScaledObject"), only(found, "LeaderWorkerSet")
    target = scaler_of_groups["spec"]["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"]) == (groups["apiVersion"], "LeaderWorkerSet")
    assert target["name"] == groups["metadata"]["name"]
    assert "replicas" not in groups["spec"]
    assert all('pod=~"demo-[0-9]+(-[0-9]+)?"' in query for query in queries(scaler_of_groups).values())


def test_a_single_replica_has_no_disruption_budget() -> None:
    found = rendered({"autoscaling": {**ON, "minReplicas": 1}})
    assert "PodDisruptionBudget" not in [document["kind"] for document in found]


def test_without_answers_of_prometheus_no_replica_is_removed() -> None:
    spec = only(documents(NAME), "ScaledObject")["spec"]
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"
    for trigger in spec["triggers"]:
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert "vector(0)" not in trigger["metadata"]["query"]
        assert trigger["authenticationRef"] == {"name": "prometheus"}


def test_a_threshold_of_zero_leaves_its_query_out() -> None:
    assert list(queries(scaler())) == ["demand", "kv-cache", "slow-first-tokens"]
    assert list(queries(scaler(kvCachePercent=0, slowFirstTokens={"percent": 0}))) == ["demand"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"serverAddress": ""}, "serverAddress is empty"),
        ({"minReplicas": 5}, "maxReplicas is 4 and autoscaling.minReplicas is 5"),
        (
            {"requestsPerReplica": 0, "kvCachePercent": 0, "slowFirstTokens": {"percent": 0}},
            "thresholds of autoscaling are 0",
        ),
    ],
    ids=str,
)
def test_what_could_not_scale_is_refused(changes: dict[str, Any], expected: str) -> None:
    assert expected in refusal({"autoscaling": {**ON, **changes}})


# --- The queries -----------------------------------------------------------------------------------------------------


def test_queries_have_metrics_of_the_front_end_alone() -> None:
    """Triton's page has families of the same names: its pods' containers would be counted twice."""
    names = {family.name for family in FAMILIES}
    names |= {f"{family.name}_{part}" for family in Metrics().registry.collect() for part in ("bucket", "count")}
    for query in queries(scaler()).values():
        series = [part for part in query.replace("(", " ").replace("{", " {").split() if part in names]
        assert series
        assert query.count('container="frontend"') == len(series) == query.count("{")
    assert 'container="stack"' in queries(only(rendered({"autoscaling": ON}, "cpu-pvc"), "ScaledObject"))["demand"]


def test_bounds_of_slow_first_tokens_are_those_of_the_histogram() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    allowed = schema["properties"]["autoscaling"]["properties"]["slowFirstTokens"]["properties"]["seconds"]["enum"]
    metrics = Metrics()
    metrics.of_model("m").time_to_first_token.observe(1.0)
    (family,) = [found for found in metrics.registry.collect() if found.name.endswith("time_to_first_token_seconds")]
    bounds = [sample.labels["le"] for sample in family.samples if sample.name.endswith("_bucket")]
    assert [str(float(bound)) for bound in allowed] == bounds[:-1]
    for bound in (1, 2.5):
        assert (
            f'le="{float(bound)}"'
            in queries(scaler(slowFirstTokens={"percent": 5, "seconds": bound}))["slow-first-tokens"]
        )


def _series(name: str, pod: str, values: str, labels: str = "", *, container: str = "frontend") -> dict[str, str]:
    where = f'namespace="default",pod="{pod}",container="{container}"'
    return {"series": f"{name}{{{where}{labels}}}", "values": values}


def _demand_series() -> list[dict[str, str]]:
    """Two pods at 20 requests each, a burst of 10 minutes to 60 and 30 waiting, and its end. And what is not ours."""
    pods = ("demo-7c9d8-x1z2b", "demo-7c9d8-k4m5n")
    found = []
    for pod in pods:
        found.append(_series("decode_active_requests", pod, "20x10 60x10 5x30"))
        found.append(_series("decode_queued_requests", pod, "0x10 30x10 0x30"))
        found.append(_series("decode_active_requests", pod, "20x10 60x10 5x30", container="triton"))
    found.append(_series("decode_active_requests", "demo-other-7c9d8-x1z2b", "500x50"))
    return found


def test_a_burst_and_its_end_give_the_wished_replicas(tmp_path: Path) -> None:
    """promtool evaluates the rendered query over a burst; the autoscaler's rules make replicas of its answers."""
    document = only(documents(NAME), "ScaledObject")
    answers = {"5m": 40.0, "15m": 180.0, "25m": 10.0}
    _promtool_test(tmp_path, _demand_series(), queries(document)["demand"], answers)
    autoscaler, replicas = Autoscaler(scaler_spec(list(documents(NAME)))), 2
    counts: dict[int, int] = {}
    for minute in range(60):
        value = answers["5m"] if minute < 10 else answers["15m"] if minute < 20 else answers["25m"]
        replicas = autoscaler.decide([value, 0, 0], replicas, now_s=60.0 * minute + 1)
        counts[minute] = replicas
    assert [counts[minute] for minute in (9, 11, 19, 28, 29, 33, 34, 59)] == [2, 4, 4, 4, 3, 3, 2, 2]


def test_other_queries_have_the_wished_answers(tmp_path: Path) -> None:
    found = queries(scaler())
    pods = ("demo-7c9d8-x1z2b", "demo-7c9d8-k4m5n")
    fraction = ',kv_cache_block_type="fraction"'
    cache = [
        _series("nv_trt_llm_kv_cache_block_metrics", pod, f"{share}x20", fraction)
        for pod, share in zip(pods, (0.9, 0.5), strict=True)
    ]
    _promtool_test(tmp_path, cache, found["kv-cache"], {"5m": 70.0})
    first = "completions_time_to_first_token_seconds"
    streams = [_series(f"{first}_count", pod, "0+60x20 1200x40") for pod in pods]
    streams += [_series(f"{first}_bucket", pod, "0+45x20 900x40", ',le="2.5"') for pod in pods]
    _promtool_test(tmp_path, streams, found["slow-first-tokens"], {"10m": 25.0, "40m": 0.0})


def test_without_series_there_is_no_answer(tmp_path: Path) -> None:
    for query in queries(scaler()).values():
        _promtool_test(tmp_path, [], query, {"5m": None})


def _promtool_test(folder: Path, series: list[dict[str, str]], query: str, answers: Mapping[str, float | None]) -> None:
    cases = [
        {
            "expr": query,
            "eval_time": at,
            "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
        }
        for at, value in answers.items()
    ]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": cases}
    (folder / "test.yaml").write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [test]}))
    try:
        program = Path(find_program()).with_name("promtool")
    except ServerError as error:
        pytest.skip(str(error))
    run = subprocess.run(
        [str(program), "test", "rules", "test.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
