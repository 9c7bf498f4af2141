"""Plans a GPU engine: the resolved spec, its memory, its commands and directory, or the reasons why it can't be built.

Pure: the same request gives the same plan on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from build_engine.gpu.planning.calibration import DEFAULT_CALIBRATION, TEXT_COLUMN
from build_engine.gpu.planning.commands import Step, build_flags, make_steps, timing_cache_path
from build_engine.gpu.planning.constraints import check_constraints
from build_engine.gpu.planning.memory import MemoryEstimate, estimate_memory
from build_engine.gpu.planning.model_config import ModelConfig
from build_engine.gpu.planning.options import GpuOptions
from build_engine.gpu.planning.spec import EngineSpec, Limits
from build_engine.targets.gpus import Gpu
from build_engine.targets.precisions import (
    KV_PRECISIONS,
    PRECISIONS,
    KvPrecisionName,
    auto_kv_precision,
    auto_precision,
)

DEFAULT_MAX_SEQ_LEN = 8192
DEFAULT_MAX_BATCH_SIZE = 64
DEFAULT_MAX_NUM_TOKENS = 8192  # trtllm-build's
GPUS_PER_NODE = 8
_HASH_LENGTH = 12
_HASH_FORMAT = 1  # part of every hash: raise it when the same input starts to mean a different engine


@dataclass(frozen=True)
class PlanRequest:
    model: ModelConfig
    model_dir: Path
    gpu: Gpu
    gpu_count: int | None = None  # GPUs in this machine; None if the target is named and may be elsewhere
    precision: str | None = None  # None: auto
    options: GpuOptions = field(default_factory=GpuOptions)


@dataclass(frozen=True)
class Plan:
    """`steps` is empty and `engine_dir` None if there are refusals."""

    spec: EngineSpec
    memory: MemoryEstimate
    refusals: tuple[str, ...]  # one per violated constraint
    notes: tuple[str, ...]
    engine_dir: Path | None
    steps: tuple[Step, ...]
    calibration: str
    timing_cache: Path | None = None  # as in the steps

    @property
    def accepted(self) -> bool:
        return not self.refusals


def make_plan(request: PlanRequest) -> Plan:
    """A spec that can't be built is not an error: the plan lists its refusals."""
    spec, options = resolve(request), request.options
    memory = estimate_memory(spec)
    refusals = tuple(check_constraints(spec, memory))
    if refusals:
        return Plan(spec, memory, refusals, (), engine_dir=None, steps=(), calibration=options.calibration)
    engine_dir = options.root / engine_name(spec, options.calibration)
    timing_cache = timing_cache_path(options.root, options.tensorrt_llm, request.gpu)
    steps = make_steps(spec, request.model_dir, engine_dir, options.calibration, timing_cache)
    notes = tuple(_notes(spec, options.calibration))
    return Plan(spec, memory, refusals, notes, engine_dir, steps, options.calibration, timing_cache)


def resolve(request: PlanRequest) -> EngineSpec:
    """Replaces every `auto` and None by a value. The batch size comes last: the largest that fits, up to a default."""
    options, gpu = request.options, request.gpu
    precision = PRECISIONS[request.precision] if request.precision else auto_precision(gpu.sm, request.model.dtype)
    is_auto = options.kv_cache_precision is KvPrecisionName.AUTO
    spec = EngineSpec(
        model=request.model,
        gpu=gpu,
        gpu_count=request.gpu_count,
        precision=precision,
        kv=auto_kv_precision(precision, gpu.sm) if is_auto else KV_PRECISIONS[options.kv_cache_precision.value],
        tp=options.tp,
        pp=options.pp,
        limits=_limits(options, request.model),
        trtllm_version=options.tensorrt_llm,
        memory_model=options.memory_model,
    )
    return spec if options.max_batch_size else _with_largest_batch(spec)


def _limits(options: GpuOptions, model: ModelConfig) -> Limits:
    return Limits(
        max_batch_size=options.max_batch_size or 1,
        max_seq_len=options.max_seq_len or min(model.max_seq_len, DEFAULT_MAX_SEQ_LEN),
        max_num_tokens=options.max_num_tokens or DEFAULT_MAX_NUM_TOKENS,
    )


def _with_largest_batch(spec: EngineSpec) -> EngineSpec:
    fits = estimate_memory(spec).largest_batch_that_fits
    batch = max(1, min(fits, DEFAULT_MAX_BATCH_SIZE, spec.limits.max_num_tokens))
    return replace(spec, limits=replace(spec.limits, max_batch_size=batch))


def engine_name(spec: EngineSpec, calibration: str) -> Path:
    """model/target/precision-tp<N>pp<P>/version, where the version is TensorRT-LLM's and a hash of the inputs.

    The weights are not hashed, since a plan does not read them: two models with the same name and config.json share
    one directory.
    """
    parallel = f"{spec.precision.name}-tp{spec.tp}pp{spec.pp}"
    content = {
        "format": _HASH_FORMAT,
        "config": spec.model.sha256,
        "sm": spec.gpu.sm,
        "precision": spec.precision.name,
        "kv": spec.kv.name,
        "dtype": spec.dtype,
        "mapping": [spec.tp, spec.pp],
        "calibration": calibration if spec.is_calibrated else None,
        "flags": build_flags(spec),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_HASH_LENGTH]
    version = f"{spec.trtllm_version}-{digest}"
    return Path(spec.model.name) / spec.gpu.name / parallel / version


def _notes(spec: EngineSpec, calibration: str) -> Iterator[str]:
    """Remarks on an accepted plan: features that are off, better inputs, unconfirmed combinations."""
    limits = spec.limits
    if not spec.has_paged_context_fmha:
        yield (
            f"Paged context attention is off with {spec.precision.name} weights and a {spec.kv.name} KV "
            f"cache: no prefix cache, and prompts of at most {min(limits.max_num_tokens, limits.max_seq_len)} tokens."
        )
    if spec.is_calibrated and calibration == DEFAULT_CALIBRATION:
        yield (
            f"Calibration downloads {DEFAULT_CALIBRATION} from Hugging Face. Text similar to your requests gives "
            f"better scales: --calibration DIR, a directory with a train.jsonl of {TEXT_COLUMN!r} lines."
        )
    if spec.model.sliding_window and limits.max_seq_len > spec.model.sliding_window:
        yield (
            f"The model attends to the last {spec.model.sliding_window} tokens only; the KV cache is estimated "
            f"for all {limits.max_seq_len}, so more requests may fit."
        )
    if spec.gpu.sm >= 120:
        yield f"Support for SM {spec.gpu.sm} is new in TensorRT-LLM 1.2; this combination has not been confirmed."
    if spec.world_size > GPUS_PER_NODE:
        yield f"{spec.world_size} GPUs exceed the {GPUS_PER_NODE} of a typical node: MPI has to span several nodes."
