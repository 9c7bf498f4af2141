"""Runs a plan's steps where TensorRT-LLM is, and publishes the engine whole or not at all. Not run on TensorRT-LLM.

    <engine>.checkpoint  of the first step; kept until the engine is there, so that a build goes on after a failure
    <engine>.log         everything that the steps print, as they print it; kept

Both are siblings of the engine's directory, which appears under `engine_dir`'s rules.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from build_engine.artifact.engine_dir import build_lock, new_engine
from build_engine.artifact.file_checks import file_problems
from build_engine.artifact.result import BuildResult
from build_engine.errors import BuildEngineError, EngineRefusedError
from build_engine.gpu.building.manifest import BuildMachine, make_manifest
from build_engine.gpu.building.timing_cache import private_timings
from build_engine.gpu.installation import installed_versions
from build_engine.gpu.model_files import hash_model
from build_engine.gpu.planning.calibration import describe_calibration, require_calibration
from build_engine.gpu.planning.commands import PYTHON, Step, checkpoint_dir
from build_engine.gpu.planning.planner import Plan
from build_engine.gpu.verification.config_checks import check_config
from build_engine.gpu.verification.smoke_test import load_and_generate
from build_engine.progress import BuildProgress
from build_engine.targets.nvml import Nvml
from llm_pipeline.engine_files.manifest import Calibration, EngineManifest, ManifestError, SourceModel

_DONE_NAME = "done.json"  # in a checkpoint that is complete: the model and the command that made it
_TAIL_LINES = 8


def inspect_machine(plan: Plan, nvml: Nvml) -> BuildMachine:
    """What an engine built here is bound to. EngineRefusedError when that is not what was planned for."""
    gpus, wanted = nvml.gpus(), plan.combination
    fitting = [gpu for gpu in gpus if gpu.sm == wanted.gpu.sm]
    if not fitting:
        found = ", ".join(f"{gpu.name} (SM {gpu.sm})" for gpu in gpus) or "none"
        raise EngineRefusedError(
            f"An engine for {wanted.gpu.name} is built on an SM {wanted.gpu.sm} GPU, this machine has {found}."
        )
    versions = installed_versions()
    if versions["tensorrt_llm"] != wanted.trtllm_version:
        raise EngineRefusedError(
            f"The plan is for TensorRT-LLM {wanted.trtllm_version}, this machine has {versions['tensorrt_llm']}. "
            f"Choose --tensorrt-llm {versions['tensorrt_llm']}."
        )
    driver, cuda = nvml.driver_version(), nvml.cuda_version()
    return BuildMachine(fitting[0].name, fitting[0].sm, len(fitting), driver, cuda, **versions)


def run_plan(
    plan: Plan,
    model_dir: Path,
    machine: BuildMachine,
    progress: BuildProgress,
    force: bool = False,
    source: SourceModel | None = None,
    is_load_tested: bool = True,
) -> BuildResult:
    """Build an accepted plan's engine, or find that a good one is there. BuildEngineError has a step's last words.

    `source` saves hashing the model again where that has been done. Before it is published, the engine is loaded and
    generates where this machine has GPUs enough; `is_load_tested` False leaves that out.
    """
    planned = _place(plan)
    engine_dir = planned.absolute()
    source = source or hash_model(model_dir, plan.combination.model, progress)

    def tell_waiting() -> None:
        progress.note(f"Another build of {engine_dir.name} is running; waiting for it.")

    with build_lock(engine_dir, tell_waiting) as lock:
        existing = None if force else find_existing(plan, source, progress)
        if existing:
            return existing
        if plan.combination.is_calibrated:
            require_calibration(plan.calibration)
        calibration = describe_calibration(plan.combination, plan.calibration)
        steps = _Steps(engine_dir.with_name(f"{engine_dir.name}.log"), lock, progress)
        checkpoint, *others = plan.steps
        _make_checkpoint(checkpoint, checkpoint_dir(engine_dir), source, calibration, steps)
        with new_engine(engine_dir) as building:
            for step in others:
                _run_step(step, plan, planned, building, steps)
            manifest = make_manifest(plan, model_dir, building, source, machine, calibration)
            _require_as_planned(building, manifest)
            if is_load_tested:
                manifest = _load_test(manifest, building, machine, progress)
            manifest.save(building)
        shutil.rmtree(checkpoint_dir(engine_dir))
    return BuildResult(engine_dir, manifest, reused=False)


def find_existing(plan: Plan, source: SourceModel, progress: BuildProgress) -> BuildResult | None:
    """A good engine of the same weights and calibration data. Needs neither a GPU nor TensorRT-LLM.

    The directory's name stands for the rest of what decides an engine. EngineRefusedError when it holds an engine of
    other weights.
    """
    engine_dir = _place(plan).absolute()
    try:
        manifest = EngineManifest.load(engine_dir)
    except ManifestError:
        return None
    if manifest.source.sha256 != source.sha256:
        raise EngineRefusedError(
            f"{engine_dir} holds an engine of other weights with the same name and configuration. "
            "Give this model a --name of its own, or replace the engine with --force."
        )
    if reason := _reason_to_rebuild(plan, engine_dir, manifest):
        progress.note(f"Building again: {reason}.")
        return None
    return BuildResult(engine_dir, manifest, reused=True)


def _place(plan: Plan) -> Path:
    if plan.engine_dir is None:
        raise EngineRefusedError(" ".join(plan.refusals))
    return plan.engine_dir


def _reason_to_rebuild(plan: Plan, engine_dir: Path, manifest: EngineManifest) -> str | None:
    if manifest.gpu is None:
        return "its manifest says nothing of the GPU"
    before = manifest.gpu.calibration
    now = describe_calibration(plan.combination, plan.calibration)
    if before and now and now.sha256 and before.sha256 != now.sha256:  # data that is not on this machine can't differ
        return "its calibration data differs"
    return next(iter(file_problems(engine_dir, manifest)), None)


def _require_as_planned(building: Path, manifest: EngineManifest) -> None:
    """BuildEngineError when trtllm-build has made another engine than it was asked for."""
    for check in check_config(building, manifest):
        if check.failed:
            raise BuildEngineError(
                f"The engine that was built is not the planned one: {check.name} {check.detail}. It is not kept. "
                "The log has the command; please report this with it."
            )


def _run_step(step: Step, plan: Plan, planned: Path, building: Path, steps: _Steps) -> None:
    argv = _into(step.argv, planned, building)
    shared = plan.timing_cache
    if shared is None or str(shared) not in argv:
        return steps.run(step.name, argv)
    private = planned.absolute().with_name(f".{planned.name}.timing.cache")
    with private_timings(shared, private):
        steps.run(step.name, [str(private) if part == str(shared) else part for part in argv])
    return None


def _load_test(
    manifest: EngineManifest, building: Path, machine: BuildMachine, progress: BuildProgress
) -> EngineManifest:
    """The manifest that says what came of it. BuildEngineError when the engine does not load or generate."""
    gpu = manifest.gpu
    assert gpu is not None
    if machine.gpu_count < gpu.tp * gpu.pp:
        progress.note(f"Not loaded: it takes {gpu.tp * gpu.pp} x SM {gpu.sm}, this machine has {machine.gpu_count}.")
        return manifest
    with progress.step("load the engine and generate"):
        check = load_and_generate(building, manifest.limits, gpu.tp, gpu.pp)
    if check.failed:
        raise BuildEngineError(
            f"The engine was built and loads, but does not generate as it should: {check.detail}. It is not kept."
        )
    return manifest.model_copy(update={"gpu": gpu.model_copy(update={"load_tested": True})})


def _make_checkpoint(
    step: Step, checkpoint: Path, source: SourceModel, calibration: Calibration | None, steps: _Steps
) -> None:
    """Skipped when an earlier build has finished it with the same command for the same weights and calibration data."""
    done = checkpoint / _DONE_NAME
    recipe = json.dumps([source.sha256, calibration.sha256 if calibration else None, step.argv])
    with suppress(FileNotFoundError):
        if done.read_text(encoding="utf-8") == recipe:
            return steps.skip(step.name)
        shutil.rmtree(checkpoint)
    shutil.rmtree(checkpoint, ignore_errors=True)  # half written: there is no done.json
    steps.run(step.name, step.argv)
    done.write_text(recipe, encoding="utf-8")
    return None


class _Steps:
    """Runs commands, one after the other, into one log."""

    def __init__(self, log: Path, lock: int, progress: BuildProgress) -> None:
        self._log = log
        self._lock = lock  # stays open in the commands, so that it is held as long as they run
        self._progress = progress

    def skip(self, name: str) -> None:
        self._progress.note(f"{name}: done by an earlier build.")

    def run(self, name: str, argv: Sequence[str]) -> None:
        command = [sys.executable if argv[0] == PYTHON else argv[0], *argv[1:]]
        with self._progress.step(f"{name} (log: {self._log.name})"):
            status, tail = self._run_logged(command)
        if status != 0:
            ending = f"was ended by signal {-status}" if status < 0 else f"failed (status {status})"
            raise BuildEngineError(f"Step {name} {ending}. The whole log: {self._log}\n" + "".join(tail).rstrip())

    def _run_logged(self, command: Sequence[str]) -> tuple[int, deque[str]]:
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        with (
            self._log.open("a", encoding="utf-8") as log,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                pass_fds=[self._lock],
            ) as process,
        ):
            assert process.stdout
            try:
                for line in process.stdout:
                    tail.append(line)
                    log.write(line)
                    log.flush()
            except BaseException:
                process.kill()
                raise
        return process.returncode, tail


def _into(argv: Sequence[str], planned: Path, building: Path) -> list[str]:
    """The command with the engine's directory, and files in it, in the directory that is being built."""
    inside = f"{planned}/"
    return [
        str(building)
        if part == str(planned)
        else part.replace(inside, f"{building}/", 1)
        if part.startswith(inside)
        else part
        for part in argv
    ]
