"""Engine directories of TensorRT-LLM for tests: complete, except that the engine files contain a few bytes only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from llm_pipeline.engine_files.manifest import (
    TOKENIZER_NAME,
    EngineFile,
    EngineLimits,
    EngineManifest,
    GpuBuild,
    SourceModel,
    TokenIds,
    sha256_of,
)
from llm_pipeline.engine_files.trtllm_config import CONFIG_NAME

VERSION = "1.2.1"
_BUILD_MACHINE: Any = {"gpu_name": "NVIDIA H100 80GB HBM3", "driver": "580.95.05", "tensorrt": "10.14.1"}
_FIXED_BUILD_CONFIG = {"max_beam_width": 1, "kv_cache_type": "PAGED", "gather_context_logits": False}


def make_gpu_engine(
    engine_dir: Path,
    *,
    tokenizer: Path | None = None,
    model_name: str = "tiny",
    version: str = VERSION,
    sm: int = 90,
    tp: int = 1,
    pp: int = 1,
    vocab_size: int = 1000,
    max_seq_len: int = 64,
    max_batch_size: int = 4,
    max_num_tokens: int = 8192,
    has_paged_context: bool = True,
    end_ids: tuple[int, ...] = (2,),
    config: dict[str, Any] | None = None,
) -> EngineManifest:
    """Writes the directory and returns its manifest. `config` replaces top-level parts of config.json."""
    engine_dir.mkdir(parents=True, exist_ok=True)
    document = {
        "version": version,
        "pretrained_config": _pretrained_config(vocab_size, max_seq_len, tp, pp),
        "build_config": {
            "max_input_len": 1024,
            "max_seq_len": max_seq_len,
            "max_batch_size": max_batch_size,
            "max_num_tokens": max_num_tokens,
            "plugin_config": {"use_paged_context_fmha": has_paged_context, "remove_input_padding": True},
            **_FIXED_BUILD_CONFIG,
        },
        **(config or {}),
    }
    (engine_dir / CONFIG_NAME).write_text(json.dumps(document))
    for rank in range(tp * pp):
        (engine_dir / f"rank{rank}.engine").write_bytes(b"no engine")
    if tokenizer:
        shutil.copy(tokenizer, engine_dir / TOKENIZER_NAME)
    manifest = EngineManifest(
        target="h100-80gb",
        precision="fp16",
        model_name=model_name,
        source=_source(model_name),
        tools={},
        limits=EngineLimits(context_length=max_seq_len, vocab_size=vocab_size),
        tokens=TokenIds(bos=1, eos=list(end_ids)),
        created="2026-01-01T00:00:00+00:00",
        files=_files(engine_dir),
        gpu=GpuBuild(
            **_BUILD_MACHINE,
            sm=sm,
            tensorrt_llm=version,
            tp=tp,
            pp=pp,
            kv_cache_precision="fp16",
            max_batch_size=max_batch_size,
            max_num_tokens=max_num_tokens,
            has_paged_context=has_paged_context,
        ),
    )
    manifest.save(engine_dir)
    return manifest


def _pretrained_config(vocab_size: int, max_seq_len: int, tp: int, pp: int) -> dict[str, Any]:
    return {
        "architecture": "LlamaForCausalLM",
        "dtype": "float16",
        "vocab_size": vocab_size,
        "max_position_embeddings": max_seq_len,
        "mapping": {"world_size": tp * pp, "gpus_per_node": 8, "tp_size": tp, "pp_size": pp, "cp_size": 1},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
    }


def _source(name: str) -> SourceModel:
    return SourceModel(name=name, sha256="0" * 64, size_bytes=1, architecture="llama", quantization="float16")


def _files(engine_dir: Path) -> dict[str, EngineFile]:
    paths = [path for path in engine_dir.iterdir() if path.name != "manifest.json"]
    return {path.name: EngineFile(sha256=sha256_of(path), size_bytes=path.stat().st_size) for path in paths}
