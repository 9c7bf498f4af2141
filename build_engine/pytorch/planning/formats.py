"""The formats of weights that the PyTorch runtime loads, their sizes, and the SMs that compute them.

Support: the hardware matrix of NVIDIA/TensorRT-LLM@09d4c79b docs/source/features/quantization.md, which lists SM 120
but not 121; 121 is treated like 120. MXFP4 on Hopper: `get_mxfp4_quant_algo` in _torch/model_config.py (@b35ac1b6) and
the H200 row of deployment-guide-for-gpt-oss-on-trtllm (1.4.0rc4). MXFP8, which the matrix lacks, is computed by the
recipe of its FP8 blocks on SM 100 and 103, and is offered there alone.
Sizes: ModelOpt's export formats, and for MXFP4 one 8-bit scale per 32 values (OCP Microscaling Formats 1.0).
"""

from __future__ import annotations

from dataclasses import dataclass

from build_engine.pytorch.checkpoint.model_directory import ModelDirectory
from build_engine.targets.precisions import BFLOAT16, DTYPE_BYTES, FLOAT16, FLOAT32

_ALL = (80, 86, 89, 90, 100, 103, 120, 121)
_FP8_SMS = (89, 90, 100, 103, 120, 121)
_FP4_SMS = (100, 103, 120, 121)


def _generation(sm: int) -> int:
    """The first SM of a generation: Ampere, Ada, Hopper, Blackwell and Blackwell RTX; 0: an older one."""
    return max((first for first in (0, 80, 89, 90, 100, 120) if first <= sm), default=0)


@dataclass(frozen=True)
class WeightFormat:
    """Storage of the linear layers' weights. Embedding, head, router and norms keep the data type of the model."""

    name: str  # in --precision
    algorithms: tuple[str, ...]  # upstream's QuantAlgo names that are stored like this
    weight_bits: int
    sms: tuple[int, ...]
    group_size: int = 0  # inputs that share a scale
    group_bits: float = 0  # of the scales of one group of one output
    input_bits: int = 0  # per input of a matrix
    output_bits: int = 0
    matrix_bits: int = 0
    experts_only: bool = False  # attention and shared matrices are not quantized
    input_multiple: int = 1  # of the inputs of a matrix on one GPU

    def runs_on(self, sm: int) -> bool:
        """Whether `sms` has this SM or another one of its generation."""
        return _generation(sm) in {_generation(known) for known in self.sms}

    @property
    def is_quantized(self) -> bool:
        return bool(self.algorithms)

    def matrix_bytes(self, outputs: int, inputs: int) -> int:
        """Bytes of one matrix [outputs, inputs] with its scales."""
        bits = outputs * inputs * self.weight_bits + inputs * self.input_bits + outputs * self.output_bits
        bits += self.matrix_bits
        if self.group_size:
            bits += round(outputs * -(-inputs // self.group_size) * self.group_bits)
        return -(-bits // 8)


_PLAIN = {
    dtype: WeightFormat(name, (), 8 * DTYPE_BYTES[dtype], _ALL)
    for name, dtype in (("bf16", BFLOAT16), ("fp16", FLOAT16), ("fp32", FLOAT32))
}
FORMATS = {
    weights.name: weights
    for weights in (
        *_PLAIN.values(),
        WeightFormat("fp8", ("FP8",), 8, _FP8_SMS, matrix_bits=2 * 32, input_multiple=16),
        WeightFormat("fp8-rowwise", ("FP8_PER_CHANNEL_PER_TOKEN",), 8, (90,), output_bits=32, input_multiple=16),
        # One float32 per 128 x 128 block.
        WeightFormat("fp8-block", ("FP8_BLOCK_SCALES",), 8, (90, 100, 103), 128, 32 / 128, input_multiple=128),
        WeightFormat("mxfp8", ("MXFP8",), 8, (100, 103), 32, 8, input_multiple=32),
        WeightFormat("nvfp4", ("NVFP4",), 4, _FP4_SMS, 16, 8, matrix_bits=2 * 32, input_multiple=16),
        WeightFormat(
            "mxfp4",
            ("MXFP4", "W4A16_MXFP4", "W4A8_MXFP4_MXFP8", "W4A8_MXFP4_FP8"),
            4,
            (90, *_FP4_SMS),
            32,
            8,
            experts_only=True,
        ),
        WeightFormat("int4-awq", ("W4A16_AWQ",), 4, (80, 86, 89, 90), 128, 16, input_bits=16, input_multiple=128),
        WeightFormat("w4a8-awq", ("W4A8_AWQ",), 4, (89, 90), 128, 16, 16, 2 * 32, input_multiple=128),
        # Each layer has a format of its own; the size is known from the weights' headers only.
        WeightFormat("mixed", ("MIXED_PRECISION",), 8, _FP8_SMS),
    )
}


def stored_format(model: ModelDirectory) -> WeightFormat | None:
    """The format on disk; None if the PyTorch runtime can't load it."""
    if model.quantization is None or model.quantization.algorithm == "NONE":
        return _PLAIN[model.dtype]
    algorithm = model.quantization.algorithm
    return next((weights for weights in FORMATS.values() if algorithm in weights.algorithms), None)


def plain_format(dtype: str) -> WeightFormat:
    """Weights that are not quantized."""
    return _PLAIN[dtype]
