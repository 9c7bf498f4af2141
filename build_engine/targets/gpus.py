"""The NVIDIA GPUs that engines can be planned for, by name.

SM: developer.nvidia.com/cuda-gpus. Memory: the figure of the product page with 10^9 bytes per GB, which is at most what
drivers report (an L40S of 48 GB has 46068 MiB, an H100 of 80 GB 81559 MiB). `--target auto` uses the driver's figure.
"""

from __future__ import annotations

from dataclasses import dataclass

GB = 1_000_000_000
OLDEST_SM = 80  # of TensorRT-LLM 1.x, whose support matrix has neither Volta nor Turing


@dataclass(frozen=True)
class Gpu:
    name: str  # in --target and in the engine's path
    product: str  # NVIDIA's spelling; NVML's name contains its first word with a digit
    sm: int  # compute capability times ten; an engine runs on this SM only
    memory_bytes: int

    @property
    def min_trtllm(self) -> tuple[int, int]:
        """First TensorRT-LLM version with this SM (its release notes: RTX PRO 6000 and GB10 in 1.2)."""
        return {120: (1, 2), 121: (1, 2)}.get(self.sm, (1, 1))


GPUS = {
    name: Gpu(name, product, sm, memory_gb * GB)
    for name, product, sm, memory_gb in (
        ("a100", "A100 80GB", 80, 80),
        ("a100-40gb", "A100 40GB", 80, 40),
        ("a30", "A30", 80, 24),
        ("a10", "A10", 86, 24),
        ("a10g", "A10G", 86, 24),
        ("a40", "A40", 86, 48),
        ("rtx-a6000", "RTX A6000", 86, 48),
        ("l4", "L4", 89, 24),
        ("l20", "L20", 89, 48),
        ("l40", "L40", 89, 48),
        ("l40s", "L40S", 89, 48),
        ("rtx-6000-ada", "RTX 6000 Ada Generation", 89, 48),
        ("h100", "H100 80GB", 90, 80),
        ("h100-nvl", "H100 NVL 94GB", 90, 94),
        ("h20", "H20 96GB", 90, 96),
        ("h200", "H200 141GB", 90, 141),
        ("gh200", "GH200 96GB", 90, 96),
        ("gh200-144gb", "GH200 144GB", 90, 144),
        ("b200", "B200", 100, 180),
        ("gb200", "GB200", 100, 186),
        ("b300", "B300", 103, 288),
        ("gb300", "GB300", 103, 288),
        ("rtx-pro-6000", "RTX PRO 6000 Blackwell", 120, 96),
        ("gb10", "GB10 (DGX Spark)", 121, 128),
    )
}
# Other common names of these targets.
ALIASES = {
    "a100-80gb": "a100",
    "h100-80gb": "h100",
    "h100-sxm": "h100",
    "h100-pcie": "h100",
    "gh200-96gb": "gh200",
    "rtx-pro-6000-blackwell": "rtx-pro-6000",
    "dgx-spark": "gb10",
}
