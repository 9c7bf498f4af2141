"""Runs the checks of an engine directory in order: manifest, files, tokenizer, then those of its target."""

from __future__ import annotations

from pathlib import Path

from build_engine.artifact.checks import Check
from build_engine.artifact.file_checks import check_files, size_of
from build_engine.artifact.tokenizer_checks import check_tokenizer, load_tokenizer
from build_engine.cpu.generation_checks import check_generation
from build_engine.errors import EngineRefusedError
from build_engine.gpu.planning.model_config import read_model_config
from build_engine.gpu.verification.config_checks import check_config
from build_engine.gpu.verification.target_checks import AccuracyRequest, check_on_target
from build_engine.progress import BuildProgress
from build_engine.pytorch.verification.model_checks import check_loading, check_model
from build_engine.targets.nvml import Nvml
from llm_pipeline.engine_files.manifest import MANIFEST_NAME, TOKENIZER_NAME, EngineManifest, ManifestError

_NO_ACCURACY = {
    "cpu": "The accuracy options apply to GPU engines; a CPU engine is checked against reference tokens.",
    "pytorch": "The accuracy options apply to compiled engines; a model directory has the model's own weights.",
}


def verify_engine(engine_dir: Path, progress: BuildProgress) -> list[Check]:
    """The checks that run on any machine. A damaged engine is not loaded, and a GPU engine is never loaded here."""
    try:
        manifest = EngineManifest.load(engine_dir)
    except ManifestError as error:
        return [Check.of(MANIFEST_NAME, False, str(error))]
    checks = [Check.of(MANIFEST_NAME, True, f"{manifest.model_name}, {manifest.target} {manifest.precision}")]
    with progress.step("hash the files", size_of(manifest)) as advance:
        checks += check_files(engine_dir, manifest, advance)
    if any(check.failed for check in checks):
        return checks
    with progress.step("check the tokenizer"):
        tokenizer = load_tokenizer(engine_dir / TOKENIZER_NAME)
        checks += check_tokenizer(tokenizer, manifest.limits.vocab_size)
    if manifest.runtime != "cpu":
        return checks + check_config(engine_dir, manifest) + check_model(engine_dir, manifest)
    with progress.step("load the engine and generate"):
        checks += check_generation(engine_dir, tokenizer, manifest)
    return checks


def verify_on_target(engine_dir: Path, accuracy: AccuracyRequest, nvml: Nvml, progress: BuildProgress) -> list[Check]:
    """`verify_engine`, then the checks that need the engine's own GPUs and TensorRT-LLM, unless one has failed.

    Raises EngineRefusedError if `accuracy` is set for a directory that is not a compiled engine, or names a directory
    that is not a model.
    """
    checks = verify_engine(engine_dir, progress)
    if any(check.failed for check in checks):
        return checks
    manifest = EngineManifest.load(engine_dir)
    if manifest.runtime != "engine":
        if accuracy != AccuracyRequest():
            raise EngineRefusedError(f"{_NO_ACCURACY[manifest.runtime]} Remove --model, --gate and --threshold.")
        return checks if manifest.runtime == "cpu" else [*checks, check_loading(engine_dir, manifest, nvml, progress)]
    if accuracy.model_dir:
        read_model_config(accuracy.model_dir)  # rejects a wrong --model before the engine is loaded
    return checks + check_on_target(engine_dir, manifest, accuracy, nvml, progress)
