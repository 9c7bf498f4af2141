"""What differs between one installation's rules and another's: which series are meant, objectives and thresholds.

Expressions name a parameter as <<name>>. The defaults of objectives and thresholds are the chart's values. In the
chart's own file of rules the names remain, and templates/prometheusrule.yaml replaces them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
VALUES = ROOT / "deploy" / "chart" / "values.yaml"


@dataclass(frozen=True)
class Parameters:
    """Selectors are label matchers in PromQL. Everything is text, because it becomes part of expressions."""

    availability: str  # objective: part of the requests that do not fail
    first_token_ratio: str  # objective: part of the streams whose first token comes within first_token_le
    first_token_le: str  # label of a bucket of completions_time_to_first_token_seconds
    kv_cache_fraction: str
    queue_full_ratio: str
    queued_ratio: str
    pod_not_ready_seconds: str
    scope: str = 'job="triton-completions"'  # the series of the front ends
    pods: str = 'namespace="completions"'  # their pods, in the metrics of kube-state-metrics and of DCGM
    exported_pods: str = 'exported_namespace="completions"'  # the same where the exporter's own pod has those names
    scaled_object: str = 'scaledObject!=""'  # in KEDA's metrics
    autoscaler: str = 'namespace="completions"'  # KEDA's HorizontalPodAutoscaler
    runbook_url: str = "docs/runbooks.md"


def of_values(values: Mapping[str, Any], **changes: str) -> Parameters:
    """The parameters of the section `monitoring` of the chart's values."""
    objectives, thresholds = values["slo"], values["thresholds"]
    numbers = {
        "availability": str(objectives["availability"]),
        "first_token_ratio": str(objectives["firstTokenRatio"]),
        "first_token_le": str(float(objectives["firstTokenSeconds"])),
        "kv_cache_fraction": str(thresholds["kvCacheFraction"]),
        "queue_full_ratio": str(thresholds["queueFullRatio"]),
        "queued_ratio": str(thresholds["queuedRatio"]),
        "pod_not_ready_seconds": str(thresholds["podNotReadySeconds"] or 300),
    }
    return Parameters(**{**numbers, **changes})


def defaults(**changes: str) -> Parameters:
    """Those of the chart's own values, with some replaced."""
    return of_values(yaml.safe_load(VALUES.read_text(encoding="utf-8"))["monitoring"], **changes)


def filled_in(text: str, parameters: Parameters) -> str:
    """Replaces every <<name>>."""
    for name, value in asdict(parameters).items():
        text = text.replace(f"<<{name}>>", value)
    return text
