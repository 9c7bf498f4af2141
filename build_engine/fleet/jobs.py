"""Plans a job for each engine of a fleet before anything is built: work that can run, or the reasons why it can't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from build_engine.artifact.result import BuildResult
from build_engine.cpu.build import BuildRequest, build_engine, plan_engine
from build_engine.cpu.default_model import find_model
from build_engine.errors import EngineRefusedError
from build_engine.fleet.file import FleetEngine
from build_engine.gpu.building.run import find_existing, inspect_machine, run_plan
from build_engine.gpu.installation import can_build
from build_engine.gpu.model_files import hash_model
from build_engine.gpu.planning.plan_request import plan_request
from build_engine.gpu.planning.planner import Plan, make_plan
from build_engine.progress import BuildProgress
from build_engine.targets.nvml import Nvml
from build_engine.targets.precisions import PrecisionName
from build_engine.targets.registry import CPU, find_precision
from llm_pipeline.engine_files.manifest import MANIFEST_NAME, SourceModel


class OtherMachineError(EngineRefusedError):
    """The engine is valid, but needs another machine than this one."""


class Work(Protocol):
    """Builds one engine."""

    def run(self, progress: BuildProgress) -> BuildResult:
        """Builds the engine or reuses a valid one. Raises BuildEngineError, or OtherMachineError before any work."""
        ...


@dataclass(frozen=True)
class Job:
    """`refusals` is empty if the engine can be built as far as its plan shows; `work` is None if it can't."""

    engine: FleetEngine
    refusals: tuple[str, ...] = ()
    engine_dir: Path | None = None  # None when refused
    work: Work | None = None

    @property
    def exists(self) -> bool:
        """Whether an engine was built before. Its files are not hashed here, so it may be damaged."""
        return self.engine_dir is not None and (self.engine_dir / MANIFEST_NAME).exists()


@dataclass(frozen=True)
class CpuWork:
    request: BuildRequest

    def run(self, progress: BuildProgress) -> BuildResult:
        return build_engine(self.request, progress)


@dataclass(frozen=True)
class GpuWork:
    plan: Plan
    model_dir: Path
    nvml: Nvml
    hashed_models: dict[Path, SourceModel]  # shared by a fleet, so that each model is hashed once
    with_smoke_test: bool

    def run(self, progress: BuildProgress) -> BuildResult:
        exists = self.plan.engine_dir is not None and (self.plan.engine_dir / MANIFEST_NAME).exists()
        if not exists and not can_build():
            raise OtherMachineError(_needed_machine(self.plan))
        source = self._source(progress)
        existing = find_existing(self.plan, source, progress)
        if existing:
            return existing
        if not can_build():
            raise OtherMachineError(_needed_machine(self.plan))
        try:
            machine = inspect_machine(self.plan, self.nvml)
        except EngineRefusedError as error:
            raise OtherMachineError(
                f"{error} Run the same file on a machine with {self.plan.spec.gpu.name}."
            ) from error
        return run_plan(
            self.plan, self.model_dir, machine, progress, source=source, with_smoke_test=self.with_smoke_test
        )

    def _source(self, progress: BuildProgress) -> SourceModel:
        if self.model_dir not in self.hashed_models:
            self.hashed_models[self.model_dir] = hash_model(self.model_dir, self.plan.spec.model, progress)
        return self.hashed_models[self.model_dir].model_copy(update={"name": self.plan.spec.model.name})


def _needed_machine(plan: Plan) -> str:
    return (
        f"Building for {plan.spec.gpu.name} needs TensorRT-LLM {plan.spec.trtllm_version} and that GPU. "
        "Run the same file on such a machine."
    )


def make_jobs(engines: Sequence[FleetEngine], nvml: Nvml, *, with_smoke_test: bool = True) -> list[Job]:
    """One job per engine, in order. Of two engines with the same directory the second is refused."""
    hashed_models: dict[Path, SourceModel] = {}
    jobs: list[Job] = []
    for engine in engines:
        job = _make_job(engine, nvml, hashed_models, with_smoke_test)
        duplicate = next((other for other in jobs if job.engine_dir and other.engine_dir == job.engine_dir), None)
        jobs.append(Job(engine, (_same_directory(duplicate),)) if duplicate else job)
    return jobs


def _same_directory(other: Job) -> str:
    return (
        f"Its directory is that of {other.engine.label} (engines {other.engine.entry}). "
        "Omit it, or give a different model its own name."
    )


def _make_job(engine: FleetEngine, nvml: Nvml, hashed_models: dict[Path, SourceModel], with_smoke_test: bool) -> Job:
    try:
        return _cpu_job(engine) if engine.target == CPU.name else _gpu_job(engine, nvml, hashed_models, with_smoke_test)
    except EngineRefusedError as error:
        return Job(engine, (str(error),))


def _cpu_job(engine: FleetEngine) -> Job:
    precision = None if engine.precision is PrecisionName.AUTO else engine.precision.value
    request = BuildRequest(
        model=find_model(engine.model),
        target=CPU,
        precision=find_precision(CPU, precision),
        name=engine.name,
        context_length=engine.options.max_seq_len,
        root=engine.options.root,
    )
    return Job(engine, engine_dir=plan_engine(request), work=CpuWork(request))


def _gpu_job(engine: FleetEngine, nvml: Nvml, hashed_models: dict[Path, SourceModel], with_smoke_test: bool) -> Job:
    request = plan_request(engine.target, engine.model, engine.precision.value, engine.name, engine.options, nvml)
    plan = make_plan(request)
    work = GpuWork(plan, engine.model, nvml, hashed_models, with_smoke_test) if plan.accepted else None
    return Job(engine, plan.refusals, plan.engine_dir, work)
