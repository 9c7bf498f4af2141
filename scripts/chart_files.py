"""Writes what is generated from the chart: `python -m scripts.chart_files`.

    deploy/chart/values.schema.json        the names that `settings` may have, from the programs' settings
    deploy/kubernetes/rendered/<example>/  the chart's examples as plain manifests, with a kustomization.yaml

It needs helm: `make deploy-tools`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from frontend.settings import FrontendSettings, HashedKey
from launcher.gpu.launch import LaunchSettings
from launcher.settings import StackSettings
from llm_pipeline.runtime.settings import PipelineSettings

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "chart"
SCHEMA = CHART / "values.schema.json"
RENDERED = ROOT / "deploy" / "kubernetes" / "rendered"
HELM = ROOT / ".run" / "deploy-tools" / "bin" / "helm"
EXAMPLES = {path.stem: path for path in sorted((CHART / "examples").glob("*.yaml"))}
KUBERNETES = "1.34"  # of the rendered files
_HELM_LIMIT_S = 60

# Names, addresses, paths and time limits that the chart sets from other values, and settings for several Tritons, of
# which a pod has one.
OF_THE_CHART = frozenset(
    [
        "API_KEYS_FILE",
        "AUTH",
        "BACKEND",
        "DEPLOYMENT",
        "DRAIN_TIMEOUT_S",
        "ENGINE_DIR",
        "EXECUTOR",
        "GPU_COUNT",
        "HOST",
        "LAUNCH_MODE",
        "LIMITS_ON_FAILURE",
        "LWS_GROUP_SIZE",
        "LWS_LEADER_ADDRESS",
        "MAX_MODEL_LEN",
        "MODEL_ALIASES",
        "MODEL_NAME",
        "MODEL_REPOSITORY",
        "MPIRUN",
        "MPIRUN_HOSTFILE",
        "MPIRUN_HOSTS",
        "MPIRUN_HOSTS_TIMEOUT_S",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "POOL_LOAD_BOUND",
        "POOL_POLICY",
        "POOL_PREFIX_BYTES",
        "PORT",
        "REQUEST_TIMEOUT_S",
        "RUN_DIR",
        "SCRIPTED_FILE",
        "SSH_KEYS",
        "SSH_PORT",
        "START_TIMEOUT_S",
        "TLLM_SPAWN_PROXY_PROCESS",
        "TRITONSERVER",
        "TRITON_BACKENDS",
        "TRITON_EXIT_TIMEOUT_S",
        "TRITON_GRPC_PORT",
        "TRITON_GRPC_URL",
        "TRITON_HOST",
        "TRITON_HTTP_PORT",
        "TRITON_INFERENCE",
        "TRITON_METRICS_HOST",
        "TRITON_METRICS_PORT",
        "TRITON_MODEL",
        "TRTLLM_CHECK_FILES",
        "TRTLLM_LLMAPI_LAUNCH",
        "TRTLLM_WORKER_PATH",
    ]
)
_READ_BY: dict[str, tuple[type[BaseSettings], ...]] = {
    "stackSetting": (StackSettings, FrontendSettings, PipelineSettings),
    "frontendSetting": (FrontendSettings,),
    "tritonSetting": (LaunchSettings, PipelineSettings),
}


def setting_names() -> dict[str, list[str]]:
    """Names of environment variables that values may set, by the schema's definition. Secrets are not among them."""
    return {
        definition: sorted(
            {
                name.upper()
                for settings in programs
                for name, field in settings.model_fields.items()
                if not _is_secret(name, field)
            }
            - OF_THE_CHART
        )
        for definition, programs in _READ_BY.items()
    }


def _is_secret(name: str, field: FieldInfo) -> bool:
    annotation = str(field.annotation)
    return name == "api_key" or any(kind.__name__ in annotation for kind in (SecretStr, HashedKey))


def schema() -> str:
    """Returns the schema with the current names of settings."""
    document = json.loads(SCHEMA.read_text(encoding="utf-8"))
    for definition, names in setting_names().items():
        document["$defs"][definition] = {"enum": names}
    return json.dumps(document, indent=2) + "\n"


def render(name: str, values: Iterable[str | Path], kubernetes: str = KUBERNETES, *options: str) -> str:
    """Returns the output of `helm template`. Raises CalledProcessError, with its stderr, if helm refuses."""
    files = [argument for path in values for argument in ("--values", str(path))]
    command = [str(HELM), "template", name, str(CHART), *files, "--kube-version", kubernetes, *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=_HELM_LIMIT_S, check=True)
    return run.stdout


def files_of(example: str) -> dict[str, str]:
    """The files of a rendered example by name: one for each template, and the kustomization."""
    parts: dict[str, list[str]] = {}
    for document in render(example, [EXAMPLES[example]], KUBERNETES, "--skip-tests").split("---\n"):
        lines = [line.rstrip() for line in document.splitlines() if line.strip()]
        if not lines:
            continue
        source = lines[0].rpartition("/")[2]
        parts.setdefault(source, []).append("\n".join(lines[1:]) + "\n")
    head = f"# Rendered from deploy/chart/examples/{example}.yaml by python -m scripts.chart_files\n"
    files = {source: head + "---\n".join(documents) for source, documents in sorted(parts.items())}
    resources = "".join(f"  - {source}\n" for source in files)
    kustomization = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n" + resources
    return {**files, "kustomization.yaml": head + kustomization}


def main() -> None:
    """Writes the files, and removes rendered ones that are no longer made."""
    SCHEMA.write_text(schema(), encoding="utf-8")
    for example in EXAMPLES:
        _write(RENDERED / example, files_of(example))


def _write(folder: Path, files: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
