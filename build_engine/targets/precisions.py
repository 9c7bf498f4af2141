"""Precisions of weights and KV cache: their size, the SMs that support them, and their names upstream.

Support: `build()` in tensorrt_llm/builder.py rejects INT8 and INT4 weights, SmoothQuant and an INT8 KV cache on SM 100
to 119. AWQ counts as INT4: it is weight-only with groups (tensorrt_llm/quantization/mode.py). FP8 needs Ada (89) or
newer, NVFP4 Blackwell (100) or newer. `build()` has no rule for SM 120 and 121; the restrictions of the other Blackwell
GPUs are applied to them as well.

Sizes: tensorrt_llm/quantization/quantize_by_modelopt.py and NVIDIA ModelOpt's formats. NVFP4 has one FP8 scale per 16
values; AWQ one 16-bit scale per 128, no zero points, and a 16-bit factor per input; SmoothQuant and weight-only have
one scale per output.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

BLACKWELL_SM = 100
AWQ_GROUP = 128
NVFP4_GROUP = 16
# Upstream's names of data types.
FLOAT32, FLOAT16, BFLOAT16 = "float32", "float16", "bfloat16"
DTYPE_BYTES = {FLOAT32: 4, FLOAT16: 2, BFLOAT16: 2}


class PrecisionName(str, Enum):
    """The values of --precision."""

    AUTO = "auto"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    NVFP4 = "nvfp4"
    INT8_SQ = "int8-sq"
    INT8_WO = "int8-wo"
    INT4_AWQ = "int4-awq"
    INT4_WO = "int4-wo"
    W4A8_AWQ = "w4a8-awq"


class KvPrecisionName(str, Enum):
    """The values of --kv-cache-precision. fp16: 16 bits, in the data type of the model's computations."""

    AUTO = "auto"
    FP16 = "fp16"
    FP8 = "fp8"
    INT8 = "int8"


@dataclass(frozen=True)
class Precision:
    """Storage and arithmetic of the weights of linear layers. Embedding, head, router and norms stay 16-bit."""

    name: str
    weight_bits: int
    qformat: str  # of quantize_and_export
    quant_algo: str | None = None  # of QuantConfig, if no calibration is needed
    dtype: str | None = None  # of computations; None: the model's own
    group_size: int = 0  # inputs that share a scale
    bits_per_group: int = 0
    bits_per_output: int = 0
    bits_per_input: int = 0
    bits_per_matrix: int = 0
    min_sm: int = 80
    end_sm: int | None = None  # first SM that does not support it
    is_calibrated: bool = False
    has_fp8_attention: bool = False  # build() allows FP8 context attention for FP8, W4A8_AWQ and NVFP4 only
    input_multiple: int = 1  # a matrix on one GPU must have a multiple of this number of inputs

    def runs_on(self, sm: int) -> bool:
        return self.min_sm <= sm and (self.end_sm is None or sm < self.end_sm)

    def matrix_bytes(self, outputs: int, inputs: int) -> int:
        """Bytes of one matrix [outputs, inputs] with its scales."""
        bits = outputs * inputs * self.weight_bits + outputs * self.bits_per_output + inputs * self.bits_per_input
        if self.group_size:
            bits += outputs * -(-inputs // self.group_size) * self.bits_per_group
        return -(-(bits + self.bits_per_matrix) // 8)


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", 32, "full_prec", dtype=FLOAT32),
        Precision("fp16", 16, "full_prec", dtype=FLOAT16),
        Precision("bf16", 16, "full_prec", dtype=BFLOAT16),
        Precision(
            "fp8",
            8,
            "fp8",
            min_sm=89,
            bits_per_matrix=2 * 32,  # one scale for the weights, one for the activations
            is_calibrated=True,
            has_fp8_attention=True,
            input_multiple=16,
        ),
        Precision(
            "nvfp4",
            4,
            "nvfp4",
            min_sm=BLACKWELL_SM,
            group_size=NVFP4_GROUP,
            bits_per_group=8,
            bits_per_matrix=2 * 32,
            is_calibrated=True,
            has_fp8_attention=True,
            input_multiple=NVFP4_GROUP,
        ),
        Precision(
            "int8-sq",
            8,
            "int8_sq",
            end_sm=BLACKWELL_SM,
            bits_per_output=32,
            bits_per_input=32,  # the smoothing factors
            is_calibrated=True,
        ),
        Precision("int8-wo", 8, "int8_wo", quant_algo="W8A16", end_sm=BLACKWELL_SM, bits_per_output=16),
        Precision(
            "int4-awq",
            4,
            "int4_awq",
            end_sm=BLACKWELL_SM,
            group_size=AWQ_GROUP,
            bits_per_group=16,
            bits_per_input=16,
            is_calibrated=True,
            input_multiple=AWQ_GROUP,
        ),
        Precision("int4-wo", 4, "int4_wo", quant_algo="W4A16", end_sm=BLACKWELL_SM, bits_per_output=16),
        Precision(
            "w4a8-awq",
            4,
            "w4a8_awq",
            min_sm=89,
            end_sm=BLACKWELL_SM,
            group_size=AWQ_GROUP,
            bits_per_group=16,
            bits_per_input=16,
            bits_per_matrix=2 * 32,
            is_calibrated=True,
            has_fp8_attention=True,
            input_multiple=AWQ_GROUP,
        ),
    )
}


@dataclass(frozen=True)
class KvPrecision:
    name: str
    quantized_bytes: int | None  # per value; None: the width of the model's data type
    min_sm: int = 80
    end_sm: int | None = None

    def runs_on(self, sm: int) -> bool:
        return self.min_sm <= sm and (self.end_sm is None or sm < self.end_sm)


KV_FP32 = KvPrecision("fp32", None)  # of an fp32 engine; not a value of --kv-cache-precision
KV_PRECISIONS = {
    kv.name: kv
    for kv in (
        KvPrecision("fp16", None),
        KvPrecision("fp8", 1, min_sm=89),
        KvPrecision("int8", 1, end_sm=BLACKWELL_SM),
    )
}


def precision_names(sm: int) -> tuple[str, ...]:
    """The precisions that `sm` supports, starting with the one that `auto` selects for a bfloat16 model."""
    first = auto_precision(sm, BFLOAT16).name
    return (first, *(name for name, precision in PRECISIONS.items() if precision.runs_on(sm) and name != first))


def auto_precision(sm: int, model_dtype: str) -> Precision:
    """NVFP4 on Blackwell, FP8 on Ada and Hopper, else 16 bits: the model's own type, or bfloat16 for an fp32 model."""
    if sm >= BLACKWELL_SM:
        return PRECISIONS["nvfp4"]
    if sm >= PRECISIONS["fp8"].min_sm:
        return PRECISIONS["fp8"]
    return PRECISIONS["fp16" if model_dtype == FLOAT16 else "bf16"]


def auto_kv_precision(precision: Precision, sm: int) -> KvPrecision:
    """FP8 if attention can compute in FP8, which paged attention with an FP8 cache requires; else unquantized.

    Never INT8: build() disables paged context attention with it, and so the prefix cache and chunked prefill.
    """
    if precision.dtype == FLOAT32:
        return KV_FP32
    wants_fp8 = precision.has_fp8_attention and KV_PRECISIONS["fp8"].runs_on(sm)
    return KV_PRECISIONS["fp8" if wants_fp8 else "fp16"]
