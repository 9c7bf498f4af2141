"""The targets that engines can be built for, and whether this machine has the packages to do it."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from enum import Enum

from build_engine.errors import EngineRefusedError
from build_engine.model_names import slug
from build_engine.targets.gpus import ALIASES, GB, GPUS, Gpu
from build_engine.targets.precisions import precision_names

AUTO = "auto"  # instead of a name: the GPU of this machine


class TargetKind(Enum):
    """The compiler that builds the engine."""

    OPENVINO_CPU = "openvino-cpu"
    TENSORRT_LLM = "tensorrt-llm"


@dataclass(frozen=True)
class Target:
    name: str
    kind: TargetKind
    description: str
    precisions: tuple[str, ...]  # the first is the default
    packages: tuple[str, ...]  # modules that the build imports
    extra: str  # the extra of this project that installs them
    gpu: Gpu | None = None  # set for TENSORRT_LLM

    @property
    def default_precision(self) -> str:
        return self.precisions[0]


CPU = Target(
    name="cpu",
    kind=TargetKind.OPENVINO_CPU,
    description="any x86-64 or Arm CPU, through OpenVINO; the same files run on all of them",
    precisions=("fp16", "int8"),
    packages=("gguf", "openvino", "safetensors", "tokenizers"),
    extra="build",
)


def gpu_target(gpu: Gpu) -> Target:
    """The target of a GPU. Its first precision is the one that `auto` selects for a bfloat16 model."""
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
    """Whether this machine can build for a target, with the reason."""

    works: bool
    reason: str


def find_target(name: str) -> Target:
    """The target of that name, in any spelling ("RTX PRO 6000"). Raises EngineRefusedError if there is none."""
    key = slug(name)
    try:
        return TARGETS[ALIASES.get(key, key)]
    except KeyError:
        raise EngineRefusedError(f"Unknown target {name!r}. Known targets: {', '.join(TARGETS)}.") from None


def find_precision(target: Target, precision: str | None) -> str:
    """`precision`, or the target's default if None. Raises EngineRefusedError if the target does not support it."""
    precision = precision or target.default_precision
    if precision not in target.precisions:
        supported = ", ".join(target.precisions)
        raise EngineRefusedError(
            f"Target {target.name} does not support precision {precision!r}. Choose one of {supported}."
        )
    return precision


def availability(target: Target) -> Availability:
    """Finds the target's packages without importing them, since importing OpenVINO takes a second."""
    if sys.platform != "linux":
        return Availability(False, f"engines can be built on Linux only, and this is {sys.platform}")
    missing = [name for name in target.packages if importlib.util.find_spec(name) is None]
    if missing:
        install = f"pip install 'triton-completions[{target.extra}]'"
        return Availability(False, f"missing {', '.join(missing)}: {install}")
    return Availability(True, "all packages are installed")


def require_available(target: Target) -> None:
    """Raises EngineRefusedError with the reason if this machine can't build for the target."""
    here = availability(target)
    if not here.works:
        raise EngineRefusedError(f"This machine can't build for {target.name}: {here.reason}.")
