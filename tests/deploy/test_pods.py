"""Rules over every rendered pod: its drain, start, security, Secrets, network and engine."""

from __future__ import annotations

import math
from typing import Any

import pytest
from rich.console import Console

from frontend.api import route_paths as paths
from frontend.observability.otel import FLUSH_S
from frontend.response.errors import DEFAULT_RETRY_AFTER_S
from frontend.settings import FrontendSettings
from launcher.engine_gate import GateSettings
from launcher.gpu.launch import LaunchSettings
from launcher.local.stack import Stack
from launcher.local.triton_wheel import TRITON_STOP_TIMEOUT_S
from launcher.settings import StackSettings
from llm_pipeline.runtime.settings import PipelineSettings
from llm_pipeline.runtime.tracing_settings import TracingSettings
from tests.support.chart import (
    ALL,
    SERVING_EXAMPLES,
    Document,
    containers,
    documents,
    only,
    pod_specs,
    refusal,
    rendered,
    serving_owner,
    serving_template,
    variables,
)

LAST_WRITES_S = 7  # of the front end after its drain: docs/deployment.md
READ_BY: dict[str, tuple[type[Any], ...]] = {
    "gate": (GateSettings,),
    "stack": (StackSettings, FrontendSettings, PipelineSettings, TracingSettings),
    "triton": (LaunchSettings, PipelineSettings, TracingSettings),
    "frontend": (FrontendSettings, TracingSettings),
}
every_render = pytest.mark.parametrize("name", ALL)


def serving_pod(name: str) -> Document:
    spec: Document = serving_template(documents(name))["spec"]
    return spec


def is_cpu(pod: Document) -> bool:
    return "stack" in containers(pod)


def pod_of(changes: dict[str, Any], variant: str = "engine-pvc") -> Document:
    spec: Document = serving_template(rendered(changes, variant))["spec"]
    return spec


# --- Drain -----------------------------------------------------------------------------------------------------------


def needed_grace(pod: Document) -> float:
    """What the programs themselves may take: the kubelet ends the containers one after another."""
    found = containers(pod)
    server = found["stack" if is_cpu(pod) else "frontend"]
    pre_stop = server.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain_s = float(variables(server)["DRAIN_TIMEOUT_S"])
    if is_cpu(pod):
        stack = Stack(StackSettings(drain_timeout_s=drain_s), Console(quiet=True))
        return float(pre_stop + stack.frontend_stop_timeout_s + TRITON_STOP_TIMEOUT_S)
    flush_s = FLUSH_S if "OTEL_EXPORTER_OTLP_ENDPOINT" in variables(server) else 0
    exit_s = int(variables(found["triton"])["TRITON_EXIT_TIMEOUT_S"])
    return float(pre_stop + drain_s + LAST_WRITES_S + flush_s + exit_s)


@every_render
def test_the_grace_period_covers_the_longest_stream(name: str) -> None:
    pod = serving_pod(name)
    server = variables(containers(pod)["stack" if is_cpu(pod) else "frontend"])
    assert pod["terminationGracePeriodSeconds"] >= needed_grace(pod) + 15
    assert float(server["REQUEST_TIMEOUT_S"]) <= float(server["DRAIN_TIMEOUT_S"])


@pytest.mark.parametrize("variant", ["engine-pvc", "cpu-pvc"])
@pytest.mark.parametrize(
    "drain",
    [
        {"preStopSeconds": 0, "requestTimeoutSeconds": 1, "drainTimeoutSeconds": 1, "tritonExitTimeoutSeconds": 0},
        {"preStopSeconds": 25, "requestTimeoutSeconds": 3600, "drainTimeoutSeconds": 3600},
        {"marginSeconds": 100, "tritonExitTimeoutSeconds": 120},
    ],
)
def test_the_grace_period_is_the_sum_of_its_parts(variant: str, drain: dict[str, int]) -> None:
    pod = pod_of({"drain": drain}, variant)
    assert pod["terminationGracePeriodSeconds"] == needed_grace(pod) + drain.get("marginSeconds", 15)


