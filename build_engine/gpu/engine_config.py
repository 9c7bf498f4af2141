"""Whether the engine that upstream wrote is the one its manifest describes: both say tp, pp, limits and KV cache.

Upstream's config.json (tensorrt_llm/builder.py, EngineConfig): `version`, `pretrained_config`, `build_config`. A key
that a version does not write is reported as not checked, never as wrong. Pure but for reading the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from build_engine.checks import Check
from build_engine.gpu.model_config import CONFIG_NAME
from llm_pipeline.engine_manifest import EngineManifest, GpuBuild

_ABSENT = object()
_UNQUANTISED_KV = ("fp16", "fp32")


def config_checks(engine_dir: Path, manifest: EngineManifest) -> list[Check]:
    """One check for each fact; a single failed one when the file can't be read."""
    gpu = manifest.gpu
    if gpu is None:
        return []
    try:
        config = json.loads((engine_dir / CONFIG_NAME).read_bytes())
    except (OSError, ValueError) as error:
        return [Check.of(CONFIG_NAME, False, f"can't be read: {error}")]
    if not isinstance(config, dict):
        return [Check.of(CONFIG_NAME, False, "is no JSON object")]
    return [_rank_check(manifest, gpu), *_fact_checks(config, manifest, gpu)]


def _rank_check(manifest: EngineManifest, gpu: GpuBuild) -> Check:
    ranks = [f"rank{rank}.engine" for rank in range(gpu.tp * gpu.pp)]
    found = sorted(name for name in manifest.files if name.endswith(".engine"))
    detail = f"{len(found)} files for tp {gpu.tp} x pp {gpu.pp}"
    return Check.of("one engine for each GPU", found == sorted(ranks), detail)


def _fact_checks(config: dict[str, Any], manifest: EngineManifest, gpu: GpuBuild) -> Iterator[Check]:
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
        found = _look_up(config, key)
        if found is _ABSENT:
            yield Check.not_made(key, f"{CONFIG_NAME} does not say it, the manifest says {expected}")
        else:
            differs = "" if found == expected else f", the manifest says {expected}"
            yield Check.of(key, found == expected, f"{found}{differs}")


def _look_up(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return _ABSENT
        value = value[part]
    return value
