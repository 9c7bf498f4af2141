"""CPU executors on the real engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from build_engine.cpu.reference import ReferenceCase, reference_cases
from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.executors.cpu.executor import CpuExecutor
from llm_pipeline.executors.port import OutputSink
from llm_pipeline.runtime.settings import PipelineSettings
from tests.support.cpu_executors import CONTEXT, KV_CACHE_GIB, MAX_ACTIVE, RestartableEngine
from tests.support.executor_rules import RuleBench


@pytest.fixture(scope="session")
def manifest(engine_dir: Path) -> EngineManifest:
    """The real engine's manifest, with a context that fits into the small KV cache."""
    manifest = EngineManifest.load(engine_dir)
    limits = manifest.limits.model_copy(update={"context_length": CONTEXT})
    return manifest.model_copy(update={"limits": limits})


@pytest.fixture(scope="session")
def settings(engine_dir: Path) -> PipelineSettings:
    return PipelineSettings(engine_dir=engine_dir, cpu_kv_cache_gib=KV_CACHE_GIB, cpu_max_active=MAX_ACTIVE)


@pytest.fixture(scope="session")
def create_executor(settings: PipelineSettings, manifest: EngineManifest) -> Callable[[OutputSink], CpuExecutor]:
    return lambda sink: CpuExecutor(settings, manifest, sink)


@pytest.fixture(scope="module")
def bench(create_executor: Callable[[OutputSink], CpuExecutor]) -> Iterator[RuleBench]:
    """An engine for all tests of a module that leave it idle, because a load takes seconds."""
    bench = RuleBench(create_executor, long=CONTEXT - 20, max_active=MAX_ACTIVE)
    yield bench
    bench.executor.close()


@pytest.fixture
def restartable(settings: PipelineSettings, manifest: EngineManifest) -> Iterator[RestartableEngine]:
    """An engine of its own for a test that kills it or closes it."""
    engine = RestartableEngine(settings, manifest)
    yield engine
    engine.bench.executor.close()


@pytest.fixture(scope="session")
def cases(manifest: EngineManifest) -> list[ReferenceCase]:
    """Prompts of the default model with their greedy completions."""
    cases = reference_cases(manifest.source.sha256)
    assert cases
    return cases
