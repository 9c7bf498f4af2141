"""`--target auto` with a stand-in for the driver."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from build_engine.errors import EngineRefusedError
from build_engine.targets.nvml import NvmlGpu, PynvmlNvml, detect_gpu, identify
from tests.fakes.tensorrt_llm_build import FakeNvml

MIB = 1 << 20


@pytest.mark.parametrize(
    ("product", "sm", "mib", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", 80, 81920, "a100"),
        ("NVIDIA A100-PCIE-40GB", 80, 40960, "a100-40gb"),
        ("NVIDIA A30", 80, 24576, "a30"),
        ("NVIDIA A10", 86, 23028, "a10"),
        ("NVIDIA A10G", 86, 23028, "a10g"),
        ("NVIDIA L4", 89, 23034, "l4"),
        ("NVIDIA L40S", 89, 46068, "l40s"),
        ("NVIDIA H100 80GB HBM3", 90, 81559, "h100"),
        ("NVIDIA H100 NVL", 90, 95830, "h100-nvl"),
        ("NVIDIA H200", 90, 143771, "h200"),
        ("NVIDIA GH200 480GB", 90, 97871, "gh200"),
        ("NVIDIA B200", 100, 183359, "b200"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 120, 97887, "rtx-pro-6000"),
    ],
)
def test_known_products_get_their_targets_name_and_the_drivers_memory(
    product: str, sm: int, mib: int, name: str
) -> None:
    gpu = identify(NvmlGpu(product, sm, mib * MIB))
    assert (gpu.name, gpu.sm, gpu.memory_bytes) == (name, sm, mib * MIB)


@pytest.mark.parametrize(
    ("product", "sm", "mib", "name"),
    [
        ("NVIDIA GeForce RTX 4090", 89, 24564, "geforce-rtx-4090"),
        ("NVIDIA H100 MIG 3g.40gb", 90, 40448, "h100-mig-3g.40gb"),
        ("Tesla T4", 75, 15360, "tesla-t4"),
    ],
)
def test_an_unknown_product_is_planned_for_by_its_sm_and_memory(product: str, sm: int, mib: int, name: str) -> None:
    gpu = identify(NvmlGpu(product, sm, mib * MIB))
    assert (gpu.name, gpu.sm, gpu.memory_bytes) == (name, sm, mib * MIB)


def test_equal_gpus_are_counted_and_the_smallest_memory_is_taken() -> None:
    found = detect_gpu(FakeNvml(tuple(NvmlGpu("NVIDIA L4", 89, mib * MIB) for mib in (23034, 23030))))
    assert (found.gpu.name, found.gpu.memory_bytes, found.count) == ("l4", 23030 * MIB, 2)


def test_different_gpus_are_refused_by_name() -> None:
    with pytest.raises(EngineRefusedError, match=r"NVIDIA H100 \(SM 90\), NVIDIA L4 \(SM 89\)"):
        detect_gpu(FakeNvml((NvmlGpu("NVIDIA L4", 89, 24), NvmlGpu("NVIDIA H100", 90, 80))))


def test_no_gpu_is_refused() -> None:
    with pytest.raises(EngineRefusedError, match="found no GPU"):
        detect_gpu(FakeNvml(()))


def test_missing_bindings_say_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(EngineRefusedError, match="pip install nvidia-ml-py"):
        PynvmlNvml().gpus()


class FakePynvml:
    """The functions of pynvml that are called; old releases give the name as bytes."""

    class NVMLError(Exception):
        pass

    def __init__(self, name: str | bytes, has_driver: bool = True) -> None:
        self._name = name
        self._has_driver = has_driver
        self.is_open = False

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
        if not self._has_driver:
            raise self.NVMLError("Driver Not Loaded")
        self.is_open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:  # noqa: N802
        return self._name

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:  # noqa: N802
        return (10, 3)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=288, free=1, used=287)


@pytest.mark.parametrize("name", ["NVIDIA B300", b"NVIDIA B300"], ids=["text", "bytes"])
def test_the_driver_is_asked_and_let_go(monkeypatch: pytest.MonkeyPatch, name: str | bytes) -> None:
    driver = FakePynvml(name)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert PynvmlNvml().gpus() == [NvmlGpu("NVIDIA B300", 103, 288)]
    assert not driver.is_open


def test_a_machine_without_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakePynvml("", has_driver=False))
    with pytest.raises(EngineRefusedError, match="Driver Not Loaded"):
        PynvmlNvml().gpus()
