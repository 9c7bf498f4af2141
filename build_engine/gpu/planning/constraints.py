"""Why a combination can't be built: every reason, one sentence of what is wrong and one of what to choose instead.

Each rule names where it comes from. Settings of trtllm-build that upstream restricts and no plan ever sets need none:
streamingllm (refused), fp8 gemm_swiglu and the low-latency plugins (refused on SM 100), reduce_fusion (only Llama,
Gemma 2 and Medusa above one GPU), multiple_profiles with opt_num_tokens (refused).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from build_engine.gpu.planning.memory import MemoryEstimate
from build_engine.gpu.planning.memory_model import GIB
from build_engine.gpu.planning.model_config import ARCHITECTURES, ModelConfig
from build_engine.gpu.planning.parameters import layer_matrices
from build_engine.gpu.planning.spec import EngineSpec
from build_engine.targets.gpus import OLDEST_SM
from build_engine.targets.precisions import (
    BLACKWELL_SM,
    DTYPE_BYTES,
    KV_PRECISIONS,
    PRECISIONS,
    KvPrecision,
    Precision,
)

FIRST_TRTLLM, END_TRTLLM = (1, 0), (1, 3)
_MOST_TP_SUGGESTED = 16
_MOE_WITHOUT_SMOOTHQUANT = "int8-sq"


def find_refusals(combination: EngineSpec, memory: MemoryEstimate) -> list[str]:
    """Empty when the combination can be built."""
    return [
        *_version_refusals(combination),
        *_gpu_refusals(combination),
        *_model_refusals(combination),
        *_precision_refusals(combination),
        *_kv_refusals(combination),
        *_shape_refusals(combination),
        *_parallel_refusals(combination),
        *_limit_refusals(combination),
        *_memory_refusals(combination, memory),
    ]


def _version_refusals(combination: EngineSpec) -> Iterator[str]:
    """The engine path was removed on the way to 1.3 (docs/source/legacy/tensorrt-backend-removal.md)."""
    text, gpu = combination.trtllm_version, combination.gpu
    found = re.match(r"(\d+)\.(\d+)", text)
    version = (int(found[1]), int(found[2])) if found else None
    if version is None or not FIRST_TRTLLM <= version < END_TRTLLM:
        yield f"TensorRT-LLM {text} can't build engines this way, 1.0 to 1.2 can. Choose --tensorrt-llm 1.2.1."
    elif version < gpu.min_trtllm:
        first = ".".join(map(str, gpu.min_trtllm))
        yield (
            f"{gpu.name} is SM {gpu.sm}, which TensorRT-LLM has from {first} on; {text} was asked for. "
            "Choose --tensorrt-llm 1.2.1."
        )


def _gpu_refusals(combination: EngineSpec) -> Iterator[str]:
    gpu, count = combination.gpu, combination.gpu_count
    if gpu.sm < OLDEST_SM:
        yield (
            f"{gpu.name} is SM {gpu.sm}, TensorRT-LLM 1.x builds for SM {OLDEST_SM} and newer. "
            "Choose an A100, L4, H100 or newer GPU."
        )
    if count is not None and combination.world_size > count:
        yield (
            f"tp {combination.tp} x pp {combination.pp} needs {combination.world_size} GPUs, this machine has {count}. "
            f"Choose --tp and --pp with a product of at most {count}, or name the target to plan for another machine."
        )


def _model_refusals(combination: EngineSpec) -> Iterator[str]:
    model = combination.model
    if model.architecture not in ARCHITECTURES:
        yield (
            f"Architecture {model.architecture} is not one whose engines can be planned. "
            f"Choose a model of {', '.join(ARCHITECTURES)}."
        )
    if model.quantised_with:
        yield (
            f"The weights are quantised already, with {model.quantised_with}. "
            f"Choose the model's original in {', '.join(DTYPE_BYTES)}."
        )


def _precision_refusals(combination: EngineSpec) -> Iterator[str]:
    precision, gpu = combination.precision, combination.gpu
    if not precision.runs_on(gpu.sm):
        others = [name for name, other in PRECISIONS.items() if other.runs_on(gpu.sm)]
        yield f"{precision.name} {_sm_needed(precision)}, {gpu.name} is SM {gpu.sm}. {_choose('--precision', others)}"
    if precision.name == _MOE_WITHOUT_SMOOTHQUANT and combination.model.experts > 1:
        others = [
            name
            for name, other in PRECISIONS.items()
            if other.runs_on(gpu.sm) and name != _MOE_WITHOUT_SMOOTHQUANT and other.weight_bits <= 8
        ]
        yield (
            f"{precision.name} is for dense MLPs, {combination.model.name} has {combination.model.experts} experts. "
            f"{_choose('--precision', others)}"
        )


def _kv_refusals(combination: EngineSpec) -> Iterator[str]:
    kv, gpu = combination.kv, combination.gpu
    if not kv.runs_on(gpu.sm):
        others = [name for name, other in KV_PRECISIONS.items() if other.runs_on(gpu.sm)]
        option = _choose("--kv-cache-precision", others)
        yield f"An {kv.name} KV cache {_sm_needed(kv)}, {gpu.name} is SM {gpu.sm}. {option}"
    if combination.precision.name == "fp32" and kv.name in KV_PRECISIONS:
        yield (
            f"An fp32 engine keeps its KV cache in fp32, {kv.name} was asked for. "
            "Choose --kv-cache-precision auto, or --precision bf16 or fp16."
        )


def _sm_needed(stored: Precision | KvPrecision) -> str:
    if stored.end_sm == BLACKWELL_SM and stored.min_sm > OLDEST_SM:
        return f"needs an SM from {stored.min_sm} to below {stored.end_sm}"
    if stored.end_sm is not None:
        return f"needs an SM below {stored.end_sm}"
    return f"needs SM {stored.min_sm} or newer"


def _shape_refusals(combination: EngineSpec) -> Iterator[str]:
    """Kernels with scaled groups of inputs take whole groups only. Says nothing of a tp that divides nothing."""
    if list(_tp_problems(combination.model, combination.tp)):
        return
    multiple = combination.precision.input_multiple
    for matrix in layer_matrices(combination.model, combination.tp):
        if matrix.is_quantised and matrix.inputs % multiple:
            others = [
                name
                for name, other in PRECISIONS.items()
                if other.runs_on(combination.gpu.sm) and matrix.inputs % other.input_multiple == 0
            ]
            yield (
                f"{combination.precision.name} needs a multiple of {multiple} inputs in every matrix on a GPU, "
                f"{matrix.name!r} has {matrix.inputs} at tp {combination.tp}. "
                f"Choose another --tp, or --precision {_or(others)}."
            )
            return


def _parallel_refusals(combination: EngineSpec) -> Iterator[str]:
    model, pp = combination.model, combination.pp
    if problems := list(_tp_problems(model, combination.tp)):
        good = [str(tp) for tp in range(1, _MOST_TP_SUGGESTED + 1) if not list(_tp_problems(model, tp))]
        for problem in problems:
            yield f"{problem}. {_choose('--tp', good)}"
    if model.layers % pp:
        good = [str(stages) for stages in range(1, _MOST_TP_SUGGESTED + 1) if model.layers % stages == 0]
        yield f"{model.layers} layers can't be parted evenly over pp {pp}. {_choose('--pp', good)}"


def _tp_problems(model: ModelConfig, tp: int) -> Iterator[str]:
    """Attention asserts heads (tensorrt_llm/layers/attention.py); key and value heads are parted or copied whole.

    Upstream would pad the vocabulary; padded rows have no token, so the engine's limits would not match its tokenizer.
    """
    if model.heads % tp:
        yield f"{model.heads} attention heads are not divisible by tp {tp}"
    if model.kv_heads % tp and tp % model.kv_heads:
        yield f"{model.kv_heads} key/value heads can be neither parted nor copied evenly over tp {tp}"
    if model.intermediate_size % tp:
        yield f"The MLP's {model.intermediate_size} inner values are not divisible by tp {tp}"
    if model.vocab_size % tp:
        yield f"The vocabulary's {model.vocab_size} rows are not divisible by tp {tp}"


def _limit_refusals(combination: EngineSpec) -> Iterator[str]:
    model, limits = combination.model, combination.limits
    if limits.max_seq_len > model.max_seq_len:
        yield (
            f"max_seq_len {limits.max_seq_len} is above the {model.max_seq_len} tokens of {model.name}. "
            f"Choose --max-seq-len {model.max_seq_len} or less."
        )
    if limits.max_seq_len < 2:
        yield f"max_seq_len {limits.max_seq_len} has no room for a prompt and a completion. Choose at least 2."
    if limits.max_num_tokens < limits.max_batch_size:
        yield (
            f"max_num_tokens {limits.max_num_tokens} is below max_batch_size {limits.max_batch_size}: each running "
            f"request takes a token of every step. Choose --max-num-tokens {limits.max_batch_size} or more."
        )


def _memory_refusals(combination: EngineSpec, memory: MemoryEstimate) -> Iterator[str]:
    if memory.fits:
        return
    gpu, limits, batch = combination.gpu, combination.limits, memory.largest_batch_that_fits
    before_cache = memory.total_bytes - memory.kv_cache_bytes
    if not batch and before_cache >= memory.gpu_bytes:
        yield (
            f"Weights, activations and workspace need {_gib(before_cache)} on each GPU, {gpu.name} has "
            f"{_gib(memory.gpu_bytes)}. Choose a higher --tp or --pp, fewer bits with --precision, or a larger GPU."
        )
        return
    change = f"--max-batch-size {batch} or less" if batch else "a larger GPU, fewer bits with --precision"
    yield (
        f"{limits.max_batch_size} requests of {limits.max_seq_len} tokens need {_gib(memory.kv_cache_bytes)} of KV "
        f"cache on each GPU, {gpu.name} has {_gib(memory.kv_pool_bytes)} left for it. "
        f"Choose {change}, a lower --max-seq-len, or a higher --tp or --pp."
    )


def _choose(option: str, values: list[str]) -> str:
    return f"Choose {option} {_or(values)}." if values else f"No {option} works here: choose another GPU."


def _or(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
