"""The command lines of a GPU build, in order. Any machine can print them; only one with TensorRT-LLM can run them.

Uses only `trtllm-build` flags of versions 1.1 and 1.2. Parallelism is not a flag: the checkpoint has one file per rank,
and its config.json has the mapping.
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
    """A sibling of the engine directory, since it is not part of the engine."""
    return engine_dir.with_name(f"{engine_dir.name}.checkpoint")


def timing_cache_path(root: Path, trtllm_version: str, gpu: Gpu) -> Path:
    """The TensorRT kernel timings that all engines of one TensorRT-LLM version, SM and target share."""
    return root / "timing-caches" / f"{trtllm_version}-sm{gpu.sm}-{gpu.name}.cache"


def make_steps(
    spec: EngineSpec, model_dir: Path, engine_dir: Path, calibration: str, timing_cache: Path
) -> tuple[Step, ...]:
    """The steps checkpoint, engine and tokenizer."""
    checkpoint = checkpoint_dir(engine_dir)
    tokenizer = ("cp", str(model_dir / TOKENIZER_NAME), str(engine_dir / TOKENIZER_NAME))
    return (
        _checkpoint_step(spec, model_dir, checkpoint, calibration),
        Step("engine", ("trtllm-build", *_paths(checkpoint, engine_dir, timing_cache), *build_flags(spec))),
        Step("tokenizer", tokenizer),
    )


def _checkpoint_step(spec: EngineSpec, model_dir: Path, checkpoint: Path, calibration: str) -> Step:
    arguments = [
        *("--model", str(model_dir)),
        *("--output", str(checkpoint)),
        *("--precision", spec.precision.name),
        *("--kv-cache-precision", spec.kv.name),
        *("--dtype", spec.dtype),
        *("--tp", str(spec.tp)),
        *("--pp", str(spec.pp)),
    ]
    if spec.is_calibrated:
        arguments += ["--calibration", calibration]
    name = "quantise" if spec.is_calibrated else "convert"
    return Step(name, (PYTHON, "-m", "build_engine.gpu.building.convert", *arguments))


def _paths(checkpoint: Path, engine_dir: Path, timing_cache: Path) -> tuple[str, ...]:
    """The timing cache is input and output; if the file is missing, upstream starts with an empty one."""
    return (
        *("--checkpoint_dir", str(checkpoint)),
        *("--output_dir", str(engine_dir)),
        *("--input_timing_cache", str(timing_cache)),
        *("--output_timing_cache", str(timing_cache)),
    )


def build_flags(spec: EngineSpec) -> tuple[str, ...]:
    """The flags that decide the engine, without paths. Includes the defaults that in-flight batching depends on."""
    limits = spec.limits
    flags = {
        "max_batch_size": str(limits.max_batch_size),
        "max_seq_len": str(limits.max_seq_len),
        "max_num_tokens": str(limits.max_num_tokens),
        "max_beam_width": "1",
        "kv_cache_type": "paged",
        "remove_input_padding": "enable",
        "gpt_attention_plugin": "auto",
        "context_fmha": _switch(spec.has_context_fmha),
        "use_paged_context_fmha": _switch(spec.has_paged_context_fmha),
        "use_fp8_context_fmha": _switch(spec.has_fp8_context_fmha),
        "workers": str(spec.world_size),
    }
    if spec.precision.qformat == "full_prec":
        flags["gemm_plugin"] = "auto"  # upstream's recommendation for unquantized weights
    if not spec.has_context_fmha:
        flags["max_input_len"] = str(limits.max_seq_len)  # required by build() without fused attention
    return tuple(part for name, value in flags.items() for part in (f"--{name}", value))


def _switch(is_on: bool) -> str:
    return "enable" if is_on else "disable"