@pytest.mark.parametrize(
    ("drain", "expected"),
    [
        ({"requestTimeoutSeconds": 301}, "a longer stream would be cut"),
        ({"drainTimeoutSeconds": 60}, "a longer stream would be cut"),
        ({"gracePeriodSeconds": 361}, "a drain takes up to 362 s: streams would be cut"),
    ],
)
def test_a_render_that_would_cut_streams_fails_unless_that_is_allowed(drain: dict[str, int], expected: str) -> None:
    assert expected in refusal({"drain": drain})
    pod_of({"drain": {**drain, "allowCutStreams": True}})


def test_a_longer_grace_period_is_kept() -> None:
    assert pod_of({"drain": {"gracePeriodSeconds": 900}})["terminationGracePeriodSeconds"] == 900


def test_triton_is_a_sidecar_and_so_ends_after_the_front_end() -> None:
    pod = serving_pod("engine-pvc")
    assert [container["name"] for container in pod["initContainers"]] == ["gate", "triton"]
    assert [container["name"] for container in pod["containers"]] == ["frontend"]
    assert containers(pod)["triton"]["restartPolicy"] == "Always"
    assert "restartPolicy" not in containers(pod)["gate"]


# --- Rollout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name in ALL if not name.startswith("multi-node") and "two-nodes" not in name]
)
def test_a_rollout_waits_for_each_pod_and_ends_with_an_error_in_time(name: str) -> None:
    found = documents(name)
    spec = only(found, "Deployment")["spec"]
    assert spec["minReadySeconds"] >= 15
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    assert spec["progressDeadlineSeconds"] > startup_budget(serving_pod(name)) + spec["minReadySeconds"]
    assert spec["progressDeadlineSeconds"] > spec["template"]["spec"]["terminationGracePeriodSeconds"]


def startup_budget(pod: Document) -> int:
    probe = containers(pod)["stack" if is_cpu(pod) else "triton"]["startupProbe"]
    return int(probe["periodSeconds"] * probe["failureThreshold"])


@pytest.mark.parametrize("variant", ["engine-pvc", "cpu-pvc"])
@pytest.mark.parametrize(("size_gib", "bandwidth"), [(0.1, 500), (8.5, 500), (132, 1000), (400, 250.5)])
def test_the_startup_probe_follows_the_size_of_the_engine(variant: str, size_gib: float, bandwidth: float) -> None:
    engine = {"store": "pvc", "path": "a", "pvc": {"claimName": "b"}, "sizeGiB": size_gib}
    budget = startup_budget(pod_of({"engine": engine, "startup": {"storeMiBPerSecond": bandwidth}}, variant))
    needed = math.ceil(size_gib * 1024 / bandwidth) + 120
    assert needed <= budget < needed + 10


def test_the_startup_budget_may_be_set() -> None:
    assert startup_budget(pod_of({"startup": {"seconds": 3600}})) == 3600


def test_a_rollout_that_could_replace_no_pod_is_refused() -> None:
    assert "no pod could be replaced" in refusal({"rollout": {"maxSurge": 0, "maxUnavailable": 0}})


@every_render
def test_a_disruption_budget_exists_for_more_than_one_replica(name: str) -> None:
    """For one replica it would block the drain of a node, or protect nothing."""
    found = documents(name)
    budgets = [document["spec"] for document in found if document["kind"] == "PodDisruptionBudget"]
    assert len(budgets) == (serving_owner(found)["spec"].get("replicas", 2) > 1)
    assert all(budget["maxUnavailable"] == 1 for budget in budgets)
    assert all(budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow" for budget in budgets)


@every_render
def test_replicas_are_spread_over_nodes_and_zones(name: str) -> None:
    constraints = serving_pod(name)["topologySpreadConstraints"]
    assert [entry["topologyKey"] for entry in constraints] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]


# --- Probes ----------------------------------------------------------------------------------------------------------


