"""The engine in a rendered pod: its store, the gate in front of it, settings, GPUs and the build Job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from build_engine.errors import EngineRefusedError
from build_engine.fleet.file import read_fleet_file
from frontend.settings import FrontendSettings
from launcher.engine_gate import REFUSED_STATUS, GateSettings
from launcher.gpu.launch import LaunchSettings
from launcher.settings import StackSettings
from llm_pipeline.engine_files.manifest import sha256_of
from llm_pipeline.runtime.settings import PipelineSettings
from llm_pipeline.runtime.tracing_settings import TracingSettings
from scripts.chart_files import ROOT
from tests.fakes.gpu_engine import make_gpu_engine
from tests.fakes.model_directory import make_model_directory
from tests.support.chart import (
    ALL,
    DIGEST,
    VARIANTS,
    Document,
    containers,
    documents,
    only,
    pod_specs,
    refusal,
    rendered,
    serving_template,
    variables,
)

READ_BY: dict[str, tuple[type[Any], ...]] = {
    "gate": (GateSettings,),
    "stack": (StackSettings, FrontendSettings, PipelineSettings, TracingSettings),
    "triton": (LaunchSettings, PipelineSettings, TracingSettings),
    "frontend": (FrontendSettings, TracingSettings),
}
LIBRARIES = ("NCCL_", "UCX_", "OMPI_MCA_")  # whose variables multiNode.environment may set
EXECUTORS = {"cpu": "cpu", "engine": "tensorrt_llm", "pytorch": "tensorrt_llm_pytorch"}
every_render = pytest.mark.parametrize("name", ALL)


def serving_pod(name: str) -> Document:
    spec: Document = serving_template(documents(name))["spec"]
    return spec


def server_of(pod: Document) -> Document:
    """The container that loads the engine."""
    found = containers(pod)
    return found.get("triton") or found["stack"]


def engine_mounts(container: Document) -> list[Document]:
    return [mount for mount in container.get("volumeMounts", ()) if mount["name"] in ("engine", "models")]


# --- The gate --------------------------------------------------------------------------------------------------------


@every_render
def test_the_gate_sees_what_the_server_will_load(name: str) -> None:
    """In the same image, so that it compares the installed version."""
    pod = serving_pod(name)
    gate, server = containers(pod)["gate"], server_of(pod)
    assert gate["command"][1:] == ["-m", "launcher.engine_gate"]
    assert gate["image"] == server["image"]
    assert gate["securityContext"] == server["securityContext"]
    assert engine_mounts(gate) == engine_mounts(server)
    assert all(mount["readOnly"] is True for mount in engine_mounts(gate))
    for variable in {"ENGINE_DIR", "EXECUTOR", "GPU_COUNT"} & set(variables(server)):
        assert variables(gate)[variable] == variables(server)[variable]


@every_render
def test_the_gate_passes_before_anything_else_starts_but_a_copy(name: str) -> None:
    order = [container["name"] for container in serving_pod(name)["initContainers"]]
    is_copied = name.endswith("-s3")
    assert order[: 2 if is_copied else 1] == (["fetch", "gate"] if is_copied else ["gate"])


@every_render
def test_a_refusal_becomes_the_message_of_its_container(name: str) -> None:
    assert containers(serving_pod(name))["gate"]["terminationMessagePolicy"] == "FallbackToLogsOnError"


@pytest.mark.parametrize(("pin", "status"), [("", 0), ("0" * 64, REFUSED_STATUS)])
def test_the_rendered_gate_checks_a_real_engine(engine_dir: Path, pin: str, status: int) -> None:
    """The command and the variables of the container, with the path on this machine."""
    engine = {**VARIANTS["cpu-pvc"]["engine"], "manifestSha256": pin}
    gate = containers(pod_specs(rendered({"engine": engine}, "cpu-pvc"))["Deployment"])["gate"]
    run = subprocess.run(
        [sys.executable, *gate["command"][1:]],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **variables(gate), "ENGINE_DIR": str(engine_dir)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (run.returncode, len((run.stdout + run.stderr).splitlines())) == (status, 1), run.stderr


# --- Settings --------------------------------------------------------------------------------------------------------


@every_render
def test_variables_are_settings_of_their_program(name: str) -> None:
    for container in containers(serving_pod(name)).values():
        if container["name"] != "fetch":
            known = {field.upper() for settings in READ_BY[container["name"]] for field in settings.model_fields}
            names = [entry["name"] for entry in container["env"]]
            assert {name for name in names if not name.startswith(LIBRARIES)} <= known
            assert len(names) == len(set(names))


@every_render
def test_values_of_variables_are_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for container in containers(serving_pod(name)).values():
        for settings in READ_BY.get(container["name"], ()):
            with monkeypatch.context() as patch:
                for variable, value in variables(container).items():
                    patch.setenv(variable, value)
                settings()


def test_settings_reach_their_container_as_text() -> None:
    found = variables(containers(serving_pod("everything-else"))["triton"])
    assert (found["TRTLLM_BLOCK_REUSE"], found["MAX_QUEUED_REQUESTS"]) == ("true", "2000000")


@pytest.mark.parametrize(("runtime", "executor"), EXECUTORS.items())
def test_the_runtime_chooses_the_executor(runtime: str, executor: str) -> None:
    for container in containers(serving_pod(f"{runtime}-pvc")).values():
        assert variables(container)["EXECUTOR"] == executor


# --- Values from a manifest ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["engine", "pytorch"])
def test_inspect_prints_values_for_the_engine(runtime: str, tmp_path: Path) -> None:
    make = make_gpu_engine if runtime == "engine" else make_model_directory
    engine = tmp_path / "1.2.1-0123456789ab"
    make(engine, tp=2, sm=90, model_name="llama")
    values = inspected(engine)
    assert values["runtime"] == runtime
    store = {"store": "pvc", "path": "a", "pvc": {"claimName": "engines"}}
    found = rendered({**values, "engine": {**store, **values["engine"]}})
    pod = pod_specs(found)["Deployment"]
    gate, triton = containers(pod)["gate"], containers(pod)["triton"]
    assert variables(gate)["GATE_MANIFEST_SHA256"] == sha256_of(engine / "manifest.json")
    assert triton["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert variables(containers(pod)["frontend"])["MODEL_NAME"] == "llama"
    labels = only(found, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert labels["engine-id"] == engine.name
    assert "nvidia.com/gpu.compute.major" in json.dumps(pod["affinity"])


def test_values_of_a_cpu_engine_have_no_gpu(engine_dir: Path) -> None:
    values = inspected(engine_dir)
    assert (values["runtime"], "gpu" in values, "gpus" in values["engine"]) == ("cpu", False, False)
    assert values["engine"]["sizeGiB"] == pytest.approx(0.3, abs=0.1)


def inspected(engine: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "build_engine", "inspect", "--chart-values", str(engine)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    values: dict[str, Any] = json.loads(run.stdout)
    return values


# --- Stores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", EXECUTORS)
def test_a_claim_is_mounted_read_only_where_the_build_wrote_to(runtime: str) -> None:
    pod = serving_pod(f"{runtime}-pvc")
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "engine"]
    assert volume["persistentVolumeClaim"] == {"claimName": "engines", "readOnly": True}
    assert variables(server_of(pod))["ENGINE_DIR"] == "/engines/llama/1.2.1-0123456789ab"


@pytest.mark.parametrize("runtime", EXECUTORS)
def test_an_image_volume_is_pinned_by_digest(runtime: str) -> None:
    pod = serving_pod(f"{runtime}-image")
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "engine"]
    assert volume["image"]["reference"] == f"registry.example.com/engines/llama@{DIGEST}"
    assert variables(server_of(pod))["ENGINE_DIR"] == "/engines"


@pytest.mark.parametrize("runtime", EXECUTORS)
def test_a_copy_is_written_by_the_fetching_container_alone_and_hashed(runtime: str) -> None:
    found = containers(serving_pod(f"{runtime}-s3"))
    fetch, gate = found["fetch"], found["gate"]
    assert fetch["command"][:2] == ["rclone", "copy"]
    assert fetch["command"][-2:] == [":s3:engines/llama/1.2.1-0123456789ab", variables(gate)["ENGINE_DIR"]]
    assert [mount["mountPath"] for mount in engine_mounts(fetch)] == ["/engines"]
    assert "readOnly" not in engine_mounts(fetch)[0]
    assert variables(gate)["GATE_CHECK"] == "sha256"
    assert variables(gate)["GATE_MANIFEST_SHA256"] == "4" * 64


def test_the_copy_has_room_on_the_node() -> None:
    pod = serving_pod("engine-s3")
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "engine"]
    assert volume["emptyDir"] == {"sizeLimit": "44Gi"}
    assert containers(pod)["fetch"]["resources"]["requests"]["ephemeral-storage"] == "44Gi"


def test_links_of_a_model_directory_lead_to_the_same_path_in_all_pods() -> None:
    pods = pod_specs(documents("h200-pytorch"))
    gate, job = containers(pods["Deployment"])["gate"], containers(pods["Job"])["build"]
    paths = {mount["name"]: mount["mountPath"] for mount in gate["volumeMounts"]}
    built = {mount["name"]: mount["mountPath"] for mount in job["volumeMounts"]}
    assert (paths["models"], paths["engine"]) == (built["models"], built["engines"])


@pytest.mark.parametrize(
    ("variant", "changes", "expected"),
    [
        ("engine-pvc", {"engine": {"store": "builtIn"}}, "use pvc, image or s3"),
        ("engine-pvc", {"engine": {"store": "pvc", "path": "a"}}, "needs engine.pvc.claimName"),
        ("engine-pvc", {"engine": {"store": "pvc", "pvc": {"claimName": "a"}}}, "engine.path"),
        ("engine-image", {"engine": {"store": "image"}}, "needs engine.image.reference"),
        ("engine-s3", {"engine": {"store": "s3", "path": "a"}}, "needs engine.s3.image"),
        ("engine-s3", {"engine": {**VARIANTS["engine-s3"]["engine"], "check": "size"}}, "needs engine.check sha256"),
        ("engine-s3", {"networkPolicy": {}}, "needs a rule in networkPolicy.egress"),
        ("build-job", {"engine": VARIANTS["engine-image"]["engine"]}, "buildJob writes to the claim"),
        ("build-job", {"buildJob": {"enabled": True, "fleet": 'root = "/other"'}}, 'needs the line: root = "/engines"'),
    ],
)
def test_an_incomplete_store_is_refused(variant: str, changes: dict[str, Any], expected: str) -> None:
    assert expected in refusal(changes, variant)


# --- GPUs and the build ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ALL if "cpu" not in name and name != "open-single"])
def test_triton_gets_the_gpus_that_the_engine_was_built_for(name: str) -> None:
    triton = containers(serving_pod(name))["triton"]
    assert str(triton["resources"]["limits"]["nvidia.com/gpu"]) == variables(triton)["GPU_COUNT"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in serving_pod(name)["tolerations"]


def test_nodes_are_those_with_the_gpu_of_the_engine() -> None:
    affinity = serving_pod("everything-else")["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [
        (entry["key"].rpartition("/")[2], entry["operator"], *entry["values"]) for entry in term["matchExpressions"]
    ] == [
        ("gpu.compute.major", "In", "12"),
        ("gpu.compute.minor", "In", "0"),
        ("gpu.memory", "Gt", "89999"),
        ("cuda.driver.major", "Gt", "579"),
    ]


@pytest.mark.parametrize("name", ["cpu", "open-single", "cpu-pvc"])
def test_the_cpu_runtime_runs_on_any_node(name: str) -> None:
    pod = serving_pod(name)
    assert not {"affinity", "tolerations", "nodeSelector", "runtimeClassName"} & set(pod)
    assert "nvidia.com/gpu" not in server_of(pod)["resources"]["limits"]


def test_a_refused_build_is_not_retried() -> None:
    job = only(documents("build-job"), "Job", "build")["spec"]
    rules = job["podFailurePolicy"]["rules"]
    assert rules[0] == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert rules[1]["action"] == "FailJob"
    assert EngineRefusedError.exit_status in rules[1]["onExitCodes"]["values"]
    assert rules[1]["onExitCodes"]["containerName"] == "build"
    assert job["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("name", ["build-job", "h200-pytorch"])
def test_the_build_reads_a_valid_fleet_file_and_writes_to_the_claim(name: str, tmp_path: Path) -> None:
    found = documents(name)
    file = tmp_path / "fleet.toml"
    file.write_text(only(found, "ConfigMap", "build")["data"]["fleet.toml"])
    engines = read_fleet_file(file)
    assert [str(engine.options.root) for engine in engines] == ["/engines"]
    build = containers(pod_specs(found)["Job"])["build"]
    assert build["command"][-1] == "/etc/fleet/fleet.toml"
    (mount,) = [mount for mount in build["volumeMounts"] if mount["name"] == "engines"]
    assert mount == {"name": "engines", "mountPath": "/engines"}
    assert build["resources"]["limits"]["nvidia.com/gpu"] == (8 if name == "h200-pytorch" else 2)
