"""Plans a job for each engine of a fleet before anything is built: work that can run, or the reasons why it can't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import ClassVar, Protocol

from build_engine.artifact.result import BuildResult
from build_engine.cpu.build import BuildRequest, build_engine, plan_engine
from build_engine.cpu.default_model import find_model
from build_engine.errors import EngineRefusedError
from build_engine.fleet.file import FleetEngine
from build_engine.gpu.building.run import find_existing, inspect_machine, run_plan
from build_engine.gpu.installation import can_build, has_tensorrt_llm
from build_engine.gpu.model_files import hash_model
from build_engine.gpu.planning.plan_request import plan_request
from build_engine.gpu.planning.planner import Plan, make_plan
from build_engine.planning.runtimes import Runtime, choose_runtime
from build_engine.progress import BuildProgress
from build_engine.pytorch.building.publish import hash_source
from build_engine.pytorch.building.run import BuildOptions, build_model
from build_engine.pytorch.building.source_files import SourceFiles, find_source_files
from build_engine.pytorch.planning.plan import PyTorchPlan
from build_engine.pytorch.planning.plan_request import pytorch_plan_request
from build_engine.pytorch.planning.planner import plan_model
from build_engine.targets.nvml import Nvml
from build_engine.targets.precisions import PrecisionName
from build_engine.targets.registry import CPU, find_precision
from llm_pipeline.engine_files.manifest import MANIFEST_NAME, EngineFile, SourceModel


class OtherMachineError(EngineRefusedError):
    """The engine is valid, but needs another machine than this one."""


class Work(Protocol):
    """Builds one engine."""

    @property
    def needs_machine(self) -> bool:
        """Whether it compiles or loads a model, so that no other such work may run beside it."""
        ...

    def run(self, progress: BuildProgress) -> BuildResult:
        """Builds the engine or reuses a valid one. Raises BuildEngineError, or OtherMachineError before any work."""
        ...


@dataclass(frozen=True)
class Job:
    """`refusals` is empty if the engine can be built as far as its plan shows. `work` is unset otherwise."""

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
    needs_machine: ClassVar[bool] = True

    def run(self, progress: BuildProgress) -> BuildResult:
        return build_engine(self.request, progress)


@dataclass(frozen=True)
class GpuWork:
    plan: Plan
    model_dir: Path
    nvml: Nvml
    hashed_models: dict[Path, SourceModel]  # shared by a fleet, so that each model is hashed once
    with_smoke_test: bool
    needs_machine: ClassVar[bool] = True

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


@dataclass(frozen=True)
class PyTorchWork:
    plan: PyTorchPlan
    nvml: Nvml
    hashes: FileHashes
    options: BuildOptions

    @property
    def needs_machine(self) -> bool:
        return self.options.with_load_test and has_tensorrt_llm()

    def run(self, progress: BuildProgress) -> BuildResult:
        return build_model(self.plan, self.nvml, progress, self.options, self.hashes.hash_model)


class FileHashes:
    """Hashes each model directory once, for all engines of a fleet that are built over it. Safe for threads."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._locks: dict[Path, Lock] = {}
        self._found: dict[Path, dict[str, EngineFile]] = {}

    def hash_model(self, files: SourceFiles, progress: BuildProgress) -> dict[str, EngineFile]:
        with self._guard:
            lock = self._locks.setdefault(files.directory, Lock())
        with lock:  # a second engine of the same model waits for the digests
            if files.directory not in self._found:
                self._found[files.directory] = hash_source(files, progress)
            return self._found[files.directory]


def _needed_machine(plan: Plan) -> str:
    return (
        f"Building for {plan.spec.gpu.name} needs TensorRT-LLM {plan.spec.trtllm_version} and that GPU. "
        "Run the same file on such a machine."
    )


@dataclass(frozen=True)
class _Shared:
    """What all jobs of a fleet use."""

    nvml: Nvml
    with_smoke_test: bool
    hashed_models: dict[Path, SourceModel] = field(default_factory=dict)
    hashes: FileHashes = field(default_factory=FileHashes)


def make_jobs(engines: Sequence[FleetEngine], nvml: Nvml, *, with_smoke_test: bool = True) -> list[Job]:
    """One job per engine, in order. Of two engines with the same directory the second is refused."""
    shared = _Shared(nvml, with_smoke_test)
    jobs: list[Job] = []
    for engine in engines:
        job = _make_job(engine, shared)
        duplicate = next((other for other in jobs if job.engine_dir and other.engine_dir == job.engine_dir), None)
        jobs.append(Job(engine, (_same_directory(duplicate),)) if duplicate else job)
    return jobs


def _same_directory(other: Job) -> str:
    return (
        f"Its directory is that of {other.engine.label} (engines {other.engine.entry}). "
        "Omit it, or give a different model its own name."
    )


def _make_job(engine: FleetEngine, shared: _Shared) -> Job:
    try:
        if engine.target == CPU.name:
            return _cpu_job(engine)
        engine = replace(engine, runtime=choose_runtime(engine.runtime, engine.model, engine.options).runtime)
        return _pytorch_job(engine, shared) if engine.runtime is Runtime.PYTORCH else _gpu_job(engine, shared)
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


def _gpu_job(engine: FleetEngine, shared: _Shared) -> Job:
    if engine.has_copies:
        raise EngineRefusedError('copy applies to the PyTorch runtime. Omit it, or add runtime = "pytorch".')
    precision, options = engine.precision.value, engine.options
    plan = make_plan(plan_request(engine.target, engine.model, precision, engine.name, options, shared.nvml))
    work = GpuWork(plan, engine.model, shared.nvml, shared.hashed_models, shared.with_smoke_test)
    return Job(engine, plan.refusals, plan.engine_dir, work if plan.accepted else None)


def _pytorch_job(engine: FleetEngine, shared: _Shared) -> Job:
    find_source_files(engine.model)  # says more about an incomplete directory than a plan, which needs less of it
    precision, options = engine.precision.value, engine.options
    plan = plan_model(pytorch_plan_request(engine.target, engine.model, precision, engine.name, options, shared.nvml))
    build_options = BuildOptions(has_copies=engine.has_copies, with_load_test=shared.with_smoke_test)
    work = PyTorchWork(plan, shared.nvml, shared.hashes, build_options)
    return Job(engine, plan.refusals, plan.engine_dir, work if plan.accepted else None)
