"""Asks the driver which GPUs this machine has, for `--target auto`. The only module that knows `pynvml`.

Memory and SM are always the driver's. The name is a target's where the table has it, else the product's: the plan needs
no table entry.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from build_engine.errors import EngineRefusedError
from build_engine.model_names import slug
from build_engine.targets.gpus import GPUS, Gpu

INSTALL = "pip install nvidia-ml-py"
_MEMORY_TOLERANCE = 0.1  # between a product's nominal memory and the driver's figure


@dataclass(frozen=True)
class NvmlGpu:
    """One GPU as the driver describes it."""

    name: str  # such as "NVIDIA H100 80GB HBM3"
    sm: int
    memory_bytes: int


class Nvml(Protocol):
    """The machine's GPUs, in the driver's order."""

    def gpus(self) -> list[NvmlGpu]:
        """EngineRefusedError when the driver can't be asked."""
        ...

    def driver_version(self) -> str:
        """Such as 580.95.05; EngineRefusedError as above."""
        ...

    def cuda_version(self) -> str:
        """The newest CUDA that the driver runs, such as 13.0; EngineRefusedError as above."""
        ...


@dataclass(frozen=True)
class DetectedGpus:
    gpu: Gpu
    count: int


class PynvmlNvml:
    """Through NVIDIA's own bindings, which are not installed by default."""

    def gpus(self) -> list[NvmlGpu]:
        with _session() as pynvml:
            return [_describe(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]

    def driver_version(self) -> str:
        with _session() as pynvml:
            return _text(pynvml.nvmlSystemGetDriverVersion())

    def cuda_version(self) -> str:
        with _session() as pynvml:
            number = int(pynvml.nvmlSystemGetCudaDriverVersion())  # 13000 for 13.0
        return f"{number // 1000}.{number % 1000 // 10}"


@contextmanager
def _session() -> Iterator[Any]:
    """The bindings, between nvmlInit and nvmlShutdown."""
    pynvml = _import_pynvml()
    try:
        pynvml.nvmlInit()
        try:
            yield pynvml
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise EngineRefusedError(
            f"No NVIDIA driver answers ({error}). Name a GPU with --target; `targets` lists them."
        ) from error


def _import_pynvml() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ModuleNotFoundError as error:
        raise EngineRefusedError(
            f"Asking for this machine's GPU needs NVML's Python bindings: {INSTALL}. "
            "Or name a GPU; `targets` lists them."
        ) from error


def _describe(pynvml: Any, index: int) -> NvmlGpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return NvmlGpu(_text(pynvml.nvmlDeviceGetName(handle)), 10 * int(major) + int(minor), int(memory.total))


def _text(value: str | bytes) -> str:
    """nvidia-ml-py gave bytes before 11.525."""
    return value.decode() if isinstance(value, bytes) else value


def detect_gpu(nvml: Nvml) -> DetectedGpus:
    """The machine's GPU, which must be the same in every slot. EngineRefusedError when there is none, or several."""
    found = nvml.gpus()
    if not found:
        raise EngineRefusedError("--target auto found no GPU. Name one with --target; `targets` lists them.")
    kinds = sorted({(gpu.name, gpu.sm) for gpu in found})
    if len(kinds) > 1:
        names = ", ".join(f"{name} (SM {sm})" for name, sm in kinds)
        raise EngineRefusedError(
            f"--target auto found different GPUs: {names}. Name one with --target, and hide the others with "
            "CUDA_VISIBLE_DEVICES when building."
        )
    smallest = min(found, key=lambda gpu: gpu.memory_bytes)
    return DetectedGpus(identify(smallest), len(found))


def identify(found: NvmlGpu) -> Gpu:
    """The table's entry with the driver's memory, or a new entry named after the product."""
    product = re.sub(r"^NVIDIA ", "", found.name)
    for gpu in GPUS.values():
        if gpu.sm == found.sm and _model_word(gpu.product) in re.split(r"[ -]", product) and _is_close(gpu, found):
            return replace(gpu, memory_bytes=found.memory_bytes)
    return Gpu(slug(product) or f"sm{found.sm}", product, found.sm, found.memory_bytes)


def _model_word(product: str) -> str:
    return next(word for word in product.split() if any(letter.isdigit() for letter in word))


def _is_close(gpu: Gpu, found: NvmlGpu) -> bool:
    return abs(gpu.memory_bytes - found.memory_bytes) <= _MEMORY_TOLERANCE * gpu.memory_bytes