@every_render
def test_probes_of_the_api_use_public_paths(name: str) -> None:
    pod = serving_pod(name)
    server = containers(pod)["stack" if is_cpu(pod) else "frontend"]
    assert server["readinessProbe"]["httpGet"]["path"] == f"{paths.HEALTH_ROOTS[0]}/ready"
    assert server["livenessProbe"]["httpGet"]["path"] == f"{paths.HEALTH_ROOTS[0]}/live"
    assert paths.is_public("/health/ready", metrics_needs_key=True)
    assert server["readinessProbe"]["periodSeconds"] * server["readinessProbe"]["failureThreshold"] <= 5
    assert server["livenessProbe"]["periodSeconds"] * server["livenessProbe"]["failureThreshold"] >= 60


@every_render
def test_two_retries_of_a_refused_request_outlast_the_readiness_probe(name: str) -> None:
    """Else a pod that refuses without notice would get both retries too."""
    pod = serving_pod(name)
    probe = containers(pod)["stack" if is_cpu(pod) else "frontend"]["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] + 1 < 2 * DEFAULT_RETRY_AFTER_S  # the probe's timeout


def test_triton_is_probed_on_loopback_because_it_listens_nowhere_else() -> None:
    triton = containers(serving_pod("engine-pvc"))["triton"]
    assert variables(triton)["TRITON_HOST"] == "127.0.0.1"
    for probe in ("startupProbe", "livenessProbe"):
        assert "/opt/triton-completions/healthcheck.py" in triton[probe]["exec"]["command"]
        assert triton[probe]["timeoutSeconds"] > 4  # of the program itself
    assert [port["containerPort"] for port in triton["ports"]] == [8002]


# --- Security --------------------------------------------------------------------------------------------------------


@every_render
def test_every_pod_meets_pod_security_restricted(name: str) -> None:
    """The rules of the Pod Security Standards, and a read-only root."""
    for pod in pod_specs(documents(name)).values():
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "image"}
        assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= allowed
        for container in containers(pod).values():
            context = container["securityContext"]
            assert context["runAsNonRoot"] is True
            assert context.get("runAsUser") != 0
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not {"privileged", "procMount"} & set(context)
            assert not any("hostPort" in port for port in container.get("ports", ()))


def test_users_of_the_image_or_of_the_platform_may_be_used() -> None:
    pod = serving_pod("open-single")
    assert "fsGroup" not in pod["securityContext"]
    assert not any("runAsUser" in container["securityContext"] for container in containers(pod).values())


@every_render
def test_no_pod_gets_a_token_or_variables_of_services(name: str) -> None:
    for pod in pod_specs(documents(name)).values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
    assert only(documents(name), "ServiceAccount")["automountServiceAccountToken"] is False


@every_render
def test_secrets_are_referenced_and_never_rendered(name: str) -> None:
    found = documents(name)
    assert not [document for document in found if document["kind"] == "Secret"]
    for pod in pod_specs(found).values():
        for container in containers(pod).values():
            secret = {n for n in variables(container) if n.endswith(("_SECRET", "API_KEY", "ACCESS_KEY", "KEY_ID"))}
            assert secret == set()


def test_all_secrets_are_those_that_the_values_name() -> None:
    pods = pod_specs(documents("everything-else"))
    names = {
        entry["valueFrom"]["secretKeyRef"]["name"]
        for pod in pods.values()
        for container in containers(pod).values()
        for entry in container.get("env", ())
        if "valueFrom" in entry
    }
    names |= {
        volume["secret"]["secretName"] for pod in pods.values() for volume in pod["volumes"] if "secret" in volume
    }
    assert names == {"keys", "triton", "tenant", "test", "otlp"}
    (keys,) = [volume["secret"] for volume in pods["Deployment"]["volumes"] if "secret" in volume]
    assert keys["defaultMode"] == 0o440  # a file that others may write stops the front end


def test_a_missing_secret_of_keys_is_refused() -> None:
    assert "set requireApiKey to false" in refusal({"apiKeys": {"existingSecret": ""}})


