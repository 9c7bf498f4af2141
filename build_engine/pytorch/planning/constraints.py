"""The constraints on serving a model directory. Each violation is one message: the value, its limit, and the fix.

Each rule names its source. Paths are of NVIDIA/TensorRT-LLM@b35ac1b6.
"""

from __future__ import annotations

from collections.abc import Iterator

from build_engine.gpu.planning.constraints import limit_refusals
from build_engine.gpu.planning.wording import gib, or_list
from build_engine.pytorch.architectures import (
    END_RELEASE,
    FIRST_RELEASE,
    NEWEST_RELEASE,
    NOT_FOR_COMPLETIONS,
    Support,
    parse_release,
    support,
)
from build_engine.pytorch.planning.formats import FORMATS, stored_format
from build_engine.pytorch.planning.kv_cache import FP8, NVFP4
from build_engine.pytorch.planning.parallelism import check_parallelism
from build_engine.pytorch.planning.plan import PyTorchMemory, PyTorchSpec
from build_engine.targets.gpus import OLDEST_SM
from build_engine.targets.precisions import BLACKWELL_SM

_ENGINE = "--runtime engine"
_UNNAMED_GPUS = "Choose an A100, L4, H100 or newer GPU."


def check_constraints(spec: PyTorchSpec, memory: PyTorchMemory | None) -> list[str]:
    """One message per violated constraint. Empty if the directory can be served."""
    return [
        *_check_version(spec),
        *_check_gpu(spec),
        *_check_architecture(spec, memory),
        *_check_format(spec),
        *_check_kv_precision(spec),
        *check_parallelism(spec),
        *limit_refusals(spec.limits, spec.model.name, spec.model.max_seq_len),
        *(_check_memory(spec, memory) if memory else ()),
    ]


def _check_version(spec: PyTorchSpec) -> Iterator[str]:
    """The sampler and the options of each release differ, so the executor has a profile for each that was read."""
    text, gpu = spec.trtllm_version, spec.gpu
    release = parse_release(text)
    if release is None or not FIRST_RELEASE <= release < END_RELEASE:
        yield (
            f"TensorRT-LLM {text} is not supported; 1.2 to 1.4 can serve model directories with the PyTorch runtime. "
            "Choose --tensorrt-llm 1.2.1 or 1.3."
        )
    elif release < gpu.min_trtllm:
        first = ".".join(map(str, gpu.min_trtllm))
        yield f"{gpu.name} is SM {gpu.sm}, which TensorRT-LLM supports from {first} on, not in {text}."


def _check_gpu(spec: PyTorchSpec) -> Iterator[str]:
    gpu, count = spec.gpu, spec.gpu_count
    if gpu.sm < OLDEST_SM:
        yield f"{gpu.name} is SM {gpu.sm}; TensorRT-LLM 1.x requires SM {OLDEST_SM} or newer. {_UNNAMED_GPUS}"
    if count is not None and spec.world_size > count:
        yield (
            f"tp {spec.tp} x pp {spec.pp} needs {spec.world_size} GPUs; this machine has {count}. "
            f"Choose --tp and --pp with a product of at most {count}, or name the target to plan for another machine."
        )


def _check_architecture(spec: PyTorchSpec, memory: PyTorchMemory | None) -> Iterator[str]:
    """architectures.py has upstream's list."""
    name, release = spec.model.architecture, parse_release(spec.trtllm_version)
    if release is None or release < FIRST_RELEASE:
        return  # reported already
    kind = support(name, release)
    if kind is Support.OTHER_KIND:
        yield f"Architecture {name} is {NOT_FOR_COMPLETIONS[name]}, which completes no text. Choose a language model."
    elif kind is Support.LATER:
        yield (
            f"Architecture {name} is not in TensorRT-LLM {spec.trtllm_version}. "
            f"Choose --tensorrt-llm {NEWEST_RELEASE} or newer."
        )
    elif kind is Support.UNKNOWN:
        yield (
            f"Architecture {name} is not in the list of TensorRT-LLM's PyTorch runtime (1.2 to 1.4). "
            "Choose another model, or check the supported models of your release."
        )
    elif memory is None:
        yield (
            f"The layers of {name} are not known here, so its memory can't be computed from config.json alone. "
            "Download the model's *.safetensors files."
        )


