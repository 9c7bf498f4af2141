"""The chart, rendered by helm, and what the proof reads from it: timings, settings, and the queries of the scaler."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from launcher.settings import REPOSITORY_ROOT

RELEASE = "fleet"
NAMESPACE = "serving"
CONTAINER = "stack"
_CHART = REPOSITORY_ROOT / "deploy" / "chart"
_HELM = REPOSITORY_ROOT / ".run" / "deploy-tools" / "bin" / "helm"
_HELM_TIMEOUT_S = 60
_DEFAULT_PROBE_TIMEOUT_S = 1.0  # timeoutSeconds of a probe, as Kubernetes defaults it

Values = Mapping[str, Any]
Object = dict[str, Any]


class ChartError(Exception):
    """The chart cannot be rendered. The message has helm's own."""


@dataclass(frozen=True)
class PodTimings:
    """What the kubelet and the controller of a Deployment go by. Times in seconds."""

    pre_stop_s: float
    grace_s: float
    probe_period_s: float
    probe_failures: int
    probe_timeout_s: float
    min_ready_s: float
    max_surge: int
    max_unavailable: int


@dataclass(frozen=True)
class Trigger:
    """One query of the scaler."""

    name: str
    query: str
    threshold: float
    is_average: bool  # of the replicas; otherwise the ratio of value and threshold scales them


@dataclass(frozen=True)
class Policy:
    """One rate limit of a HorizontalPodAutoscaler: `value` pods, or percent of them, in a period."""

    is_percent: bool
    value: int
    period_s: float


@dataclass(frozen=True)
class Direction:
    """How fast replicas are added, or removed."""

    stabilization_s: float
    policies: tuple[Policy, ...]


@dataclass(frozen=True)
class ScalerSpec:
    """A ScaledObject."""

    min_replicas: int
    max_replicas: int
    triggers: tuple[Trigger, ...]
    up: Direction
    down: Direction


def render(values: Values, folder: Path) -> list[Object]:
    """Returns the objects of the release. Writes the values to `folder`. Raises ChartError."""
    if not _HELM.exists():
        raise ChartError(f"There is no helm at {_HELM}. Run `make deploy-tools`.")
    path = folder / "values.json"  # JSON is YAML
    path.write_bytes(orjson.dumps(values))
    command = [str(_HELM), "template", RELEASE, str(_CHART), "--namespace", NAMESPACE, "--values", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=_HELM_TIMEOUT_S, check=False)
    if run.returncode:
        raise ChartError(f"helm does not render the chart: {run.stderr.strip()}")
    return [document for document in yaml.safe_load_all(run.stdout) if document]


def pod_timings(objects: list[Object]) -> PodTimings:
    """Reads the timings of the Deployment."""
    spec = _only(objects, "Deployment")["spec"]
    pod = spec["template"]["spec"]
    container = _container(pod)
    probe, rollout = container["readinessProbe"], spec["strategy"]["rollingUpdate"]
    return PodTimings(
        pre_stop_s=float(container["lifecycle"]["preStop"]["sleep"]["seconds"]),
        grace_s=float(pod["terminationGracePeriodSeconds"]),
        probe_period_s=float(probe["periodSeconds"]),
        probe_failures=int(probe["failureThreshold"]),
        probe_timeout_s=float(probe.get("timeoutSeconds", _DEFAULT_PROBE_TIMEOUT_S)),
        min_ready_s=float(spec["minReadySeconds"]),
        max_surge=int(rollout["maxSurge"]),
        max_unavailable=int(rollout["maxUnavailable"]),
    )


def pod_settings(objects: list[Object]) -> dict[str, str]:
    """Returns the environment variables of the container that have a value."""
    container = _container(_only(objects, "Deployment")["spec"]["template"]["spec"])
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


def scaler_spec(objects: list[Object]) -> ScalerSpec:
    """Reads the ScaledObject."""
    spec = _only(objects, "ScaledObject")["spec"]
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    return ScalerSpec(
        min_replicas=int(spec["minReplicaCount"]),
        max_replicas=int(spec["maxReplicaCount"]),
        triggers=tuple(
            Trigger(
                name=trigger["name"],
                query=trigger["metadata"]["query"],
                threshold=float(trigger["metadata"]["threshold"]),
                is_average=trigger["metricType"] == "AverageValue",
            )
            for trigger in spec["triggers"]
        ),
        up=_direction(behavior["scaleUp"]),
        down=_direction(behavior["scaleDown"]),
    )


def _direction(behavior: Object) -> Direction:
    policies = tuple(
        Policy(policy["type"] == "Percent", int(policy["value"]), float(policy["periodSeconds"]))
        for policy in behavior["policies"]
    )
    return Direction(float(behavior["stabilizationWindowSeconds"]), policies)


def _only(objects: list[Object], kind: str) -> Object:
    (found,) = [document for document in objects if document["kind"] == kind]
    return found


def _container(pod: Object) -> Object:
    found: Object
    (found,) = [container for container in pod["containers"] if container["name"] == CONTAINER]
    return found
