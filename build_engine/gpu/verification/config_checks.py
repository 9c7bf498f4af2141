"""Whether the engine that upstream wrote is the one its manifest describes: both say tp, pp, limits and KV cache.

A key that a version does not write into config.json is reported as not checked, never as wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from build_engine.artifact.checks import Check
from llm_pipeline.engine_files.manifest import EngineManifest, GpuBuild, ManifestError
from llm_pipeline.engine_files.trtllm_config import CONFIG_NAME, Absent, EngineConfig

_UNQUANTISED_KV = ("fp16", "fp32")


def check_config(engine_dir: Path, manifest: EngineManifest) -> list[Check]:
    """One check for each fact; a single failed one when the file can't be read."""
    gpu = manifest.gpu
    if gpu is None:
        return []
    try:
        config = EngineConfig.load(engine_dir)
    except ManifestError as error:
        return [Check.of(CONFIG_NAME, False, str(error))]
    return [_rank_check(manifest, gpu), *_fact_checks(config, manifest, gpu)]


def _rank_check(manifest: EngineManifest, gpu: GpuBuild) -> Check:
    ranks = [f"rank{rank}.engine" for rank in range(gpu.tp * gpu.pp)]
    found = sorted(name for name in manifest.files if name.endswith(".engine"))
    detail = f"{len(found)} files for tp {gpu.tp} x pp {gpu.pp}"
    return Check.of("one engine for each GPU", found == sorted(ranks), detail)


def _fact_checks(config: EngineConfig, manifest: EngineManifest, gpu: GpuBuild) -> Iterator[Check]:
    kv = None if gpu.kv_cache_precision in _UNQUANTISED_KV else gpu.kv_cache_precision.upper()
    facts: list[tuple[str, Any]] = [
        ("version", gpu.tensorrt_llm),
        ("pretrained_config.mapping.tp_size", gpu.tp),
        ("pretrained_config.mapping.pp_size", gpu.pp),
        ("pretrained_config.vocab_size", manifest.limits.vocab_size),
        ("pretrained_config.quantization.kv_cache_quant_algo", kv),
        ("build_config.max_batch_size", gpu.max_batch_size),
        ("build_config.max_seq_len", manifest.limits.context_length),
        ("build_config.max_num_tokens", gpu.max_num_tokens),
        ("build_config.plugin_config.use_paged_context_fmha", gpu.has_paged_context),
    ]
    for key, expected in facts:
        found = config.says(key)
        if found is Absent.ABSENT:
            yield Check.not_made(key, f"{CONFIG_NAME} does not say it, the manifest says {expected}")
        else:
            differs = "" if found == expected else f", the manifest says {expected}"
            yield Check.of(key, found == expected, f"{found}{differs}")
