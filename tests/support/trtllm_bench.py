"""A TensorRT-LLM executor on the stand-in, for tests: its script, its engine directory, a look into the stand-in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.executors.port import Executor, OutputSink, create_executor
from llm_pipeline.executors.tensorrt_llm import executor as executor_module
from llm_pipeline.protocol.messages import GenerationRequest, StepOutput
from llm_pipeline.runtime.settings import PipelineSettings
from tests.fakes.gpu_engine import make_gpu_engine
from tests.fakes.installed import fake_tensorrt_llm, write_script
from tests.support.executor_rules import RuleBench, StepRecorder

LONG = 10**6


class TrtllmBench:
    """One executor. `fake` is the stand-in's engine: what was enqueued, what was cancelled, how it ends."""

    def __init__(self, folder: Path, script: dict[str, Any], engine: dict[str, Any], settings: dict[str, Any]) -> None:
        self.exits: list[int] = []
        self.exited = threading.Event()
        self.recorder = StepRecorder()
        with ExitStack() as opening:
            script = {"steps_per_s": 2000, **script}
            self.trtllm = opening.enter_context(fake_tensorrt_llm(write_script(folder / "script.json", **script)))
            patch = opening.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(executor_module, "_EXIT_AFTER_S", 0.1)
            patch.setattr(executor_module, "_end_process", self._exit)
            make_gpu_engine(folder / "engine", **{"max_seq_len": 10**7, "max_batch_size": 3, **engine})
            self.settings = PipelineSettings(engine_dir=folder / "engine", executor="tensorrt_llm", **settings)
            self.manifest = EngineManifest.load(self.settings.engine_dir)
            self.executor = self.create(self.recorder)
            self._open = opening.pop_all()

    def create(self, sink: OutputSink) -> Executor:
        return create_executor(self.settings, self.manifest, sink)

    @property
    def fake(self) -> Any:
        from tensorrt_llm.engine import LIVE

        return LIVE[-1]

    def submit(self, request: GenerationRequest) -> str:
        with self.recorder.submitting():
            self.executor.submit(request)
        return request.key

    def end_of(self, request: GenerationRequest) -> StepOutput:
        """Submit and wait for the end."""
        return self.recorder.wait_for_end(self.submit(request))

    def sent(self, request: GenerationRequest) -> Any:
        """What upstream was given for this request."""
        self.end_of(request)
        return self.fake.requests[-1]

    def close(self) -> None:
        self.executor.close()
        self._open.close()

    def _exit(self, status: int) -> None:
        self.exits.append(status)
        self.exited.set()


@contextmanager
def trtllm_bench(folder: Path) -> Iterator[Callable[..., TrtllmBench]]:
    """Makes one bench; `engine` are arguments of make_gpu_engine, `script` fields of the script, the rest settings."""
    made: list[TrtllmBench] = []

    def create(
        *, script: dict[str, Any] | None = None, engine: dict[str, Any] | None = None, **settings: Any
    ) -> TrtllmBench:
        made.append(TrtllmBench(folder, script or {}, engine or {}, settings))
        return made[-1]

    yield create
    for bench in made:
        bench.close()


def rule_bench(bench: TrtllmBench) -> RuleBench:
    """The executor's rules on this bench's executor."""

    def create(sink: OutputSink) -> Executor:
        bench.executor.close()
        bench.executor = bench.create(sink)
        return bench.executor

    return RuleBench(create, long=LONG, max_active=3)
