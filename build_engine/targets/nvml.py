"""Detects the GPUs of this machine through NVML, for `--target auto`. The only module that imports `pynvml`.

Memory and SM are always the driver's. A GPU that the table lacks is named after its product.
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
_MEMORY_TOLERANCE = 0.1  # relative difference between a product's nominal memory and the driver's figure


@dataclass(frozen=True)
class NvmlGpu:
    """One GPU as the driver reports it."""

    name: str  # such as "NVIDIA H100 80GB HBM3"
    sm: int
    memory_bytes: int


class Nvml(Protocol):
    """The machine's GPUs, in the driver's order."""

    def gpus(self) -> list[NvmlGpu]:
        """Every method raises EngineRefusedError if the driver or its bindings are missing."""
        ...

    def driver_version(self) -> str:
        """Such as 580.95.05."""
        ...

    def cuda_version(self) -> str:
        """The newest CUDA version that the driver supports, such as 13.0."""
        ...


@dataclass(frozen=True)
class DetectedGpus:
    gpu: Gpu
    count: int


class PynvmlNvml:
    """Queries the driver with NVIDIA's Python bindings, which are not installed by default."""

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
            f"The NVIDIA driver can't be queried ({error}). Name a GPU with --target; `targets` lists them."
        ) from error


def _import_pynvml() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ModuleNotFoundError as error:
        raise EngineRefusedError(
            f"Detecting the GPU needs NVML's Python bindings. Install them with `{INSTALL}`, "
            "or name a GPU with --target; `targets` lists them."
        ) from error


def _describe(pynvml: Any, index: int) -> NvmlGpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return NvmlGpu(_text(pynvml.nvmlDeviceGetName(handle)), 10 * int(major) + int(minor), int(memory.total))


def _text(value: str | bytes) -> str:
    """nvidia-ml-py returns bytes before version 11.525."""
    return value.decode() if isinstance(value, bytes) else value


def detect_gpu(nvml: Nvml) -> DetectedGpus:
    """The GPU of this machine. Raises EngineRefusedError if there is none, or if there are different ones."""
    gpus = nvml.gpus()
    if not gpus:
        raise EngineRefusedError("--target auto found no GPU. Name one with --target; `targets` lists them.")
    kinds = sorted({(gpu.name, gpu.sm) for gpu in gpus})
    if len(kinds) > 1:
        names = ", ".join(f"{name} (SM {sm})" for name, sm in kinds)
        raise EngineRefusedError(
            f"--target auto found different GPUs: {names}. Name one with --target, and hide the others with "
            "CUDA_VISIBLE_DEVICES when building."
        )
    smallest = min(gpus, key=lambda gpu: gpu.memory_bytes)
    return DetectedGpus(identify(smallest), len(gpus))


def identify(device: NvmlGpu) -> Gpu:
    """The table's entry with the driver's memory, or a new entry named after the product."""
    product = re.sub(r"^NVIDIA ", "", device.name)
    for gpu in GPUS.values():
        if (
            gpu.sm == device.sm
            and _model_word(gpu.product) in re.split(r"[ -]", product)
            and _has_same_memory(gpu, device)
        ):
            return replace(gpu, memory_bytes=device.memory_bytes)
    return Gpu(slug(product) or f"sm{device.sm}", product, device.sm, device.memory_bytes)


def _model_word(product: str) -> str:
    return next(word for word in product.split() if any(letter.isdigit() for letter in word))


def _has_same_memory(gpu: Gpu, device: NvmlGpu) -> bool:
    return abs(gpu.memory_bytes - device.memory_bytes) <= _MEMORY_TOLERANCE * gpu.memory_bytes
