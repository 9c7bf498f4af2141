"""The command lines of a build, exact and in order. A Python of any machine can print them; a machine with
TensorRT-LLM can run them. Not run here.

Only `trtllm-build` flags that the 1.0 to 1.2 line has are used. Parallelism is no flag of it: the checkpoint has one
file for each rank, and its config.json the mapping.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from build_engine.gpu.planning.spec import EngineSpec
from build_engine.targets.gpus import Gpu
from llm_pipeline.engine_files.manifest import TOKENIZER_NAME

PYTHON = "python3"


@dataclass(frozen=True)
class Step:
    name: str
    argv: tuple[str, ...]


def checkpoint_dir(engine_dir: Path) -> Path:
    """Beside the engine: it is no part of it."""
    return engine_dir.with_name(f"{engine_dir.name}.checkpoint")


def timing_cache_path(root: Path, trtllm_version: str, gpu: Gpu) -> Path:
    """The TensorRT kernel timings that all engines of one TensorRT-LLM version, SM and target share."""
    return root / "timing-caches" / f"{trtllm_version}-sm{gpu.sm}-{gpu.name}.cache"


def make_steps(
    combination: EngineSpec, model_dir: Path, engine_dir: Path, calibration: str, timing_cache: Path
) -> tuple[Step, ...]:
    """Checkpoint, engine, tokenizer."""
    checkpoint = checkpoint_dir(engine_dir)
    tokenizer = ("cp", str(model_dir / TOKENIZER_NAME), str(engine_dir / TOKENIZER_NAME))
    return (
        _checkpoint_step(combination, model_dir, checkpoint, calibration),
        Step("engine", ("trtllm-build", *_paths(checkpoint, engine_dir, timing_cache), *build_flags(combination))),
        Step("tokenizer", tokenizer),
    )


def _checkpoint_step(combination: EngineSpec, model_dir: Path, checkpoint: Path, calibration: str) -> Step:
    arguments = [
        *("--model", str(model_dir)),
        *("--output", str(checkpoint)),
        *("--precision", combination.precision.name),
        *("--kv-cache-precision", combination.kv.name),
        *("--dtype", combination.dtype),
        *("--tp", str(combination.tp)),
        *("--pp", str(combination.pp)),
    ]
    if combination.is_calibrated:
        arguments += ["--calibration", calibration]
    name = "quantise" if combination.is_calibrated else "convert"
    return Step(name, (PYTHON, "-m", "build_engine.gpu.building.convert", *arguments))


def _paths(checkpoint: Path, engine_dir: Path, timing_cache: Path) -> tuple[str, ...]:
    """The same timing cache in and out; without the file upstream begins with an empty one."""
    return (
        *("--checkpoint_dir", str(checkpoint)),
        *("--output_dir", str(engine_dir)),
        *("--input_timing_cache", str(timing_cache)),
        *("--output_timing_cache", str(timing_cache)),
    )


def build_flags(combination: EngineSpec) -> tuple[str, ...]:
    """What decides the engine, without paths; defaults that in-flight batching relies on are said all the same."""
    limits = combination.limits
    flags = {
        "max_batch_size": str(limits.max_batch_size),
        "max_seq_len": str(limits.max_seq_len),
        "max_num_tokens": str(limits.max_num_tokens),
        "max_beam_width": "1",
        "kv_cache_type": "paged",
        "remove_input_padding": "enable",
        "gpt_attention_plugin": "auto",
        "context_fmha": _switch(combination.has_context_fmha),
        "use_paged_context_fmha": _switch(combination.has_paged_context_fmha),
        "use_fp8_context_fmha": _switch(combination.has_fp8_context_fmha),
        "workers": str(combination.world_size),
    }
    if combination.precision.qformat == "full_prec":
        flags["gemm_plugin"] = "auto"  # upstream's advice for weights that are not quantised
    if not combination.has_context_fmha:
        flags["max_input_len"] = str(limits.max_seq_len)  # build() asks for it without fused attention
    return tuple(part for name, value in flags.items() for part in (f"--{name}", value))


def _switch(is_on: bool) -> str:
    return "enable" if is_on else "disable"
