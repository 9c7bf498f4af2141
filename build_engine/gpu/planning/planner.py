"""From a request to a plan: what would be built, by which commands, in how much memory, or why not. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from build_engine.artifact.engine_dir import DEFAULT_ROOT
from build_engine.gpu.planning.calibration import DEFAULT_CALIBRATION, TEXT_COLUMN
from build_engine.gpu.planning.commands import Step, build_flags, make_steps, timing_cache_path
from build_engine.gpu.planning.constraints import find_refusals
from build_engine.gpu.planning.memory import MemoryEstimate, estimate_memory
from build_engine.gpu.planning.memory_model import ASSUMED, Assumptions
from build_engine.gpu.planning.model_config import ModelConfig
from build_engine.gpu.planning.spec import EngineSpec, Limits
from build_engine.targets.gpus import Gpu
from build_engine.targets.precisions import KV_PRECISIONS, PRECISIONS, auto_kv_precision, auto_precision

DEFAULT_TRTLLM = "1.2.1"  # the newest stable with the engine path
DEFAULT_MAX_SEQ_LEN = 8192
DEFAULT_MAX_BATCH_SIZE = 64
DEFAULT_MAX_NUM_TOKENS = 8192  # trtllm-build's
GPUS_PER_NODE = 8
_HASH_LENGTH = 12
_HASH_FORMAT = 1  # part of every hash: raise it when the same input comes to mean another engine


@dataclass(frozen=True)
class PlanRequest:
    """What the person asked for; None means `auto`."""

    model: ModelConfig
    model_dir: Path
    gpu: Gpu
    gpu_count: int | None = None  # of this machine, where `--target auto` asked it
    precision: str | None = None
    kv_precision: str | None = None
    tp: int = 1
    pp: int = 1
    max_batch_size: int | None = None
    max_seq_len: int | None = None
    max_num_tokens: int | None = None
    calibration: str = DEFAULT_CALIBRATION
    trtllm_version: str = DEFAULT_TRTLLM
    root: Path = DEFAULT_ROOT
    assumptions: Assumptions = ASSUMED


@dataclass(frozen=True)
class Plan:
    """`steps` is empty and `engine_dir` None when there are refusals."""

    combination: EngineSpec
    memory: MemoryEstimate
    refusals: tuple[str, ...]
    notes: tuple[str, ...]
    engine_dir: Path | None
    steps: tuple[Step, ...]
    calibration: str
    timing_cache: Path | None = None  # as in the steps

    @property
    def accepted(self) -> bool:
        return not self.refusals


def make_plan(request: PlanRequest) -> Plan:
    """Never raises for a combination that can't be built: the plan then says why."""
    combination = resolve(request)
    memory = estimate_memory(combination)
    refusals = tuple(find_refusals(combination, memory))
    if refusals:
        return Plan(combination, memory, refusals, (), engine_dir=None, steps=(), calibration=request.calibration)
    engine_dir = request.root / engine_name(combination, request.calibration)
    timing_cache = timing_cache_path(request.root, request.trtllm_version, request.gpu)
    steps = make_steps(combination, request.model_dir, engine_dir, request.calibration, timing_cache)
    notes = tuple(_notes(combination, request.calibration))
    return Plan(combination, memory, refusals, notes, engine_dir, steps, request.calibration, timing_cache)


def resolve(request: PlanRequest) -> EngineSpec:
    """Choose everything that was left to us. The batch comes last: it is the largest that fits, up to a default."""
    precision = (
        PRECISIONS[request.precision] if request.precision else auto_precision(request.gpu.sm, request.model.dtype)
    )
    kv = KV_PRECISIONS[request.kv_precision] if request.kv_precision else auto_kv_precision(precision, request.gpu.sm)
    combination = EngineSpec(
        model=request.model,
        gpu=request.gpu,
        gpu_count=request.gpu_count,
        precision=precision,
        kv=kv,
        tp=request.tp,
        pp=request.pp,
        limits=_limits(request),
        trtllm_version=request.trtllm_version,
        assumptions=request.assumptions,
    )
    return combination if request.max_batch_size else _with_batch(combination)


def _limits(request: PlanRequest) -> Limits:
    return Limits(
        max_batch_size=request.max_batch_size or 1,
        max_seq_len=request.max_seq_len or min(request.model.max_seq_len, DEFAULT_MAX_SEQ_LEN),
        max_num_tokens=request.max_num_tokens or DEFAULT_MAX_NUM_TOKENS,
    )


def _with_batch(combination: EngineSpec) -> EngineSpec:
    fits = estimate_memory(combination).largest_batch_that_fits
    batch = max(1, min(fits, DEFAULT_MAX_BATCH_SIZE, combination.limits.max_num_tokens))
    return replace(combination, limits=replace(combination.limits, max_batch_size=batch))


def engine_name(combination: EngineSpec, calibration: str) -> Path:
    """model/target/precision-tp<N>pp<P>/version: TensorRT-LLM's version and a hash of all that decides the files.

    Not in it: the weights, which a plan does not read. Two models with one name and config.json get one directory.
    """
    parallel = f"{combination.precision.name}-tp{combination.tp}pp{combination.pp}"
    content = {
        "format": _HASH_FORMAT,
        "config": combination.model.sha256,
        "sm": combination.gpu.sm,
        "precision": combination.precision.name,
        "kv": combination.kv.name,
        "dtype": combination.dtype,
        "mapping": [combination.tp, combination.pp],
        "calibration": calibration if combination.is_calibrated else None,
        "flags": build_flags(combination),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_HASH_LENGTH]
    version = f"{combination.trtllm_version}-{digest}"
    return Path(combination.model.name) / combination.gpu.name / parallel / version


def _notes(combination: EngineSpec, calibration: str) -> Iterator[str]:
    """What is worth knowing of a combination that can be built."""
    limits = combination.limits
    if not combination.has_paged_context_fmha:
        yield (
            f"Paged context attention is off with {combination.precision.name} weights and a {combination.kv.name} KV "
            f"cache: no prefix reuse, and prompts of at most {min(limits.max_num_tokens, limits.max_seq_len)} tokens."
        )
    if combination.is_calibrated and calibration == DEFAULT_CALIBRATION:
        yield (
            f"Calibration takes {DEFAULT_CALIBRATION} from Hugging Face. Text like your own requests is better: "
            f"--calibration DIR, a directory with a train.jsonl of {TEXT_COLUMN!r} lines."
        )
    if combination.model.sliding_window and limits.max_seq_len > combination.model.sliding_window:
        yield (
            f"The model attends to its last {combination.model.sliding_window} tokens only; the KV cache is counted "
            f"for all {limits.max_seq_len}, so more requests may fit."
        )
    if combination.gpu.sm >= 120:
        yield f"Engines for SM {combination.gpu.sm} are new in TensorRT-LLM 1.2; nobody has confirmed this combination."
    if combination.world_size > GPUS_PER_NODE:
        yield f"{combination.world_size} GPUs are more than the {GPUS_PER_NODE} of a usual node: MPI over several."
