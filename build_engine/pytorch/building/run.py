"""Builds an engine directory over a model directory from an accepted plan, or reuses a valid one.

Nothing is compiled, so it needs neither a GPU nor TensorRT-LLM; with both, the model is loaded before it is published.
The directory is published atomically (artifact/engine_dir.py): links and copies are written to a sibling first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from build_engine.artifact.chat_templates import ChatTemplates, read_chat_templates, tried
from build_engine.artifact.engine_dir import LOCK_WAIT_S, build_lock, new_engine, replace_manifest
from build_engine.artifact.file_checks import file_problems, size_of
from build_engine.artifact.resources import LocalResources, Resources
from build_engine.artifact.result import BuildResult
from build_engine.errors import BuildEngineError, EngineRefusedError
from build_engine.progress import BuildProgress
from build_engine.pytorch.building.manifest import describe_model, describe_source, make_manifest
from build_engine.pytorch.building.publish import copy_model, hash_source, link_files, require_disk
from build_engine.pytorch.building.source_checks import check_source
from build_engine.pytorch.building.source_files import SourceFiles, find_source_files
from build_engine.pytorch.planning.plan import PyTorchPlan
from build_engine.pytorch.verification.link_checks import link_sources, read_links
from build_engine.pytorch.verification.load_test import installed_version, load_test, reason_not_loadable
from build_engine.targets.nvml import Nvml
from llm_pipeline.engine_files.manifest import (
    TOKENIZER_NAME,
    EngineFile,
    EngineManifest,
    ManifestError,
    PyTorchModel,
)

HashModel = Callable[[SourceFiles, BuildProgress], dict[str, EngineFile]]


@dataclass(frozen=True)
class BuildOptions:
    force: bool = False
    has_copies: bool = False  # of the model's files, instead of links
    with_load_test: bool = True  # if this machine has TensorRT-LLM and the GPUs
    lock_wait_s: float = LOCK_WAIT_S
    resources: Resources = field(default_factory=LocalResources)


def build_model(
    plan: PyTorchPlan,
    nvml: Nvml,
    progress: BuildProgress,
    options: BuildOptions | None = None,
    hash_model: HashModel = hash_source,
) -> BuildResult:
    """`hash_model` may return digests that the caller has already.

    Raises EngineRefusedError before anything is written, BuildEngineError if the model does not load.
    """
    options = options or BuildOptions()
    engine_dir = _directory_of(plan).absolute()
    files = find_source_files(plan.spec.model.path)
    if engine_dir.resolve() == files.directory or engine_dir.resolve() in files.directory.parents:
        raise EngineRefusedError(f"The model is inside the engine directory {engine_dir}. Choose another --root.")
    tokenizer = check_source(files, plan.spec.model.vocab_size, plan.spec.trtllm_version)
    if options.has_copies:
        require_disk(files, engine_dir.parent, options.resources)
    chat = tried(read_chat_templates(files.directory), progress.note)
    hashes = hash_model(files, progress)
    source = describe_source(plan.spec, hashes)

    def note_waiting() -> None:
        progress.note(f"Another build of {engine_dir.name} is running. Waiting for it.")

    with build_lock(engine_dir, note_waiting, options.lock_wait_s):
        existing = None if options.force else _find_existing(plan, engine_dir, files, hashes, options, chat, progress)
        if existing:
            return BuildResult(engine_dir, _test_later(existing, engine_dir, nvml, options, progress), reused=True)
        with new_engine(engine_dir) as building:
            (building / TOKENIZER_NAME).write_text(tokenizer.json, encoding="utf-8")
            if options.has_copies:
                copy_model(files, hashes, building, progress)
            else:
                link_files(files, building)
            own_files = [name for name in chat.write(building) if name not in hashes]
            manifest = make_manifest(plan, building, source, hashes, own_files, is_linked=not options.has_copies)
            if options.with_load_test:
                manifest = _test_first(manifest, building, nvml, progress)
            manifest.save(building)
    return BuildResult(engine_dir, manifest, reused=False)


def _directory_of(plan: PyTorchPlan) -> Path:
    if plan.engine_dir is None:
        raise EngineRefusedError(" ".join(plan.refusals))
    return plan.engine_dir


def _find_existing(
    plan: PyTorchPlan,
    engine_dir: Path,
    files: SourceFiles,
    hashes: dict[str, EngineFile],
    options: BuildOptions,
    chat: ChatTemplates,
    progress: BuildProgress,
) -> EngineManifest | None:
    """The manifest of a valid engine of the same model. Raises EngineRefusedError if the model is another one."""
    try:
        manifest = EngineManifest.load(engine_dir)
    except ManifestError:
        return None
    if manifest.source.sha256 != describe_source(plan.spec, hashes).sha256:
        raise EngineRefusedError(
            f"{engine_dir} was built from other files than {files.directory} has now. "
            "Choose another --name for this model, or replace the engine with --force."
        )
    reason = _reason_to_rebuild(plan, engine_dir, manifest, files, options) or chat.difference(manifest, files.others)
    if reason is None:
        known = hashes if manifest.pytorch and manifest.pytorch.is_linked else {}  # its links lead to the same files
        with progress.step(
            "check the files", size_of(manifest) - sum(file.size_bytes for file in known.values())
        ) as advance:
            reason = next(iter(file_problems(engine_dir, manifest, advance, known)), None)
    if reason:
        progress.note(f"Rebuilding: {reason}.")
    return None if reason else manifest


def _reason_to_rebuild(
    plan: PyTorchPlan, engine_dir: Path, manifest: EngineManifest, files: SourceFiles, options: BuildOptions
) -> str | None:
    """None if the directory has what was asked for, as far as this shows without reading it. Copies replace links."""
    model = manifest.pytorch
    if model is None:
        return "its manifest does not describe a model directory"
    planned = describe_model(plan.spec, model.is_linked).model_copy(update={"load_tested": model.load_tested})
    if model != planned:
        return "its limits differ from the plan"
    if options.has_copies:
        return "it has links and --copy was given" if model.is_linked else None
    sources = link_sources(read_links(engine_dir, manifest))
    if model.is_linked and sources != [files.directory]:
        return f"its links do not point to {files.directory}"
    return None


def _test_first(manifest: EngineManifest, building: Path, nvml: Nvml, progress: BuildProgress) -> EngineManifest:
    """The manifest of a new directory, with the result. A note has the reason if the test is not possible here."""
    if reason := _reason_against_test(manifest, nvml):
        progress.note(f"Load test skipped. {reason}")
        return manifest
    return _load_test(manifest, building, progress)


def _test_later(
    manifest: EngineManifest, engine_dir: Path, nvml: Nvml, options: BuildOptions, progress: BuildProgress
) -> EngineManifest:
    """Tests a valid directory that another machine has built without a test, and records it."""
    if not options.with_load_test or _model_of(manifest).load_tested or _reason_against_test(manifest, nvml):
        return manifest
    progress.note("It was built without a load test, which this machine can run.")
    tested = _load_test(manifest, engine_dir, progress)
    replace_manifest(engine_dir, tested)
    return tested


def _reason_against_test(manifest: EngineManifest, nvml: Nvml) -> str | None:
    """None if this machine has the GPUs and the planned version of TensorRT-LLM."""
    model = _model_of(manifest)
    if reason := reason_not_loadable(model, nvml):
        return reason
    installed = installed_version()
    if installed != model.tensorrt_llm:
        return f"The plan is for TensorRT-LLM {model.tensorrt_llm}; this machine has {installed}."
    return None


def _load_test(manifest: EngineManifest, directory: Path, progress: BuildProgress) -> EngineManifest:
    """Raises BuildEngineError if the model does not load or generate."""
    with progress.step("load the model and generate"):
        check = load_test(directory, manifest)
    if check.failed:
        raise BuildEngineError(f"The model loads, but its output is invalid: {check.detail}. Do not serve it.")
    return manifest.model_copy(update={"pytorch": _model_of(manifest).model_copy(update={"load_tested": True})})


def _model_of(manifest: EngineManifest) -> PyTorchModel:
    assert manifest.pytorch is not None
    return manifest.pytorch
