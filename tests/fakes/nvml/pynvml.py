"""A stand-in for NVML's Python bindings, for child processes: a directory for PYTHONPATH. One H100."""

from __future__ import annotations

from types import SimpleNamespace


class NVMLError(Exception):
    """As in nvidia-ml-py."""


def nvmlInit() -> None:  # noqa: N802 - the names are NVML's, here and below
    """Does nothing."""


def nvmlShutdown() -> None:  # noqa: N802
    """Does nothing."""


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return 1


def nvmlSystemGetDriverVersion() -> str:  # noqa: N802
    return "580.95.05"


def nvmlSystemGetCudaDriverVersion() -> int:  # noqa: N802
    return 13000


def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802
    return index


def nvmlDeviceGetName(_handle: int) -> str:  # noqa: N802
    return "NVIDIA H100 80GB HBM3"


def nvmlDeviceGetCudaComputeCapability(_handle: int) -> tuple[int, int]:  # noqa: N802
    return 9, 0


def nvmlDeviceGetMemoryInfo(_handle: int) -> SimpleNamespace:  # noqa: N802
    return SimpleNamespace(total=81_559 << 20)
