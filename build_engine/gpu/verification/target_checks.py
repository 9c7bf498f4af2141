"""Checks an engine on its own GPUs: that it loads and generates, and how close it is to its source checkpoint.

On a machine without them every check is reported as not checked, with the reason. Tested with a stand-in for
TensorRT-LLM only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from build_engine.artifact.checks import Check
from build_engine.errors import BuildEngineError
from build_engine.gpu.installation import has_tensorrt_llm, installed_versions
from build_engine.gpu.model_files import hash_model
from build_engine.gpu.planning.model_config import read_model_config
from build_engine.gpu.verification.accuracy import (
    ASSUMED_NOTE,
    Gate,
    check_agreement,
    check_perplexity,
    threshold_for,
)
from build_engine.gpu.verification.generate import GenerateRequest, GenerateResponse, generate
from build_engine.gpu.verification.smoke_test import GENERATES, SplitTexts, check_generated, split_texts
from build_engine.progress import BuildProgress
from build_engine.targets.nvml import Nvml
from llm_pipeline.engine_files.manifest import EngineManifest, GpuBuild

ACCURACY = "accuracy"


@dataclass(frozen=True)
class AccuracyRequest:
    model_dir: Path | None = None  # the source checkpoint; None: accuracy is not checked
    gate: Gate = Gate.AGREEMENT
    threshold: float | None = None  # None: the precision's own


def check_on_target(
    engine_dir: Path, manifest: EngineManifest, request: AccuracyRequest, nvml: Nvml, progress: BuildProgress
) -> list[Check]:
    """Requires that the files of the engine have passed their checks."""
    gpu = manifest.gpu
    reason = "The manifest does not describe a GPU build. Build the engine again."
    if gpu is not None:
        reason = _reason_not_here(gpu, nvml) or ""
    if gpu is None or reason:
        return [Check.not_made(GENERATES, reason), Check.not_made(ACCURACY, reason)]
    texts = split_texts(engine_dir, manifest.limits.context_length)
    try:
        with progress.step("load the engine and generate"):
            response = generate(_request(engine_dir, True, gpu, texts, request.gate, is_greedy=True))
    except BuildEngineError as error:
        reason = "the engine does not generate"
        return [Check.of(GENERATES, False, str(error)), Check.not_made(ACCURACY, reason)]
    generates = check_generated(response, texts, manifest.limits.vocab_size)
    return [generates, *_check_accuracy(response, texts, manifest, gpu, request, progress)]


def _reason_not_here(gpu: GpuBuild, nvml: Nvml) -> str | None:
    """None if this machine has the engine's GPUs and TensorRT-LLM version."""
    needed = f"This engine needs {gpu.tp * gpu.pp} x SM {gpu.sm} and TensorRT-LLM {gpu.tensorrt_llm}"
    if not has_tensorrt_llm():
        return f"TensorRT-LLM is not installed. {needed}. Run verify on such a machine."
    try:
        matching = [device for device in nvml.gpus() if device.sm == gpu.sm]
        version = installed_versions()["tensorrt_llm"]
    except BuildEngineError as error:
        return f"{error} {needed}."
    if len(matching) < gpu.tp * gpu.pp or version != gpu.tensorrt_llm:
        return f"{needed}; this machine has {len(matching)} x SM {gpu.sm} and {version}."
    return None


def _request(
    path: Path, is_engine: bool, gpu: GpuBuild, texts: SplitTexts, gate: Gate, *, is_greedy: bool
) -> GenerateRequest:
    is_scored = gate is Gate.PERPLEXITY
    return GenerateRequest(
        path=str(path),
        is_engine=is_engine,
        tp=gpu.tp,
        pp=gpu.pp,
        prompts=texts.prompts,
        new_tokens=texts.new_tokens if is_greedy else 0,
        texts=texts.ids if is_scored else [],
        scored_from=texts.prompt_lengths if is_scored else [],
    )


def _check_accuracy(
    engine: GenerateResponse,
    texts: SplitTexts,
    manifest: EngineManifest,
    gpu: GpuBuild,
    request: AccuracyRequest,
    progress: BuildProgress,
) -> list[Check]:
    model_dir = request.model_dir
    if model_dir is None:
        return [Check.not_made(ACCURACY, "There is no source to compare with. Name the checkpoint with --model.")]
    source = hash_model(model_dir, read_model_config(model_dir, manifest.model_name), progress)
    if source.sha256 != manifest.source.sha256:
        detail = f"{model_dir} is not the checkpoint that the engine was built from. Name that checkpoint with --model."
        return [Check.of(ACCURACY, False, detail)]
    threshold, note = request.threshold, ""
    if threshold is None:
        threshold, note = threshold_for(request.gate, manifest.precision, gpu.kv_cache_precision), ASSUMED_NOTE
    is_greedy = request.gate is Gate.AGREEMENT
    try:
        with progress.step("generate with the source checkpoint"):
            response = generate(_request(model_dir, False, gpu, texts, request.gate, is_greedy=is_greedy))
    except BuildEngineError as error:
        return [Check.not_made(ACCURACY, f"The source checkpoint could not be run. {error}")]
    if is_greedy:
        return [check_agreement(response.tokens, engine.tokens, threshold, note)]
    return [check_perplexity(_flatten(response.logprobs), _flatten(engine.logprobs), threshold, note)]


def _flatten(logprobs: list[list[float]]) -> list[float]:
    return [value for text in logprobs for value in text]
