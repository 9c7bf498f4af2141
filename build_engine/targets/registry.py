"""What engines can be built for. A target is data; the step that compiles for its kind lives in a module of its own."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from enum import Enum

from build_engine.errors import EngineRefusedError
from build_engine.model_names import slug
from build_engine.targets.gpus import ALIASES, GB, GPUS, Gpu
from build_engine.targets.precisions import precision_names


class TargetKind(Enum):
    """Which compiler makes the engine."""

    OPENVINO_CPU = "openvino-cpu"
    TENSORRT_LLM = "tensorrt-llm"


@dataclass(frozen=True)
class Target:
    name: str
    kind: TargetKind
    description: str
    precisions: tuple[str, ...]  # the first is the default
    packages: tuple[str, ...]  # importable modules that the build needs
    extra: str  # the extra of this project that installs them
    gpu: Gpu | None = None  # what TENSORRT_LLM builds for

    @property
    def default_precision(self) -> str:
        return self.precisions[0]


CPU = Target(
    name="cpu",
    kind=TargetKind.OPENVINO_CPU,
    description="any x86-64 or Arm CPU, through OpenVINO; the same files run on each of them",
    precisions=("fp16", "int8"),
    packages=("gguf", "openvino", "safetensors", "tokenizers"),
    extra="build",
)


def gpu_target(gpu: Gpu) -> Target:
    """The target of a GPU; its first precision is what `auto` takes for a bfloat16 model."""
    return Target(
        name=gpu.name,
        kind=TargetKind.TENSORRT_LLM,
        description=f"NVIDIA {gpu.product}, SM {gpu.sm}, {gpu.memory_bytes / GB:.0f} GB",
        precisions=precision_names(gpu.sm),
        packages=("tensorrt_llm",),
        extra="tensorrt-llm",
        gpu=gpu,
    )


TARGETS = {CPU.name: CPU} | {name: gpu_target(gpu) for name, gpu in GPUS.items()}


@dataclass(frozen=True)
class Availability:
    """Whether this machine can build for a target, and why (not)."""

    works: bool
    reason: str


def find_target(name: str) -> Target:
    """The target of that name, in any spelling ("RTX PRO 6000"); EngineRefusedError lists the known ones."""
    known = slug(name)
    try:
        return TARGETS[ALIASES.get(known, known)]
    except KeyError:
        raise EngineRefusedError(f"Unknown target {name!r}. Known targets: {', '.join(TARGETS)}.") from None


def find_precision(target: Target, precision: str | None) -> str:
    """The precision asked for, or the target's default; EngineRefusedError when the target does not have it."""
    chosen = precision or target.default_precision
    if chosen not in target.precisions:
        known = ", ".join(target.precisions)
        raise EngineRefusedError(f"Target {target.name} has no precision {chosen!r}. It builds: {known}.")
    return chosen


def availability(target: Target) -> Availability:
    """Look for the target's packages without importing them (OpenVINO takes a second to import)."""
    if sys.platform != "linux":
        return Availability(False, f"builds are supported on Linux, this is {sys.platform}")
    missing = [name for name in target.packages if importlib.util.find_spec(name) is None]
    if missing:
        install = f"pip install 'triton-completions[{target.extra}]'"
        return Availability(False, f"missing {', '.join(missing)}: {install}")
    return Availability(True, "all packages are installed")


def require_available(target: Target) -> None:
    """EngineRefusedError with the reason when this machine can't build for the target."""
    found = availability(target)
    if not found.works:
        raise EngineRefusedError(f"Can't build for {target.name} here: {found.reason}.")