def _check_format(spec: PyTorchSpec) -> Iterator[str]:
    """The runtime quantizes nothing when it loads (docs/source/features/quantization.md)."""
    model, gpu, weights = spec.model, spec.gpu, spec.format
    on_disk = stored_format(model)
    if on_disk is None and model.quantization is not None:
        supported = sorted(algorithm for known in FORMATS.values() for algorithm in known.algorithms)
        yield (
            f"The weights are quantized with {model.quantization.algorithm} ({model.quantization.source}), which the "
            f"PyTorch runtime does not load. Use a checkpoint in {', '.join(supported)}, or one that is not quantized."
        )
        return
    release = parse_release(spec.trtllm_version)
    if model.quantization and release and FIRST_RELEASE <= release < model.quantization.since:
        yield (
            f"TensorRT-LLM {spec.trtllm_version} does not read {model.quantization.algorithm} from this form of "
            f"{model.quantization.source}. Choose --tensorrt-llm {NEWEST_RELEASE} or newer, or use a checkpoint with "
            "the hf_quant_config.json of ModelOpt 0."
        )
    if on_disk is not None and weights is not on_disk and (model.weights is not None or on_disk.is_quantized):
        yield (
            f"The weights are {on_disk.name}, and the PyTorch runtime loads them as they are, not as {weights.name}. "
            f"Omit --precision, quantize the model with ModelOpt (examples/llm_ptq), or choose {_ENGINE}."
        )
    if not weights.runs_on(gpu.sm) and gpu.sm >= OLDEST_SM:
        others = [name for name, other in FORMATS.items() if other.runs_on(gpu.sm) and name != "mixed"]
        needed = ", ".join(str(sm) for sm in weights.sms)
        yield (
            f"{weights.name} weights run on SM {needed}; {gpu.name} is SM {gpu.sm}. "
            f"Use a checkpoint of this model in {or_list(others)}, or another GPU."
        )


def _check_kv_precision(spec: PyTorchSpec) -> Iterator[str]:
    """KVCacheManager.get_cache_bytes_per_token knows 16 and 32 bits, FP8 and NVFP4; "auto" is the checkpoint's."""
    quantization, kv = spec.model.quantization, spec.kv_precision
    stored = quantization.kv_cache_precision if quantization else None
    if kv not in (FP8, NVFP4) and stored in (FP8, NVFP4):
        yield (
            f"The checkpoint has scales for an {stored} KV cache, and the PyTorch runtime uses them; a {kv} cache "
            f"can't be chosen. Choose --kv-cache-precision auto or {stored}."
        )
    if kv == "int8":
        yield (
            "The PyTorch runtime has no int8 KV cache. Choose --kv-cache-precision auto or fp8, "
            f"or {_ENGINE} for an SM below {BLACKWELL_SM}."
        )
    if kv == NVFP4 and spec.gpu.sm < BLACKWELL_SM:
        yield (
            f"An nvfp4 KV cache needs SM {BLACKWELL_SM} or newer; {spec.gpu.name} is SM {spec.gpu.sm}. "
            "Choose --kv-cache-precision fp8, or a Blackwell GPU."
        )


def _check_memory(spec: PyTorchSpec, memory: PyTorchMemory) -> Iterator[str]:
    if memory.fits:
        return
    gpu, limits, batch = spec.gpu, spec.limits, memory.largest_batch_that_fits
    if not batch and memory.fixed_bytes >= memory.gpu_bytes:
        yield (
            f"Weights, activations and workspace need {gib(memory.fixed_bytes)} on each GPU; {gpu.name} has "
            f"{gib(memory.gpu_bytes)}. Choose a higher --tp or --pp, a checkpoint with fewer bits, or a larger GPU."
        )
        return
    change = f"--max-batch-size {batch} or less" if batch else "a larger GPU, a checkpoint with fewer bits"
    yield (
        f"{limits.max_batch_size} requests of {limits.max_seq_len} tokens need {gib(memory.kv_cache_bytes)} of KV "
        f"cache on each GPU; {gpu.name} has {gib(memory.kv_pool_bytes)} left for it. "
        f"Choose {change}, a lower --max-seq-len, or a higher --tp or --pp."
    )
