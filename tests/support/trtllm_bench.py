"""A TensorRT-LLM executor on the fake engine, for tests."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.executors.port import Executor, OutputSink
from llm_pipeline.executors.tensorrt_llm.load import default_timeouts, load_executor
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import GenerationRequest
from llm_pipeline.runtime.settings import PipelineSettings
from tests.fakes.gpu_engine import make_gpu_engine
from tests.fakes.installed import fake_tensorrt_llm, write_script
from tests.support.executor_rules import Output, RuleBench, StepRecorder
from tests.support.sample_requests import make_request

LONG = 10**6


class TrtllmBench:
    """One executor. `fake` is the fake engine: its requests, its cancellations, its end.

    `timeouts` are fields of `Timeouts` that replace those of the settings.
    """

    name = "tensorrt_llm"
    load = staticmethod(load_executor)

    def __init__(
        self,
        folder: Path,
        script: dict[str, Any],
        engine: dict[str, Any],
        timeouts: dict[str, float],
        settings: dict[str, Any],
    ) -> None:
        self.exits: list[int] = []
        self.exited = threading.Event()
        self.recorder = StepRecorder()
        self._numbers = itertools.count(1)
        self._number_of: dict[str, int] = {}  # the newest request with this key
        with ExitStack() as opening:
            script = {"steps_per_s": 2000, **script}
            self.trtllm = opening.enter_context(fake_tensorrt_llm(write_script(folder / "script.json", **script)))
            self._make_directory(folder / "engine", **{"max_seq_len": 10**7, "max_batch_size": 3, **engine})
            self.settings = PipelineSettings(engine_dir=folder / "engine", executor=self.name, **settings)
            self.manifest = EngineManifest.load(self.settings.engine_dir)
            self._timeouts = replace(default_timeouts(self.settings), **{"exit_s": 0.1, **timeouts})
            self.executor = self.create(self.recorder)
            self._open = opening.pop_all()

    def create(self, sink: OutputSink) -> Executor:
        return self.load(self.settings, self.manifest, sink, timeouts=self._timeouts, exit_process=self._record_exit)

    @property
    def fake(self) -> Any:
        from tensorrt_llm.engine import LIVE  # type: ignore[import-not-found, unused-ignore]

        return LIVE[-1]

    def submit(self, request: GenerationRequest) -> int:
        """Submits a request under a new number, which is returned."""
        number = self._number_of[request.key] = next(self._numbers)
        with self.recorder.submitting():
            self.executor.submit(number, request)
        return number

    def end_of(self, request: GenerationRequest) -> Output:
        """Submits a request, waits until it has ended, and returns its last output."""
        return self.recorder.wait_for_end(self.submit(request))

    def outputs(self, key: str) -> list[Output]:
        """Returns the outputs of the newest request with this key."""
        return self.recorder.outputs(self._number_of[key])

    def token_ids(self, key: str) -> list[int]:
        """Returns the tokens of the newest request with this key."""
        return self.recorder.token_ids(self._number_of[key])

    def sent(self, request: GenerationRequest) -> Any:
        """Runs a request and returns it as upstream received it."""
        self.end_of(request)
        return self.fake.requests[-1]

    def close(self) -> None:
        self.executor.close()
        self._open.close()

    def _make_directory(self, folder: Path, **engine: Any) -> None:
        make_gpu_engine(folder, **engine)

    def _record_exit(self, status: int) -> None:
        self.exits.append(status)
        self.exited.set()


CreateBench: TypeAlias = Callable[..., TrtllmBench]


@contextmanager
def trtllm_bench(folder: Path, kind: type[TrtllmBench] = TrtllmBench) -> Iterator[CreateBench]:
    """Yields a function that creates a bench, closed afterwards.

    `engine` are arguments of make_gpu_engine (or of make_model_directory), `script` fields of the fake's script,
    `timeouts` fields of Timeouts, and all others are settings.
    """
    benches: list[TrtllmBench] = []

    def create(
        *,
        script: dict[str, Any] | None = None,
        engine: dict[str, Any] | None = None,
        timeouts: dict[str, float] | None = None,
        **settings: Any,
    ) -> TrtllmBench:
        benches.append(kind(folder, script or {}, engine or {}, timeouts or {}, settings))
        return benches[-1]

    yield create
    for bench in benches:
        bench.close()


def rule_bench(bench: TrtllmBench) -> RuleBench:
    """Returns a RuleBench over this bench's executor."""

    def create(sink: OutputSink) -> Executor:
        bench.executor.close()
        bench.executor = bench.create(sink)
        return bench.executor

    return RuleBench(create, long=LONG, max_active=3)


def script(**rule: Any) -> dict[str, Any]:
    """Returns a script with one rule, for make_request's prompt."""
    return {"rules": [{"prompt_ids": [5, 6, 7], **rule}]}


def error_of(bench: TrtllmBench, request: GenerationRequest) -> PipelineError:
    """Runs a request that must fail and returns its error."""
    error = bench.end_of(request).error
    assert error is not None
    return error


def request_with(**fields: Any) -> GenerationRequest:
    """Returns a short request with these fields replaced."""
    return replace(make_request(max_tokens=4), **fields)
