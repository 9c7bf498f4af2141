"""What a fleet's entries ask for, worked out before anything is built: a job that can be run, or reasons why not."""

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
    """Nothing is wrong with the engine that is asked for; it can't be built on this machine."""


class Work(Protocol):
    """How an engine is made."""

    def run(self, progress: BuildProgress) -> BuildResult:
        """Build it, or find that it is there. Raises as build_engine does, and OtherMachineError."""
        ...


@dataclass(frozen=True)
class Job:
    """An entry that can be built, as far as can be told without doing it, or the reasons why not."""

    engine: FleetEngine
    refusals: tuple[str, ...] = ()
    engine_dir: Path | None = None  # None when refused
    work: Work | None = None

    @property
    def is_there(self) -> bool:
        """Whether something was built before. Whether it is good takes hashing it."""
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
    hashed: dict[Path, SourceModel]  # shared by a fleet: engines of one model hash it once
    is_load_tested: bool

    def run(self, progress: BuildProgress) -> BuildResult:
        combination = self.plan.combination
        is_there = self.plan.engine_dir is not None and (self.plan.engine_dir / MANIFEST_NAME).exists()
        if not is_there and not can_build():
            raise OtherMachineError(_needs(self.plan))
        source = self._source(progress)
        existing = find_existing(self.plan, source, progress)
        if existing:
            return existing
        if not can_build():
            raise OtherMachineError(_needs(self.plan))
        try:
            machine = inspect_machine(self.plan, self.nvml)
        except EngineRefusedError as error:
            raise OtherMachineError(f"{error} Run the same file on a machine with {combination.gpu.name}.") from error
        return run_plan(self.plan, self.model_dir, machine, progress, source=source, is_load_tested=self.is_load_tested)

    def _source(self, progress: BuildProgress) -> SourceModel:
        if self.model_dir not in self.hashed:
            self.hashed[self.model_dir] = hash_model(self.model_dir, self.plan.combination.model, progress)
        return self.hashed[self.model_dir].model_copy(update={"name": self.plan.combination.model.name})


def _needs(plan: Plan) -> str:
    wanted = plan.combination
    return (
        f"Building for {wanted.gpu.name} needs TensorRT-LLM {wanted.trtllm_version} and that GPU: "
        "run the same file on such a machine."
    )


def make_jobs(engines: Sequence[FleetEngine], nvml: Nvml, *, is_load_tested: bool = True) -> list[Job]:
    """One for each engine, in order. Two that would be built in one place: the second is refused."""
    hashed: dict[Path, SourceModel] = {}
    jobs: list[Job] = []
    for engine in engines:
        job = _make_job(engine, nvml, hashed, is_load_tested)
        twin = next((other for other in jobs if job.engine_dir and other.engine_dir == job.engine_dir), None)
        jobs.append(Job(engine, (_same_place(twin),)) if twin else job)
    return jobs


def _same_place(twin: Job) -> str:
    return (
        f"It would be built in the place of {twin.engine.label} (engines {twin.engine.entry}): "
        "leave it out, or give another model a name of its own."
    )


def _make_job(engine: FleetEngine, nvml: Nvml, hashed: dict[Path, SourceModel], is_load_tested: bool) -> Job:
    try:
        return _cpu_job(engine) if engine.target == CPU.name else _gpu_job(engine, nvml, hashed, is_load_tested)
    except EngineRefusedError as error:
        return Job(engine, (str(error),))


def _cpu_job(engine: FleetEngine) -> Job:
    precision = None if engine.precision is PrecisionName.AUTO else engine.precision.value
    request = BuildRequest(
        model=find_model(engine.model),
        target=CPU,
        precision=find_precision(CPU, precision),
        name=engine.name,
        context_length=engine.max_seq_len,
        root=engine.root,
    )
    return Job(engine, engine_dir=plan_engine(request), work=CpuWork(request))


def _gpu_job(engine: FleetEngine, nvml: Nvml, hashed: dict[Path, SourceModel], is_load_tested: bool) -> Job:
    plan = make_plan(
        plan_request(
            engine.target,
            engine.model,
            precision=engine.precision.value,
            kv=engine.kv_cache_precision,
            name=engine.name,
            tp=engine.tp,
            pp=engine.pp,
            max_batch_size=engine.max_batch_size,
            max_seq_len=engine.max_seq_len,
            max_num_tokens=engine.max_num_tokens,
            calibration=engine.calibration,
            trtllm_version=engine.tensorrt_llm,
            root=engine.root,
        )
    )
    work = GpuWork(plan, engine.model, nvml, hashed, is_load_tested) if plan.accepted else None
    return Job(engine, plan.refusals, plan.engine_dir, work)
