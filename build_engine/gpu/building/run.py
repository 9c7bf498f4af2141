"""Runs the steps of a plan on a machine with TensorRT-LLM and publishes the finished engine.

Tested with a stand-in for TensorRT-LLM only.

    <engine>.checkpoint  output of the first step; kept until the engine is published, so that a failed build can resume
    <engine>.log         output of all steps; kept

Both are siblings of the engine directory, which is published atomically (artifact/engine_dir.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from build_engine.artifact.chat_templates import ChatTemplates, read_chat_templates, tried
from build_engine.artifact.engine_dir import build_lock, new_engine, replace_manifest
from build_engine.artifact.file_checks import file_problems
from build_engine.artifact.hashing import hash_files
from build_engine.artifact.result import BuildResult
from build_engine.errors import BuildEngineError, EngineRefusedError
from build_engine.gpu.building.manifest import BuildMachine, make_manifest
from build_engine.gpu.building.step_runner import StepRunner
from build_engine.gpu.building.timing_cache import private_timings
from build_engine.gpu.installation import installed_versions
from build_engine.gpu.model_files import hash_model
from build_engine.gpu.planning.calibration import describe_calibration, require_calibration
from build_engine.gpu.planning.commands import Step, checkpoint_dir
from build_engine.gpu.planning.planner import Plan
from build_engine.gpu.verification.config_checks import check_config
from build_engine.gpu.verification.smoke_test import smoke_test
from build_engine.progress import BuildProgress
from build_engine.targets.nvml import Nvml
from llm_pipeline.engine_files.chat_files import is_chat_file
from llm_pipeline.engine_files.manifest import Calibration, EngineManifest, ManifestError, SourceModel

_DONE_NAME = "done.json"  # in a complete checkpoint: its inputs and the command that produced it


def inspect_machine(plan: Plan, nvml: Nvml) -> BuildMachine:
    """The GPU and versions that an engine built here is bound to. Raises EngineRefusedError if the plan differs."""
    gpus, spec = nvml.gpus(), plan.spec
    matching = [gpu for gpu in gpus if gpu.sm == spec.gpu.sm]
    if not matching:
        present = ", ".join(f"{gpu.name} (SM {gpu.sm})" for gpu in gpus) or "none"
        raise EngineRefusedError(
            f"An engine for {spec.gpu.name} must be built on an SM {spec.gpu.sm} GPU; this machine has {present}."
        )
    versions = installed_versions()
    if versions["tensorrt_llm"] != spec.trtllm_version:
        raise EngineRefusedError(
            f"The plan is for TensorRT-LLM {spec.trtllm_version}; this machine has {versions['tensorrt_llm']}. "
            f"Choose --tensorrt-llm {versions['tensorrt_llm']}."
        )
    driver, cuda = nvml.driver_version(), nvml.cuda_version()
    return BuildMachine(matching[0].name, matching[0].sm, len(matching), driver, cuda, **versions)


def run_plan(
    plan: Plan,
    model_dir: Path,
    machine: BuildMachine,
    progress: BuildProgress,
    force: bool = False,
    source: SourceModel | None = None,
    with_smoke_test: bool = True,
) -> BuildResult:
    """Builds the engine of an accepted plan, or reuses a valid one.

    `source` is the hashed model, if the caller has it. The smoke test loads the engine and generates with it before it
    is published; it is skipped if this machine has too few GPUs.
    Raises BuildEngineError with the end of a step's output if the step fails.
    """
    planned = _directory_of(plan)
    engine_dir = planned.absolute()
    source = source or hash_model(model_dir, plan.spec.model, progress)

    def note_waiting() -> None:
        progress.note(f"Another build of {engine_dir.name} is running. Waiting for it.")

    with build_lock(engine_dir, note_waiting) as lock:
        chat = tried(read_chat_templates(model_dir), progress.note)
        existing = None if force else find_existing(plan, source, progress)
        if existing:
            return _with_chat(existing, chat, progress)
        if plan.spec.is_calibrated:
            require_calibration(plan.calibration)
        calibration = describe_calibration(plan.spec, plan.calibration)
        steps = StepRunner(engine_dir.with_name(f"{engine_dir.name}.log"), lock, progress)
        checkpoint, *others = plan.steps
        _make_checkpoint(checkpoint, checkpoint_dir(engine_dir), source, calibration, steps)
        with new_engine(engine_dir) as building:
            for step in others:
                _run_step(step, plan, planned, building, steps)
            chat.write(building)
            manifest = make_manifest(plan, model_dir, building, source, machine, calibration)
            _require_as_planned(building, manifest)
            if with_smoke_test:
                manifest = _smoke_test(manifest, building, machine, progress)
            manifest.save(building)
        shutil.rmtree(checkpoint_dir(engine_dir))
    return BuildResult(engine_dir, manifest, reused=False)


def find_existing(plan: Plan, source: SourceModel, progress: BuildProgress) -> BuildResult | None:
    """A valid engine of the same weights and calibration data. Needs neither a GPU nor TensorRT-LLM.

    All other inputs are part of the directory's name. Raises EngineRefusedError if the directory contains an engine of
    other weights.
    """
    engine_dir = _directory_of(plan).absolute()
    try:
        manifest = EngineManifest.load(engine_dir)
    except ManifestError:
        return None
    if manifest.source.sha256 != source.sha256:
        raise EngineRefusedError(
            f"{engine_dir} contains an engine of other weights with the same name and configuration. "
            "Choose another --name for this model, or replace the engine with --force."
        )
    if reason := _reason_to_rebuild(plan, engine_dir, manifest):
        progress.note(f"Rebuilding: {reason}.")
        return None
    return BuildResult(engine_dir, manifest, reused=True)


def _with_chat(existing: BuildResult, chat: ChatTemplates, progress: BuildProgress) -> BuildResult:
    """Adds the chat templates to an engine that was built without them, since compiling it again may take hours."""
    if chat.difference(existing.manifest) is None:
        return existing
    others = {name: file for name, file in existing.manifest.files.items() if not is_chat_file(name)}
    names = chat.replace(existing.engine_dir)
    written = hash_files({name: existing.engine_dir / name for name in names}, lambda amount: None)
    manifest = existing.manifest.model_copy(update={"files": dict(sorted((others | written).items()))})
    replace_manifest(existing.engine_dir, manifest)
    progress.note("Its chat templates were replaced by the model's; the engine itself is as before.")
    return replace(existing, manifest=manifest)


def _directory_of(plan: Plan) -> Path:
    if plan.engine_dir is None:
        raise EngineRefusedError(" ".join(plan.refusals))
    return plan.engine_dir


def _reason_to_rebuild(plan: Plan, engine_dir: Path, manifest: EngineManifest) -> str | None:
    if manifest.gpu is None:
        return "its manifest does not describe a GPU build"
    previous = manifest.gpu.calibration
    current = describe_calibration(plan.spec, plan.calibration)
    # The sha256 is unset for data that is not on this machine.
    if previous and current and current.sha256 and previous.sha256 != current.sha256:
        return "its calibration data differs"
    return next(iter(file_problems(engine_dir, manifest)), None)


def _require_as_planned(building: Path, manifest: EngineManifest) -> None:
    """Raises BuildEngineError if the engine's own config.json differs from the plan."""
    for check in check_config(building, manifest):
        if check.failed:
            raise BuildEngineError(
                f"The engine differs from its plan: {check.name} {check.detail}. It is not published. "
                "Please report this with the command in the log."
            )


