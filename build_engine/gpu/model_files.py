"""Describes the source model of a GPU engine for its manifest."""

from __future__ import annotations

from pathlib import Path

from build_engine.artifact.model_directory import hash_model_files, model_size_bytes
from build_engine.gpu.planning.model_config import ModelConfig
from build_engine.progress import BuildProgress
from llm_pipeline.engine_files.manifest import SourceModel


def hash_model(model_dir: Path, model: ModelConfig, progress: BuildProgress) -> SourceModel:
    """Reads every byte of the model. The sha256 is over names and hashes of weights, configuration and tokenizer."""
    size_bytes = model_size_bytes(model_dir)
    with progress.step(f"hash {model_dir.name}", size_bytes) as advance:
        sha256 = hash_model_files(model_dir, advance)
    return SourceModel(
        name=model.name,
        sha256=sha256,
        size_bytes=size_bytes,
        architecture=model.architecture,
        quantization=model.dtype,
    )
