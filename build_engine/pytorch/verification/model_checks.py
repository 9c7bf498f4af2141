"""Checks of an engine directory for the PyTorch runtime: links, configuration against manifest, and loading."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from build_engine.artifact.checks import Check
from build_engine.errors import BuildEngineError, EngineRefusedError
from build_engine.gpu.verification.smoke_test import GENERATES
from build_engine.progress import BuildProgress
from build_engine.pytorch.checkpoint.model_directory import ModelDirectory, read_model_directory
from build_engine.pytorch.verification.link_checks import check_links
from build_engine.pytorch.verification.load_test import installed_version, load_test, reason_not_loadable
from build_engine.targets.nvml import Nvml
from llm_pipeline.engine_files.manifest import EngineManifest, PyTorchModel

_MODEL = "model"


def check_model(engine_dir: Path, manifest: EngineManifest) -> list[Check]:
    """The checks that any machine can make. Empty for other runtimes. Requires that the files have passed theirs."""
    model = manifest.pytorch
    if model is None:
        return []
    links = check_links(engine_dir, manifest)
    try:
        found = read_model_directory(engine_dir, manifest.model_name)
    except EngineRefusedError as error:
        return [links, Check.of(_MODEL, False, str(error))]
    return [links, *_compare(found, manifest, model)]


def check_loading(engine_dir: Path, manifest: EngineManifest, nvml: Nvml, progress: BuildProgress) -> Check:
    """Loads the model if this machine has its GPUs, with any version of TensorRT-LLM: its detail names the version."""
    model = manifest.pytorch
    assert model is not None
    if reason := reason_not_loadable(model, nvml):
        return Check.not_made(GENERATES, f"{reason} Run verify on such a machine.")
    try:
        with progress.step("load the model and generate"):
            version = installed_version()
            check = load_test(engine_dir, manifest)
    except BuildEngineError as error:
        return Check.of(GENERATES, False, str(error))
    difference = "" if version == model.tensorrt_llm else f" (built for {model.tensorrt_llm})"
    return Check(check.name, check.outcome, f"{check.detail}, TensorRT-LLM {version}{difference}")


def _compare(found: ModelDirectory, manifest: EngineManifest, model: PyTorchModel) -> Iterator[Check]:
    """config.json and the weights against the manifest."""
    yield _equal("architecture", found.architecture, model.architecture)
    quantization = found.quantization.algorithm if found.quantization else None
    yield _equal("quantization", quantization or "none", model.quantization or "none")
    yield _equal("vocabulary", found.vocab_size, manifest.limits.vocab_size)
    longest, context = found.max_seq_len, manifest.limits.context_length
    yield Check.of("context length", context <= longest, f"{context} tokens; the model was made for {longest}")
    weights = found.weights
    detail = f"{len(weights.tensors)} tensors in {len(weights.files)} files" if weights else "no safetensors files"
    yield Check.of("weights", weights is not None, detail)


def _equal(name: str, found: object, expected: object) -> Check:
    difference = "" if found == expected else f", the manifest has {expected}"
    return Check.of(name, found == expected, f"{found}{difference}")