def _run_step(step: Step, plan: Plan, planned: Path, building: Path, steps: StepRunner) -> None:
    argv = _redirect(step.argv, planned, building)
    shared = plan.timing_cache
    if shared is None or str(shared) not in argv:
        return steps.run(step.name, argv)
    private = planned.absolute().with_name(f".{planned.name}.timing.cache")
    with private_timings(shared, private):
        steps.run(step.name, [str(private) if part == str(shared) else part for part in argv])
    return None


def _smoke_test(
    manifest: EngineManifest, building: Path, machine: BuildMachine, progress: BuildProgress
) -> EngineManifest:
    """The manifest with the result. Raises BuildEngineError if the engine does not load or generate."""
    gpu = manifest.gpu
    assert gpu is not None
    if machine.gpu_count < gpu.tp * gpu.pp:
        progress.note(
            f"Smoke test skipped: it needs {gpu.tp * gpu.pp} x SM {gpu.sm}; this machine has {machine.gpu_count}."
        )
        return manifest
    with progress.step("load the engine and generate"):
        check = smoke_test(building, manifest.limits, gpu.tp, gpu.pp)
    if check.failed:
        raise BuildEngineError(f"The engine loads, but its output is invalid: {check.detail}. It is not published.")
    return manifest.model_copy(update={"gpu": gpu.model_copy(update={"load_tested": True})})


def _make_checkpoint(
    step: Step, checkpoint: Path, source: SourceModel, calibration: Calibration | None, steps: StepRunner
) -> None:
    """Reuses the checkpoint of an earlier build with the same command, weights and calibration data."""
    done = checkpoint / _DONE_NAME
    inputs = json.dumps([source.sha256, calibration.sha256 if calibration else None, step.argv])
    with suppress(FileNotFoundError):
        if done.read_text(encoding="utf-8") == inputs:
            return steps.skip(step.name)
        shutil.rmtree(checkpoint)
    shutil.rmtree(checkpoint, ignore_errors=True)  # incomplete: there is no done.json
    steps.run(step.name, step.argv)
    done.write_text(inputs, encoding="utf-8")
    return None


def _redirect(argv: Sequence[str], planned: Path, building: Path) -> list[str]:
    """`argv` with the planned engine directory replaced by the one that is being built."""
    prefix = f"{planned}/"
    return [
        str(building)
        if part == str(planned)
        else part.replace(prefix, f"{building}/", 1)
        if part.startswith(prefix)
        else part
        for part in argv
    ]
