"""The chart, rendered by a real helm. Without helm, a test skips with the reason; NEED_DEPLOY_TOOLS=1 makes it fail."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.chart_files import CHART, EXAMPLES, render
from scripts.deploy_tools import TOOLS

Document = dict[str, Any]
Values = dict[str, Any]

HELM = TOOLS / "bin" / "helm"
KUBECTL = TOOLS / "bin" / "kubectl"
DIGEST = "sha256:" + "5" * 64

_MANIFEST = "4" * 64
_GPU: Values = {"apiKeys": {"existingSecret": "keys"}, "replicas": 3}
_PVC: Values = {"store": "pvc", "path": "llama/1.2.1-0123456789ab", "pvc": {"claimName": "engines"}, "gpus": 2}
_IMAGE: Values = {"store": "image", "image": {"reference": f"registry.example.com/engines/llama@{DIGEST}"}}
_S3: Values = {
    "store": "s3",
    "path": "llama/1.2.1-0123456789ab",
    "sizeGiB": 40,
    "manifestSha256": _MANIFEST,
    "s3": {"image": "rclone/rclone:1.71", "bucket": "engines", "endpoint": "https://s3.local", "existingSecret": "s3"},
}
_EGRESS: Values = {"egress": [{"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "ports": [{"port": 443}]}]}
_FLEET = 'root = "/engines"\n[[engines]]\nmodel = "/models/llama"\ntarget = "h100"\n'

# Every runtime with every store, and the switches that add or remove objects. The examples are rendered too.
VARIANTS: dict[str, Values] = {
    "engine-pvc": {**_GPU, "runtime": "engine", "engine": _PVC},
    "engine-image": {**_GPU, "runtime": "engine", "engine": _IMAGE},
    "engine-s3": {**_GPU, "runtime": "engine", "engine": _S3, "networkPolicy": _EGRESS},
    "pytorch-pvc": {**_GPU, "runtime": "pytorch", "engine": _PVC, "models": {"claimName": "models"}},
    "pytorch-image": {**_GPU, "runtime": "pytorch", "engine": _IMAGE},
    "pytorch-s3": {**_GPU, "runtime": "pytorch", "engine": _S3, "networkPolicy": _EGRESS},
    "cpu-pvc": {**_GPU, "engine": _PVC},
    "cpu-image": {**_GPU, "engine": _IMAGE},
    "cpu-s3": {**_GPU, "engine": _S3, "networkPolicy": _EGRESS},
    "multi-node-engine": {
        **_GPU,
        "runtime": "engine",
        "engine": {**_PVC, "gpus": 16, "id": "1.2.1-0123456789ab"},
        "multiNode": {
            "enabled": True,
            "size": 2,
            "ssh": {"existingSecret": "ssh"},
            "exclusiveTopology": "topology.kubernetes.io/rack",
            "environment": {"NCCL_IB_HCA": "mlx5", "OMPI_MCA_btl_tcp_if_include": "eth0"},
            "limits": {"rdma/ib": 8, "hugepages-2Mi": "4Gi"},
        },
        "gateway": {
            "inferencePool": {"enabled": True, "endpointPicker": {"name": "picker"}},
            "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}], "backend": "InferencePool"},
        },
    },
    "multi-node-pytorch": {
        **_GPU,
        "runtime": "pytorch",
        "replicas": 1,
        "engine": {**_PVC, "gpus": 32},
        "models": {"claimName": "models"},
        "multiNode": {"enabled": True, "size": 4, "ssh": {"existingSecret": "ssh", "port": 2200}, "dns": []},
    },
    "build-job": {
        **_GPU,
        "runtime": "engine",
        "replicas": 0,
        "engine": _PVC,
        "models": {"claimName": "models"},
        "buildJob": {"enabled": True, "gpus": 2, "fleet": _FLEET},
    },
    "open-single": {
        "requireApiKey": False,
        "replicas": 1,
        "networkPolicy": {"enabled": False},
        "stack": {"runAsUser": None},
        "frontend": {"runAsUser": None},
    },
    "autoscaled": {
        **_GPU,
        "runtime": "engine",
        "engine": _PVC,
        "autoscaling": {
            "enabled": True,
            "serverAddress": "http://prometheus-operated.monitoring.svc:9090",
            "triggerAuthentication": "prometheus",
            "requestsPerReplica": 44.8,
        },
    },
    "everything-else": {
        **_GPU,
        "runtime": "engine",
        "engine": {**_PVC, "id": "1.2.1-0123456789ab", "check": "size"},
        "model": {"name": "llama", "aliases": ["a", "b"], "maxModelLen": 4096},
        "images": {"pullSecrets": ["registry"]},
        "tritonSecret": {"existingSecret": "triton"},
        "tenantSecret": {"existingSecret": "tenant"},
        "gpu": {"computeCapability": "12.0", "minMemoryMiB": 90000, "minDriver": 580},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "nodeSelector": {"pool": "gpu"},
        "priorityClassName": "serving",
        "runtimeClassName": "nvidia",
        "podLabels": {"team": "a"},
        "podAnnotations": {"note": "b"},
        "service": {"type": "LoadBalancer", "port": 443, "annotations": {"c": "d"}},
        "networkPolicy": {"monitoring": [{"namespaceSelector": {}}], **_EGRESS},
        "test": {"apiKey": {"existingSecret": "test"}},
        "tracing": {
            "endpoint": "http://collector.observability:4318",
            "serviceName": "llama",
            "resourceAttributes": {"deployment.environment.name": "test"},
            "headers": {"existingSecret": "otlp"},
            "egress": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "collector"}}}],
        },
        "triton": {"settings": {"TRTLLM_BLOCK_REUSE": True, "MAX_QUEUED_REQUESTS": 2000000}},
        "monitoring": {
            "podMonitor": {"enabled": True, "labels": {"e": "f"}, "apiKey": {"existingSecret": "metrics"}},
            "rules": {"enabled": True, "labels": {"e": "f"}, "runbookUrl": "https://wiki.example.com/runbooks"},
            "dashboards": {"enabled": True, "annotations": {"g": "h"}},
        },
    },
}
# Pods are those of other releases.
ROUTES: dict[str, Values] = {
    "route": {
        "gateway": {
            "httpRoute": {
                "enabled": True,
                "only": True,
                "parentRefs": [{"name": "public", "namespace": "gateway", "sectionName": "https"}],
                "hostnames": ["llm.example.com"],
                "paths": ["/v1", "/v2"],
                "releases": [{"name": "llama-1a2b3c4d", "weight": 95}, {"name": "llama-5e6f7a8b", "weight": 5}],
            }
        }
    }
}
SERVING_EXAMPLES = [name for name in EXAMPLES if not name.startswith("route")]
ALL = [*SERVING_EXAMPLES, *VARIANTS]
RENDERED = [*EXAMPLES, *VARIANTS]
OF_IMAGE_VOLUMES = {name for name in VARIANTS if name.endswith("-image")} | {"h100-engine"}


def need_tools() -> None:
    """Skips the test, or fails it if NEED_DEPLOY_TOOLS is set, unless the tools have been downloaded."""
    if not (TOOLS / "complete").is_file():
        reason = "helm and kubectl are not here: make deploy-tools"
        if os.environ.get("NEED_DEPLOY_TOOLS"):
            pytest.fail(reason)
        pytest.skip(reason)


@cache
def documents(name: str, kubernetes: str = "1.34") -> tuple[Document, ...]:
    """The objects of an example or a variant, the pod of `helm test` included. Not to be changed: they are cached."""
    need_tools()
    return _render(EXAMPLES[name] if name in EXAMPLES else _file_of(VARIANTS[name]), kubernetes)


def rendered(changes: Values, variant: str = "engine-pvc") -> tuple[Document, ...]:
    """The objects of a variant with some values replaced, at their first level."""
    need_tools()
    return _render(_file_of({**VARIANTS[variant], **changes}), "1.34")


def refusal(changes: Values, variant: str = "engine-pvc", kubernetes: str = "1.34") -> str:
    """What helm prints when it refuses to render a variant with some values replaced."""
    need_tools()
    with pytest.raises(subprocess.CalledProcessError) as caught:
        render("demo", [_file_of({**VARIANTS[variant], **changes})], kubernetes)
    assert caught.value.stdout == ""
    return str(caught.value.stderr)


def _render(values: Path, kubernetes: str) -> tuple[Document, ...]:
    return tuple(document for document in yaml.safe_load_all(render("demo", [values], kubernetes)) if document)


def _file_of(values: Values) -> Path:
    """JSON is YAML. One file for each content, below .run."""
    content = json.dumps(values, sort_keys=True)
    path = TOOLS / "values" / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return path


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    need_tools()
    command = [str(HELM), *map(str, arguments)]
    return subprocess.run(command, cwd=CHART, capture_output=True, text=True, timeout=60, check=False)


@cache
def validator() -> Any:
    """The module `kubernetes_validate`, from the downloaded tools."""
    need_tools()
    sys.path.append(str(TOOLS / "site"))  # last: what is installed here takes precedence
    import kubernetes_validate

    return kubernetes_validate


def only(documents: tuple[Document, ...], kind: str, component: str = "serve") -> Document:
    """The one object of a kind and component."""
    (found,) = [
        document
        for document in documents
        if document["kind"] == kind and document["metadata"]["labels"]["app.kubernetes.io/component"] == component
    ]
    return found


def serving_owner(documents: tuple[Document, ...]) -> Document:
    """The Deployment or the LeaderWorkerSet."""
    (found,) = [document for document in documents if document["kind"] in ("Deployment", "LeaderWorkerSet")]
    return found


def serving_template(documents: tuple[Document, ...]) -> Document:
    """The template of the pods that serve the API."""
    spec = serving_owner(documents)["spec"]
    template: Document = (
        spec["leaderWorkerTemplate"]["leaderTemplate"] if "leaderWorkerTemplate" in spec else spec["template"]
    )
    return template


def pod_specs(documents: tuple[Document, ...]) -> dict[str, Document]:
    """Every pod that the objects start, by the kind of its owner; "Worker" is that of a LeaderWorkerSet too."""
    found = {}
    for document in documents:
        if document["kind"] == "Pod":
            found["Pod"] = document["spec"]
        elif document["kind"] in ("Deployment", "Job"):
            found[document["kind"]] = document["spec"]["template"]["spec"]
        elif document["kind"] == "LeaderWorkerSet":
            group = document["spec"]["leaderWorkerTemplate"]
            found["LeaderWorkerSet"] = group["leaderTemplate"]["spec"]
            found["Worker"] = group["workerTemplate"]["spec"]
    return found


def containers(pod: Document) -> dict[str, Document]:
    """Containers and init containers by name."""
    return {container["name"]: container for container in (*pod.get("initContainers", ()), *pod["containers"])}


def variables(container: Document) -> dict[str, str]:
    """Environment variables that have a value, by name."""
    return {entry["name"]: entry["value"] for entry in container.get("env", ()) if "value" in entry}