@every_render
def test_everything_has_requests_and_a_memory_limit(name: str) -> None:
    for pod in pod_specs(documents(name)).values():
        for container in containers(pod).values():
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


# --- Network ---------------------------------------------------------------------------------------------------------


@every_render
def test_every_pod_but_the_test_is_denied_all_but_the_listed_traffic(name: str) -> None:
    found = documents(name)
    policies = [
        document["spec"]
        for document in found
        if document["kind"] == "NetworkPolicy" and document["metadata"]["name"] != "demo-group"  # test_multi_node.py
    ]
    if name == "open-single":
        assert policies == []
        return
    assert all(policy["policyTypes"] == ["Ingress", "Egress"] for policy in policies)
    selected = [policy["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for policy in policies]
    assert sorted(selected) == sorted(
        {"Deployment": "serve", "LeaderWorkerSet": "serve", "Job": "build"}[kind]
        for kind in pod_specs(found)
        if kind not in ("Pod", "Worker")
    )
    for policy in policies:
        for rule in policy["ingress"]:
            assert rule["from"]  # an empty list would be everyone
            assert {port["port"] for port in rule["ports"]} <= {"http", "triton-metrics"}


@pytest.mark.parametrize("name", ["cpu", "h200-pytorch", "engine-pvc", "build-job"])
def test_nothing_may_leave_a_pod_by_default(name: str) -> None:
    for document in documents(name):
        if document["kind"] == "NetworkPolicy":
            assert document["spec"]["egress"] == []


def test_metrics_of_triton_are_for_the_monitoring_alone() -> None:
    clients, monitoring = only(documents("h100-engine"), "NetworkPolicy")["spec"]["ingress"]
    assert [port["port"] for port in clients["ports"]] == ["http"]
    assert [port["port"] for port in monitoring["ports"]] == ["http", "triton-metrics"]


COLLECTOR = [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "collector"}}}]


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("http://collector:4318", 4318), ("https://otlp.example.com", 443), ("http://collector/v1", 80)],
)
def test_spans_may_leave_for_the_collector_alone(endpoint: str, port: int) -> None:
    tracing = {"tracing": {"endpoint": endpoint, "egress": COLLECTOR}}
    collector, names = only(rendered(tracing), "NetworkPolicy")["spec"]["egress"]
    assert (collector["to"], collector["ports"]) == (COLLECTOR, [{"protocol": "TCP", "port": port}])
    assert {rule["port"] for rule in names["ports"]} == {53}


def test_traces_that_the_policy_would_stop_are_refused() -> None:
    assert "needs tracing.egress" in refusal({"tracing": {"endpoint": "http://collector:4318"}})


@pytest.mark.parametrize(("variant", "servers"), [("engine-pvc", {"frontend", "triton"}), ("cpu-pvc", {"stack"})])
def test_front_end_and_triton_get_the_same_variables_of_traces(variant: str, servers: set[str]) -> None:
    tracing = {"endpoint": "http://collector:4318", "egress": COLLECTOR, "sampleRatio": 0.00001}
    pod = pod_of({"tracing": tracing}, variant)
    found = {name: _of_traces(container) for name, container in containers(pod).items() if _of_traces(container)}
    assert found.keys() == servers
    for values in found.values():
        assert values["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318"
        assert values["OTEL_SERVICE_NAME"] == "demo"
        assert float(values["OTEL_TRACES_SAMPLER_ARG"]) == 0.00001
    assert not any(_of_traces(container) for container in containers(pod_of({}, variant)).values())


def _of_traces(container: Document) -> dict[str, str]:
    return {name: value for name, value in variables(container).items() if name.startswith("OTEL_")}


def test_ports_of_policies_and_services_exist() -> None:
    for name in SERVING_EXAMPLES:
        pod = serving_pod(name)
        ports = {port["name"] for container in containers(pod).values() for port in container.get("ports", ())}
        policy = only(documents(name), "NetworkPolicy")["spec"]
        assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} <= ports
        assert only(documents(name), "Service")["spec"]["ports"][0]["targetPort"] in ports
