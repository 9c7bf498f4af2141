"""Small programs that look at this machine, each run as a process: `python -m scripts.prove_on_gpu.probes NAME OUT`.

The result is a JSON document in the file OUT, because TensorRT-LLM and the libraries below it write to both standard
streams. Every heavy import is inside the probe that needs it.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.prove_on_gpu.context import PROBE_FAILED
from scripts.prove_on_gpu.signatures import compare_installed

if TYPE_CHECKING:
    from build_engine.gpu.planning.options import GpuOptions
    from build_engine.targets.nvml import DetectedGpus

_PACKAGES = (
    *("tensorrt_llm", "tensorrt", "torch", "triton", "transformers", "xgrammar", "llguidance", "nvidia-modelopt"),
    *("flashinfer-python", "mpi4py", "numpy", "pydantic", "nvidia-ml-py", "nvidia-pytriton", "triton-completions"),
)


def installed() -> dict[str, Any]:
    """The version of TensorRT-LLM, read from its metadata; a stand-in has none and is imported."""
    return {"tensorrt_llm": _version("tensorrt_llm") or _imported_version("tensorrt_llm")}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _imported_version(package: str) -> str | None:
    if util.find_spec(package) is None:
        return None
    module: Any = __import__(package)
    return str(module.__version__)


def versions() -> dict[str, Any]:
    """Versions of Python, of the packages that matter here, and of the operating system."""
    packages = {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    if "tensorrt_llm" not in packages and (version := _imported_version("tensorrt_llm")) is not None:
        packages["tensorrt_llm"] = version
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "glibc": " ".join(platform.libc_ver()),
        "packages": packages,
    }


def torch_devices() -> dict[str, Any]:
    """The GPUs as torch sees them."""
    import torch  # type: ignore[import-not-found, unused-ignore]

    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if devices else None,
        "gpus": [
            {"name": item.name, "sm": 10 * item.major + item.minor, "memory_bytes": int(item.total_memory)}
            for item in devices
        ],
    }


def driver() -> dict[str, Any]:
    """The GPUs and versions that the driver reports through NVML."""
    from build_engine.targets.nvml import PynvmlNvml

    nvml = PynvmlNvml()
    return {
        "driver": nvml.driver_version(),
        "cuda": nvml.cuda_version(),
        "gpus": [{"name": gpu.name, "sm": gpu.sm, "memory_bytes": gpu.memory_bytes} for gpu in nvml.gpus()],
    }


def target() -> dict[str, Any]:
    """The target that `--target auto` resolves to."""
    from build_engine.targets.gpus import GPUS
    from build_engine.targets.nvml import PynvmlNvml, detect_gpu

    detected = detect_gpu(PynvmlNvml())
    gpu = detected.gpu
    return {
        "name": gpu.name,
        "product": gpu.product,
        "sm": gpu.sm,
        "memory_bytes": gpu.memory_bytes,
        "count": detected.count,
        "is_in_table": gpu.name in GPUS,
    }


def plan(version: str, *models: str) -> dict[str, Any]:
    """What `build_engine plan --target auto` says of each model directory, for every runtime.

    `version` is TensorRT-LLM's; "" is the default. The planners are called directly: the program would need the
    libraries of every command.
    """
    from build_engine.errors import EngineRefusedError
    from build_engine.gpu.planning.options import GpuOptions
    from build_engine.gpu.planning.plan_json import refused_json
    from build_engine.targets.nvml import PynvmlNvml, detect_gpu

    detected = detect_gpu(PynvmlNvml())
    options = GpuOptions(tensorrt_llm=version) if version else GpuOptions()
    plans = []
    for folder in map(Path, models):
        for runtime, make_plan in _PLANNERS.items():
            try:
                document = make_plan(folder, detected, options)
            except (EngineRefusedError, ModuleNotFoundError) as error:  # a bare machine may lack a library
                document = refused_json(str(error))
            plans.append({**document, "model_dir": folder.name, "runtime": runtime})
    return {"plans": plans}


def _plan_engine(folder: Path, detected: DetectedGpus, options: GpuOptions) -> dict[str, Any]:
    from build_engine.gpu.planning.model_config import read_model_config
    from build_engine.gpu.planning.plan_json import plan_json
    from build_engine.gpu.planning.planner import PlanRequest, make_plan

    model = read_model_config(folder)
    return plan_json(make_plan(PlanRequest(model, folder, detected.gpu, detected.count, options=options)))


def _plan_pytorch(folder: Path, detected: DetectedGpus, options: GpuOptions) -> dict[str, Any]:
    from build_engine.pytorch.checkpoint.model_directory import read_model_directory
    from build_engine.pytorch.planning.plan_json import plan_json
    from build_engine.pytorch.planning.planner import PyTorchRequest, plan_model

    model = read_model_directory(folder)
    return plan_json(plan_model(PyTorchRequest(model, detected.gpu, detected.count, options=options)))


_PLANNERS: dict[str, Callable[[Path, DetectedGpus, GpuOptions], dict[str, Any]]] = {
    "engine": _plan_engine,
    "pytorch": _plan_pytorch,
}


PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    "installed": installed,
    "versions": versions,
    "torch_devices": torch_devices,
    "driver": driver,
    "target": target,
    "plan": plan,
    "signatures": compare_installed,
}


def main(arguments: list[str]) -> int:
    """Runs the probe that the first argument names and writes its document to the second."""
    name, output, *rest = arguments
    try:
        document = PROBES[name](*rest)
    except Exception as error:  # noqa: BLE001 - the only thing that this process does: its message is the result
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")
        return PROBE_FAILED
    Path(output).write_text(json.dumps(document, default=str), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
