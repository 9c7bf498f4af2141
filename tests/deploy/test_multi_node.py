"""A replica of several pods: the LeaderWorkerSet, its two kinds of pods, their keys, and the traffic between them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from launcher.gpu.hosts import hosts_of
from launcher.gpu.launch import LaunchSettings, choose_mode
from launcher.gpu.served_engine import ServedEngine
from launcher.gpu.worker import WorkerSettings
from tests.support.chart import VARIANTS, Document, containers, documents, pod_specs, refusal, serving_owner, variables
from tests.support.custom_resources import complaints

ENGINE = "multi-node-engine"
both = pytest.mark.parametrize("name", [ENGINE, "multi-node-pytorch"])


def triton_of(name: str, owner: str) -> Document:
    return containers(pod_specs(documents(name))[owner])["triton"]


@both
def test_a_replica_is_a_leader_that_serves_and_workers_that_run_sshd(name: str) -> None:
    pods = pod_specs(documents(name))
    assert [container["name"] for container in pods["LeaderWorkerSet"]["containers"]] == ["frontend"]
    assert [container["name"] for container in pods["Worker"]["containers"]] == ["triton"]
    worker = triton_of(name, "Worker")
    assert worker["args"] == ["python3", "-m", "launcher.gpu", "--worker"]
    assert [port["containerPort"] for port in worker["ports"]] == [WorkerSettings(ssh_port=port_of(name)).ssh_port]
    assert not {"readinessProbe", "startupProbe", "livenessProbe"} & set(
        worker
    )  # the leader's readiness is the group's


def port_of(name: str) -> int:
    return int(variables(triton_of(name, "LeaderWorkerSet"))["SSH_PORT"])


@both
def test_the_pods_of_a_group_share_the_gpus_and_have_the_same_engine(name: str) -> None:
    size = serving_owner(documents(name))["spec"]["leaderWorkerTemplate"]["size"]
    leader, worker = triton_of(name, "LeaderWorkerSet"), triton_of(name, "Worker")
    assert leader["resources"] == worker["resources"]
    assert leader["image"] == worker["image"]
    assert leader["securityContext"] == worker["securityContext"]
    assert variables(worker).items() <= variables(leader).items()
    assert leader["volumeMounts"] == worker["volumeMounts"]
    assert leader["resources"]["limits"]["nvidia.com/gpu"] * size == VARIANTS[name]["engine"]["gpus"]
    for owner in ("LeaderWorkerSet", "Worker"):
        gate = containers(pod_specs(documents(name))[owner])["gate"]
        assert variables(gate)["GPU_COUNT"] == variables(leader)["GPU_COUNT"]


@both
def test_the_launcher_accepts_what_the_pods_and_the_controller_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    group = {"LWS_LEADER_ADDRESS": "demo-0.demo.serving", "LWS_GROUP_SIZE": str(VARIANTS[name]["multiNode"]["size"])}
    for variable, value in {**variables(triton_of(name, "LeaderWorkerSet")), **group}.items():
        monkeypatch.setenv(variable, value)
    settings = LaunchSettings()
    runtime: Any = VARIANTS[name]["runtime"]
    mode = choose_mode(settings, ServedEngine(VARIANTS[name]["engine"]["gpus"], runtime))
    assert mode == ("multi-node" if runtime == "pytorch" else "leader")
    assert len(hosts_of(settings)) == VARIANTS[name]["multiNode"]["size"]


@both
def test_each_kind_of_pod_has_its_own_keys_alone(name: str) -> None:
    found = {}
    for owner in ("LeaderWorkerSet", "Worker"):
        pod = pod_specs(documents(name))[owner]
        (volume,) = [volume["secret"] for volume in pod["volumes"] if volume["name"] == "ssh"]
        assert (volume["secretName"], volume["defaultMode"]) == ("ssh", 0o440)
        (mount,) = [mount for mount in containers(pod)["triton"]["volumeMounts"] if mount["name"] == "ssh"]
        assert mount == {"name": "ssh", "mountPath": str(WorkerSettings().ssh_keys), "readOnly": True}
        found[owner] = {item["path"] for item in volume["items"]}
    assert found == {"LeaderWorkerSet": {"client", "known_hosts"}, "Worker": {"host", "client.pub"}}


def test_workers_have_no_key_of_the_api_and_no_secret_of_triton() -> None:
    pod = pod_specs(documents(ENGINE))["Worker"]
    assert [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume] == ["ssh"]
    assert all("valueFrom" not in entry for entry in triton_of(ENGINE, "Worker")["env"])


def test_variables_and_limits_of_the_network_reach_all_ranks() -> None:
    for owner in ("LeaderWorkerSet", "Worker"):
        triton = triton_of(ENGINE, owner)
        assert variables(triton)["NCCL_IB_HCA"] == "mlx5"
        assert triton["resources"]["limits"]["rdma/ib"] == 8
        assert triton["resources"]["limits"]["hugepages-2Mi"] == "4Gi"


def test_a_group_is_recreated_as_a_whole_and_has_a_domain_of_its_own() -> None:
    owner = serving_owner(documents(ENGINE))
    assert owner["spec"]["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"
    annotations = owner["metadata"]["annotations"]
    assert annotations["leaderworkerset.sigs.k8s.io/exclusive-topology"] == "topology.kubernetes.io/rack"
    assert annotations["leaderworkerset.sigs.k8s.io/experimental-recreate-group-after-start"] == "true"


@both
def test_the_leader_waits_for_the_others_within_its_startup_budget(name: str) -> None:
    triton = triton_of(name, "LeaderWorkerSet")
    probe = triton["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= int(variables(triton)["MPIRUN_HOSTS_TIMEOUT_S"]) + 120


@both
def test_workers_may_stay_as_long_as_the_leader_drains(name: str) -> None:
    pods = pod_specs(documents(name))
    assert pods["Worker"]["terminationGracePeriodSeconds"] == pods["LeaderWorkerSet"]["terminationGracePeriodSeconds"]


@both
def test_pods_of_a_group_reach_each_other_and_nothing_else_but_names(name: str) -> None:
    (policy,) = [document for document in documents(name) if document["metadata"]["name"] == "demo-group"]
    group = {"podSelector": {"matchLabels": {"leaderworkerset.sigs.k8s.io/name": "demo"}}}
    spec = policy["spec"]
    assert spec["podSelector"] == group["podSelector"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == [{"from": [group]}]
    assert spec["egress"][0] == {"to": [group]}
    assert [{port["port"] for port in rule["ports"]} for rule in spec["egress"][1:]] == [{53}] * (name == ENGINE)


def test_the_budget_covers_the_workers() -> None:
    (budget,) = [document["spec"] for document in documents(ENGINE) if document["kind"] == "PodDisruptionBudget"]
    assert budget["selector"] == {"matchLabels": {"leaderworkerset.sigs.k8s.io/name": "demo"}}


@both
def test_nothing_may_use_the_api_of_kubernetes(name: str) -> None:
    """Upstream's examples start ranks by `kubectl exec`, for which a pod needs pods/exec."""
    assert not {"Role", "RoleBinding", "ClusterRole"} & {document["kind"] for document in documents(name)}
    assert all(pod["automountServiceAccountToken"] is False for pod in pod_specs(documents(name)).values())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"runtime": "cpu"}, "multiNode is for engines of GPUs"),
        ({"engine": {**VARIANTS[ENGINE]["engine"], "gpus": 15}}, "2 pods (multiNode.size) cannot share them equally"),
        ({"multiNode": {"enabled": True}}, "multiNode.ssh.existingSecret is empty"),
        ({"multiNode": {"enabled": True, "size": 1}}, "size"),
        ({"multiNode": {"environment": {"LD_PRELOAD": "x.so"}}}, "'LD_PRELOAD' does not match"),
        ({"multiNode": {"ssh": {"port": 22}}}, "port"),
    ],
)
def test_a_group_that_cannot_work_is_refused(changes: dict[str, Any], expected: str) -> None:
    assert expected in refusal(changes, ENGINE)


def test_misspelt_fields_of_the_set_and_of_both_templates_are_found() -> None:
    """So that the strict test of the renders can fail."""
    owner = serving_owner(documents(ENGINE))
    group = owner["spec"]["leaderWorkerTemplate"]
    for part in (
        owner["spec"],
        group,
        group["leaderTemplate"]["spec"],
        group["workerTemplate"]["spec"]["containers"][0],
    ):
        part["sizze"] = 2
        wrong = copy.deepcopy(owner)
        del part["sizze"]
        assert len(complaints(wrong)) == 1
    assert complaints(owner) == []
