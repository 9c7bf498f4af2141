"""Compares upstream's config.json of an engine with its manifest: ranks, parallelism, limits and KV cache.

A key that a TensorRT-LLM version does not write is reported as not checked, not as a failure.
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
    """One check per compared key; a single failed one if config.json can't be read. Empty for a CPU engine."""
    gpu = manifest.gpu
    if gpu is None:
        return []
    try:
        config = EngineConfig.load(engine_dir)
    except ManifestError as error:
        return [Check.of(CONFIG_NAME, False, str(error))]
    return [_check_ranks(manifest, gpu), *_check_keys(config, manifest, gpu)]


def _check_ranks(manifest: EngineManifest, gpu: GpuBuild) -> Check:
    ranks = [f"rank{rank}.engine" for rank in range(gpu.tp * gpu.pp)]
    present = sorted(name for name in manifest.files if name.endswith(".engine"))
    detail = f"{len(present)} files for tp {gpu.tp} x pp {gpu.pp}"
    return Check.of("one engine for each GPU", present == sorted(ranks), detail)


def _check_keys(config: EngineConfig, manifest: EngineManifest, gpu: GpuBuild) -> Iterator[Check]:
    kv = None if gpu.kv_cache_precision in _UNQUANTISED_KV else gpu.kv_cache_precision.upper()
    expected_values: list[tuple[str, Any]] = [
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
    for key, expected in expected_values:
        actual = config.value_of(key)
        if actual is Absent.ABSENT:
            yield Check.not_made(key, f"not in {CONFIG_NAME}; the manifest has {expected}")
        else:
            difference = "" if actual == expected else f", the manifest has {expected}"
            yield Check.of(key, actual == expected, f"{actual}{difference}")
