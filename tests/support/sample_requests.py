"""Requests and manifests for tests, with defaults for everything that a test does not depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_pipeline.engine_files.manifest import EngineLimits, EngineManifest, SourceModel, TokenIds
from llm_pipeline.protocol.messages import GenerationRequest, SamplingParams, TextOptions

GREEDY = SamplingParams()


def make_request(
    key: str = "request",
    prompt_ids: tuple[int, ...] = (5, 6, 7),
    max_tokens: int = 8,
    sampling: SamplingParams = GREEDY,
    stop_token_ids: tuple[int, ...] = (),
    **text: Any,
) -> GenerationRequest:
    """Returns a request as preprocess makes it; further arguments are those of TextOptions."""
    options = TextOptions(max_tokens=max_tokens, prompt_tokens=len(prompt_ids), **text)
    return GenerationRequest(key, prompt_ids, max_tokens, sampling, stop_token_ids, options)


def make_manifest(*, context_length: int = 64, vocab_size: int = 1000, end_ids: tuple[int, ...] = ()) -> EngineManifest:
    """Returns the manifest of an engine without files."""
    return EngineManifest(
        target="cpu",
        precision="fp16",
        model_name="tiny",
        source=SourceModel(name="tiny", sha256="0", size_bytes=1, architecture="llama", quantization="F16"),
        tools={},
        limits=EngineLimits(context_length=context_length, vocab_size=vocab_size),
        tokens=TokenIds(eos=list(end_ids)),
        created="2026-01-01T00:00:00+00:00",
        files={},
    )


def write_manifest(engine_dir: Path, *, model_name: str = "tiny") -> Path:
    """Writes the manifest of an engine without files, and returns its directory."""
    engine_dir.mkdir(parents=True, exist_ok=True)
    make_manifest().model_copy(update={"model_name": model_name}).save(engine_dir)
    return engine_dir
