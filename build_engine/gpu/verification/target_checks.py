"""What only the target can show of an engine: that it loads and generates, and that it says what its source says.

Where that is not possible, each check says why it was not made; nothing is passed over in silence. Not run on
TensorRT-LLM: the calls are `upstream`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from build_engine.artifact.checks import Check
from build_engine.errors import BuildEngineError
from build_engine.gpu.installation import has_tensorrt_llm, installed_versions
from build_engine.gpu.model_files import hash_model
from build_engine.gpu.planning.model_config import read_model_config
from build_engine.gpu.verification.accuracy import ASSUMED_NOTE, Gate, agreement_check, perplexity_check, threshold_for
from build_engine.gpu.verification.generate import Answer, Question, ask
from build_engine.gpu.verification.smoke_test import GENERATES, Texts, cut_texts, generation_check
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
    """Call it for engines whose files are good."""
    gpu = manifest.gpu
    if gpu is None:
        reason = "the manifest says nothing of the GPU. Build the engine again."
    else:
        reason = _why_not_here(gpu, nvml) or ""
    if gpu is None or reason:
        return [Check.not_made(GENERATES, reason), Check.not_made(ACCURACY, reason)]
    texts = cut_texts(engine_dir, manifest.limits.context_length)
    try:
        with progress.step("load the engine and generate"):
            answer = ask(_question(engine_dir, True, gpu, texts, request.gate, is_greedy=True))
    except BuildEngineError as error:
        reason = "the engine does not generate"
        return [Check.of(GENERATES, False, str(error)), Check.not_made(ACCURACY, reason)]
    generates = generation_check(answer, texts, manifest.limits.vocab_size)
    return [generates, *_accuracy_checks(answer, texts, manifest, gpu, request, progress)]


def _why_not_here(gpu: GpuBuild, nvml: Nvml) -> str | None:
    wanted = f"It needs {gpu.tp * gpu.pp} x SM {gpu.sm} and TensorRT-LLM {gpu.tensorrt_llm}"
    if not has_tensorrt_llm():
        return f"TensorRT-LLM is not installed here. {wanted}: run verify on such a machine."
    try:
        found = [known for known in nvml.gpus() if known.sm == gpu.sm]
        version = installed_versions()["tensorrt_llm"]
    except BuildEngineError as error:
        return f"{error} {wanted}."
    if len(found) < gpu.tp * gpu.pp or version != gpu.tensorrt_llm:
        return f"{wanted}; this machine has {len(found)} x SM {gpu.sm} and {version}."
    return None


def _question(path: Path, is_engine: bool, gpu: GpuBuild, texts: Texts, gate: Gate, *, is_greedy: bool) -> Question:
    is_scored = gate is Gate.PERPLEXITY
    return Question(
        path=str(path),
        is_engine=is_engine,
        tp=gpu.tp,
        pp=gpu.pp,
        prompts=texts.prompts,
        new_tokens=texts.new_tokens if is_greedy else 0,
        texts=texts.ids if is_scored else [],
        scored_from=texts.halves if is_scored else [],
    )


def _accuracy_checks(
    engine: Answer,
    texts: Texts,
    manifest: EngineManifest,
    gpu: GpuBuild,
    request: AccuracyRequest,
    progress: BuildProgress,
) -> list[Check]:
    model_dir = request.model_dir
    if model_dir is None:
        return [Check.not_made(ACCURACY, "no source to compare with. Name the checkpoint with --model.")]
    source = hash_model(model_dir, read_model_config(model_dir, manifest.model_name), progress)
    if source.sha256 != manifest.source.sha256:
        detail = f"{model_dir} is not the checkpoint that the engine was made from. Name that one with --model."
        return [Check.of(ACCURACY, False, detail)]
    limit, note = request.threshold, ""
    if limit is None:
        limit, note = threshold_for(request.gate, manifest.precision, gpu.kv_cache_precision), ASSUMED_NOTE
    is_greedy = request.gate is Gate.AGREEMENT
    try:
        with progress.step("generate with the source checkpoint"):
            answer = ask(_question(model_dir, False, gpu, texts, request.gate, is_greedy=is_greedy))
    except BuildEngineError as error:
        return [Check.not_made(ACCURACY, f"the source checkpoint could not be run. {error}")]
    if is_greedy:
        return [agreement_check(answer.tokens, engine.tokens, limit, note)]
    return [perplexity_check(_joined(answer.log_probs), _joined(engine.log_probs), limit, note)]


def _joined(log_probs: list[list[float]]) -> list[float]:
    return [value for text in log_probs for value in text]
