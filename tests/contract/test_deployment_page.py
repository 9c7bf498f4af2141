"""docs/deployment.md: the keys file, the Kubernetes example, and the settings of the GPU launcher."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from frontend.api import route_paths as paths
from frontend.api_key import ApiKey
from frontend.settings import FrontendSettings
from launcher.gpu.launch import LaunchSettings
from llm_pipeline.runtime.settings import PipelineSettings

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
READ_BY = {"triton": (LaunchSettings, PipelineSettings), "frontend": (FrontendSettings,)}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    (deployment,) = (yaml.safe_load(block) for block in blocks("yaml"))
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def containers(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {container["name"]: container for container in (*pod["initContainers"], *pod["containers"])}


def variable_of(container: dict[str, Any], name: str) -> str:
    (value,) = [variable["value"] for variable in container["env"] if variable["name"] == name]
    return str(value)


def test_keys_file_is_valid() -> None:
    (keys,) = (json.loads(block) for block in blocks("json"))
    assert [ApiKey(**key).name for key in keys] == ["alice", "batch", "prometheus"]


def test_variables_of_the_pod_are_settings(pod: dict[str, Any]) -> None:
    for name, container in containers(pod).items():
        known = {field.upper() for settings in READ_BY[name] for field in settings.model_fields}
        assert {variable["name"] for variable in container["env"]} <= known


def test_front_end_probes_use_public_paths(pod: dict[str, Any]) -> None:
    frontend = containers(pod)["frontend"]
    probed = {frontend[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")}
    assert probed == {f"{paths.HEALTH_ROOTS[0]}/{end}" for end in ("ready", "live")}
    assert all(paths.is_public(path, metrics_needs_key=True) for path in probed)


def test_grace_period_covers_the_drain(pod: dict[str, Any]) -> None:
    """In sequence: preStop, the front end with 7 s for its last writes, Triton."""
    frontend, triton = containers(pod)["frontend"], containers(pod)["triton"]
    drains_s = int(variable_of(frontend, "DRAIN_TIMEOUT_S")) + 7 + int(variable_of(triton, "TRITON_EXIT_TIMEOUT_S"))
    assert pod["terminationGracePeriodSeconds"] > frontend["lifecycle"]["preStop"]["sleep"]["seconds"] + drains_s


def test_containers_of_the_pod_are_restricted(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in containers(pod).values():
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}


def test_page_names_every_launch_setting() -> None:
    assert [name.upper() for name in LaunchSettings.model_fields if f"`{name.upper()}`" not in PAGE] == []
