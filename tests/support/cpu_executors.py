"""CPU executors on the real engine whose engine processes a test can kill."""

from __future__ import annotations

from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.executors.cpu.engine.ipc import EngineSettings
from llm_pipeline.executors.cpu.engine_process import EngineProcess
from llm_pipeline.executors.cpu.executor import CpuExecutor
from llm_pipeline.executors.port import OutputSink
from llm_pipeline.runtime.settings import PipelineSettings
from tests.support.executor_rules import RuleBench

CONTEXT = 256
KV_CACHE_GIB = 0.02  # about 450 tokens
MAX_ACTIVE = 4


class RestartableEngine:
    """A CPU executor whose engine processes the test can kill, and whose restarts it can make fail.

    `processes` are all that were started, newest last. Each start takes an exception from `failures` first.
    """

    def __init__(self, settings: PipelineSettings, manifest: EngineManifest) -> None:
        self.processes: list[EngineProcess] = []
        self.failures: list[Exception] = []

        def create(sink: OutputSink) -> CpuExecutor:
            return CpuExecutor(settings, manifest, sink, start_process=self._start, restart_delays_s=(0.05,))

        self.bench = RuleBench(create, long=CONTEXT - 20, max_active=MAX_ACTIVE)

    def kill(self) -> None:
        """Kills the newest engine process."""
        self.processes[-1].kill()

    def _start(self, settings: EngineSettings) -> EngineProcess:
        if self.failures:
            raise self.failures.pop(0)
        self.processes.append(EngineProcess(settings))
        return self.processes[-1]
