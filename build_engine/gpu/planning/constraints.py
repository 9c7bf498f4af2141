"""The constraints on a GPU engine. Each violation is one message: the value, its limit, and what to choose instead.

Each rule names its source. There are no rules for settings of trtllm-build that a plan never uses: streamingllm,
fp8 gemm_swiglu, the low-latency plugins, reduce_fusion, multiple_profiles with opt_num_tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from build_engine.gpu.planning.memory import MemoryEstimate
from build_engine.gpu.planning.model_config import ARCHITECTURES, ModelConfig
from build_engine.gpu.planning.parameters import layer_matrices
from build_engine.gpu.planning.spec import EngineSpec, Limits
from build_engine.gpu.planning.wording import choose, gib, or_list
from build_engine.targets.gpus import OLDEST_SM
from build_engine.targets.precisions import (
    BLACKWELL_SM,
    DTYPE_BYTES,
    KV_PRECISIONS,
    PRECISIONS,
    KvPrecision,
    Precision,
)

FIRST_TRTLLM, END_TRTLLM = (1, 1), (1, 3)
_MAX_SUGGESTED_PARALLELISM = 16
_DENSE_ONLY = "int8-sq"


def check_constraints(spec: EngineSpec, memory: MemoryEstimate) -> list[str]:
    """One message per violated constraint. Empty if the engine can be built."""
    return [
        *_check_version(spec),
        *_check_gpu(spec),
        *_check_model(spec),
        *_check_precision(spec),
        *_check_kv_precision(spec),
        *_check_shapes(spec),
        *_check_parallelism(spec),
        *limit_refusals(spec.limits, spec.model.name, spec.model.max_seq_len),
        *_check_memory(spec, memory),
    ]


def _check_version(spec: EngineSpec) -> Iterator[str]:
    """The TensorRT backend was removed before 1.3 (docs/source/legacy/tensorrt-backend-removal.md).

    Engines of 1.0 are not served: executors/tensorrt_llm/compatibility.py has the reasons.
    """
    text, gpu = spec.trtllm_version, spec.gpu
    match = re.match(r"(\d+)\.(\d+)", text)
    version = (int(match[1]), int(match[2])) if match else None
    if version is None or not FIRST_TRTLLM <= version < END_TRTLLM:
        yield (
            f"TensorRT-LLM {text} is not supported; engines are built with 1.1 and 1.2. "
            "Choose --tensorrt-llm 1.2.1, or --runtime pytorch."
        )
    elif version < gpu.min_trtllm:
        first = ".".join(map(str, gpu.min_trtllm))
        yield (
            f"{gpu.name} is SM {gpu.sm}, which TensorRT-LLM supports from {first} on, not in {text}. "
            "Choose --tensorrt-llm 1.2.1."
        )


def _check_gpu(spec: EngineSpec) -> Iterator[str]:
    gpu, count = spec.gpu, spec.gpu_count
    if gpu.sm < OLDEST_SM:
        yield (
            f"{gpu.name} is SM {gpu.sm}; TensorRT-LLM 1.x requires SM {OLDEST_SM} or newer. "
            "Choose an A100, L4, H100 or newer GPU."
        )
    if count is not None and spec.world_size > count:
        yield (
            f"tp {spec.tp} x pp {spec.pp} needs {spec.world_size} GPUs; this machine has {count}. "
            f"Choose --tp and --pp with a product of at most {count}, or name the target to plan for another machine."
        )


def _check_model(spec: EngineSpec) -> Iterator[str]:
    model = spec.model
    if model.architecture not in ARCHITECTURES:
        yield (
            f"Architecture {model.architecture} is not supported. "
            f"Choose a model of {', '.join(ARCHITECTURES)}, or --runtime pytorch."
        )
    if model.quantized_with:
        yield (
            f"The weights are already quantized with {model.quantized_with}. "
            f"Choose the original model in {', '.join(DTYPE_BYTES)}, or --runtime pytorch."
        )


def _check_precision(spec: EngineSpec) -> Iterator[str]:
    precision, gpu = spec.precision, spec.gpu
    if not precision.runs_on(gpu.sm):
        others = [name for name, other in PRECISIONS.items() if other.runs_on(gpu.sm)]
        yield f"{precision.name} {_required_sm(precision)}; {gpu.name} is SM {gpu.sm}. {choose('--precision', others)}"
    if precision.name == _DENSE_ONLY and spec.model.experts > 1:
        others = [
            name
            for name, other in PRECISIONS.items()
            if other.runs_on(gpu.sm) and name != _DENSE_ONLY and other.weight_bits <= 8
        ]
        yield (
            f"{precision.name} supports dense MLPs only; {spec.model.name} has {spec.model.experts} experts. "
            f"{choose('--precision', others)}"
        )


def _check_kv_precision(spec: EngineSpec) -> Iterator[str]:
    kv, gpu = spec.kv, spec.gpu
    if not kv.runs_on(gpu.sm):
        others = [name for name, other in KV_PRECISIONS.items() if other.runs_on(gpu.sm)]
        option = choose("--kv-cache-precision", others)
        yield f"An {kv.name} KV cache {_required_sm(kv)}; {gpu.name} is SM {gpu.sm}. {option}"
    if spec.precision.name == "fp32" and kv.name in KV_PRECISIONS:
        yield (
            f"An fp32 engine keeps its KV cache in fp32; {kv.name} is not supported. "
            "Choose --kv-cache-precision auto, or --precision bf16 or fp16."
        )


def _required_sm(stored: Precision | KvPrecision) -> str:
    if stored.end_sm == BLACKWELL_SM and stored.min_sm > OLDEST_SM:
        return f"needs an SM from {stored.min_sm} to below {stored.end_sm}"
    if stored.end_sm is not None:
        return f"needs an SM below {stored.end_sm}"
    return f"needs SM {stored.min_sm} or newer"


def _check_shapes(spec: EngineSpec) -> Iterator[str]:
    """Kernels that scale groups of inputs need complete groups. Skipped if tp is invalid, which is reported already."""
    if list(_tp_problems(spec.model, spec.tp)):
        return
    multiple = spec.precision.input_multiple
    for matrix in layer_matrices(spec.model, spec.tp):
        if matrix.is_quantized and matrix.inputs % multiple:
            others = [
                name
                for name, other in PRECISIONS.items()
                if other.runs_on(spec.gpu.sm) and matrix.inputs % other.input_multiple == 0
            ]
            yield (
                f"{spec.precision.name} needs a multiple of {multiple} inputs in every matrix on a GPU; "
                f"{matrix.name!r} has {matrix.inputs} at tp {spec.tp}. "
                f"Choose another --tp, or --precision {or_list(others)}."
            )
            return


def _check_parallelism(spec: EngineSpec) -> Iterator[str]:
    model, pp = spec.model, spec.pp
    if problems := list(_tp_problems(model, spec.tp)):
        valid = [str(tp) for tp in range(1, _MAX_SUGGESTED_PARALLELISM + 1) if not list(_tp_problems(model, tp))]
        for problem in problems:
            yield f"{problem}. {choose('--tp', valid)}"
    if model.layers % pp:
        valid = [str(stages) for stages in range(1, _MAX_SUGGESTED_PARALLELISM + 1) if model.layers % stages == 0]
        yield f"{model.layers} layers can't be divided evenly into pp {pp} stages. {choose('--pp', valid)}"
    elif model.vocab_size % (spec.tp * pp) and not model.vocab_size % spec.tp:  # else tp alone is the problem
        valid = [str(stages) for stages in range(1, _MAX_SUGGESTED_PARALLELISM + 1) if _divides(model, spec.tp, stages)]
        yield (
            f"The vocabulary's {model.vocab_size} rows are not divisible by the {spec.tp * pp} GPUs of tp {spec.tp} x "
            f"pp {pp}, which logit_bias needs. {choose('--pp', valid)}"
        )


def _divides(model: ModelConfig, tp: int, pp: int) -> bool:
    """Whether `pp` stages of `tp` GPUs get equal parts of the layers, and divide the vocabulary evenly."""
    return model.layers % pp == 0 and model.vocab_size % (tp * pp) == 0


def _tp_problems(model: ModelConfig, tp: int) -> Iterator[str]:
    """Attention asserts the heads (tensorrt_llm/layers/attention.py); key and value heads are split or replicated.

    Upstream pads the vocabulary. Padded rows have no token, so the engine's limits would not match its tokenizer.
    """
    if model.heads % tp:
        yield f"{model.heads} attention heads are not divisible by tp {tp}"
    if model.kv_heads % tp and tp % model.kv_heads:
        yield f"{model.kv_heads} key/value heads can be neither split nor replicated evenly over tp {tp}"
    if model.intermediate_size % tp:
        yield f"The MLP's {model.intermediate_size} intermediate values are not divisible by tp {tp}"
    if model.vocab_size % tp:
        yield f"The vocabulary's {model.vocab_size} rows are not divisible by tp {tp}"


def limit_refusals(limits: Limits, model_name: str, model_max_seq_len: int) -> Iterator[str]:
    """Yields a sentence for each limit that the model, or another limit, rules out; for both runtimes."""
    if limits.max_seq_len > model_max_seq_len:
        yield (
            f"max_seq_len {limits.max_seq_len} exceeds the {model_max_seq_len} tokens of {model_name}. "
            f"Choose --max-seq-len {model_max_seq_len} or less."
        )
    if limits.max_seq_len < 2:
        yield (
            f"max_seq_len {limits.max_seq_len} has no room for a prompt and a completion. "
            "Choose --max-seq-len 2 or more."
        )
    if limits.max_num_tokens < limits.max_batch_size:
        yield (
            f"max_num_tokens {limits.max_num_tokens} is below max_batch_size {limits.max_batch_size}: each running "
            f"request needs one token per step. Choose --max-num-tokens {limits.max_batch_size} or more."
        )


def _check_memory(spec: EngineSpec, memory: MemoryEstimate) -> Iterator[str]:
    if memory.fits:
        return
    gpu, limits, batch = spec.gpu, spec.limits, memory.largest_batch_that_fits
    without_cache = memory.total_bytes - memory.kv_cache_bytes
    if not batch and without_cache >= memory.gpu_bytes:
        yield (
            f"Weights, activations and workspace need {gib(without_cache)} on each GPU; {gpu.name} has "
            f"{gib(memory.gpu_bytes)}. Choose a higher --tp or --pp, fewer bits with --precision, or a larger GPU."
        )
        return
    change = f"--max-batch-size {batch} or less" if batch else "a larger GPU, fewer bits with --precision"
    yield (
        f"{limits.max_batch_size} requests of {limits.max_seq_len} tokens need {gib(memory.kv_cache_bytes)} of KV "
        f"cache on each GPU; {gpu.name} has {gib(memory.kv_pool_bytes)} left for it. "
        f"Choose {change}, a lower --max-seq-len, or a higher --tp or --pp."
    )
