"""Plans a model directory for the PyTorch runtime: the resolved spec, its memory and directory, or the refusals.

Pure: the same request gives the same plan on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from build_engine.errors import EngineRefusedError
from build_engine.gpu.planning.calibration import DEFAULT_CALIBRATION
from build_engine.gpu.planning.options import GpuOptions
from build_engine.gpu.planning.planner import (
    DEFAULT_MAX_BATCH_SIZE,
    DEFAULT_MAX_NUM_TOKENS,
    DEFAULT_MAX_SEQ_LEN,
    GPUS_PER_NODE,
)
from build_engine.gpu.planning.spec import Limits
from build_engine.pytorch.checkpoint.decoder import Attention
from build_engine.pytorch.checkpoint.model_directory import ModelDirectory
from build_engine.pytorch.planning.constraints import check_constraints
from build_engine.pytorch.planning.formats import FORMATS, WeightFormat, plain_format, stored_format
from build_engine.pytorch.planning.kv_cache import FP8, NVFP4
from build_engine.pytorch.planning.memory import estimate_memory
from build_engine.pytorch.planning.plan import PyTorchMemory, PyTorchPlan, PyTorchSpec
from build_engine.targets.gpus import Gpu
from build_engine.targets.precisions import KvPrecisionName, PrecisionName

_HASH_LENGTH = 12
_HASH_FORMAT = 1  # part of every hash: raise it when the same input starts to mean a different directory


@dataclass(frozen=True)
class PyTorchRequest:
    model: ModelDirectory
    gpu: Gpu
    gpu_count: int | None = None  # GPUs in this machine; None if the target is named and may be elsewhere
    precision: str | None = None  # None: the one on disk
    options: GpuOptions = field(default_factory=GpuOptions)


def plan_model(request: PyTorchRequest) -> PyTorchPlan:
    """A directory that can't be served is not an error: the plan lists the refusals.

    Raises EngineRefusedError for a precision that no checkpoint of this runtime has.
    """
    spec = resolve(request)
    memory = estimate_memory(spec)
    refusals = tuple(check_constraints(spec, memory))
    if refusals or memory is None:
        return PyTorchPlan(spec, memory, refusals, (), engine_dir=None)
    engine_dir = request.options.root / directory_name(spec)
    return PyTorchPlan(spec, memory, refusals, tuple(_notes(spec, memory, request.options)), engine_dir)


def resolve(request: PyTorchRequest) -> PyTorchSpec:
    """Replaces every `auto` and None by a value. The batch size comes last: the largest that fits, up to a default."""
    options, model = request.options, request.model
    kv_precision, kv_cache_dtype = _kv_precision(model, options.kv_cache_precision)
    spec = PyTorchSpec(
        model=model,
        gpu=request.gpu,
        gpu_count=request.gpu_count,
        format=_format(model, request.precision),
        kv_precision=kv_precision,
        kv_cache_dtype=kv_cache_dtype,
        tp=options.tp,
        pp=options.pp,
        ep=options.ep,
        limits=Limits(
            max_batch_size=options.max_batch_size or 1,
            max_seq_len=options.max_seq_len or min(model.max_seq_len, DEFAULT_MAX_SEQ_LEN),
            max_num_tokens=options.max_num_tokens or DEFAULT_MAX_NUM_TOKENS,
        ),
        trtllm_version=options.tensorrt_llm,
        memory_model=options.memory_model,
    )
    return spec if options.max_batch_size else _with_largest_batch(spec)


def _format(model: ModelDirectory, precision: str | None) -> WeightFormat:
    if precision is None:
        return stored_format(model) or plain_format(model.dtype)
    if precision not in FORMATS:
        raise EngineRefusedError(
            f"The PyTorch runtime loads no {precision} weights. Omit --precision to take the checkpoint's, or choose "
            f"one of {', '.join(name.value for name in PrecisionName if name.value in FORMATS)}, or --runtime engine."
        )
    return FORMATS[precision]


def _kv_precision(model: ModelDirectory, asked: KvPrecisionName) -> tuple[str, str]:
    """The precision of the cache, and the value of KvCacheConfig.dtype for it."""
    stored = model.quantization.kv_cache_precision if model.quantization else None
    if asked is KvPrecisionName.AUTO:
        return (stored if stored in (FP8, NVFP4) else plain_format(model.dtype).name), "auto"
    if asked is KvPrecisionName.FP16:
        return plain_format(model.dtype).name, "auto"
    return asked.value, asked.value


def _with_largest_batch(spec: PyTorchSpec) -> PyTorchSpec:
    memory = estimate_memory(spec)
    fits = memory.largest_batch_that_fits if memory else 1
    batch = max(1, min(fits, DEFAULT_MAX_BATCH_SIZE, spec.limits.max_num_tokens))
    return replace(spec, limits=replace(spec.limits, max_batch_size=batch))


def directory_name(spec: PyTorchSpec) -> Path:
    """model/target/precision-tp<N>pp<P>[ep<E>]-pytorch/version; the version is TensorRT-LLM's and a hash of the inputs.

    The weights are not hashed, since a plan reads their headers only.
    """
    experts = f"ep{spec.ep}" if spec.ep > 1 else ""
    parallel = f"{spec.precision}-tp{spec.tp}pp{spec.pp}{experts}-pytorch"
    limits = spec.limits
    content = {
        "format": _HASH_FORMAT,
        "config": spec.model.sha256,
        "sm": spec.gpu.sm,
        "precision": spec.precision,
        "kv": [spec.kv_precision, spec.kv_cache_dtype],
        "mapping": [spec.tp, spec.pp, spec.ep],
        "limits": [limits.max_batch_size, limits.max_seq_len, limits.max_num_tokens],
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_HASH_LENGTH]
    return Path(spec.model.name) / spec.gpu.name / parallel / f"{spec.trtllm_version}-{digest}"


def _notes(spec: PyTorchSpec, memory: PyTorchMemory, options: GpuOptions) -> Iterator[str]:
    """Remarks on an accepted plan: what the estimate leaves out, better settings, unconfirmed combinations."""
    model = spec.model
    if model.weights is None:
        yield "No *.safetensors files: the sizes are computed from config.json, without other parts such as vision."
        on_disk = stored_format(model)
        if on_disk is not None and on_disk is not spec.format:
            yield f"config.json is of {on_disk.name} weights: this is the plan of a checkpoint in {spec.format.name}."
    elif not model.knows_layers:
        yield (
            f"The layers of {model.architecture} are not known here: the KV cache is estimated as full attention in "
            "every layer."
        )
    if not model.has_tokenizer:
        yield "The directory has no tokenizer.json, which the server needs."
    yield from _cache_notes(spec, memory)
    if model.dtype == "float32":
        yield "The model computes in float32, for which upstream's attention kernels have not been confirmed."
    if options.calibration != DEFAULT_CALIBRATION:
        yield "--calibration has no effect: the PyTorch runtime quantizes nothing."
    if spec.gpu.sm >= 120:
        yield f"Support for SM {spec.gpu.sm} is new in TensorRT-LLM 1.2; this combination has not been confirmed."
    if spec.world_size > GPUS_PER_NODE:
        yield f"{spec.world_size} GPUs exceed the {GPUS_PER_NODE} of a typical node: MPI has to span several nodes."


def _cache_notes(spec: PyTorchSpec, memory: PyTorchMemory) -> Iterator[str]:
    decoder, limits = spec.model.decoder, spec.limits
    if decoder is None:
        return
    windows = [mixer.window for mixer in decoder.mixers if isinstance(mixer, Attention) and mixer.window]
    if windows and min(windows) < limits.max_seq_len:
        yield (
            f"{len(windows)} of {len(decoder.layers)} layers attend to the last {min(windows)} tokens only. The KV "
            "cache keeps every token unless KvCacheConfig.max_attention_window is set; with it, at most "
            f"{memory.largest_batch_with_windows} requests fit instead of {memory.largest_batch_that_fits}."
        )
    if decoder.is_hybrid:
        yield (
            "Hybrid model: layers without attention keep a state of constant size for each of the "
            f"{limits.max_batch_size} requests, allocated when the server starts. TensorRT-LLM 1.2 requires "
            "enable_block_reuse=False for it (no prefix cache)."
        )
