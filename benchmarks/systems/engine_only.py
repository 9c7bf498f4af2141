"""Runs the CPU engine in one process: `python -m benchmarks.systems.engine_only ENGINE_DIR`.

No Triton, no sockets, no further threads: the upper limit of any server around this engine. A token arrives when the
step that generated it has returned.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.load.job import LoadJob, Timeline, serve_jobs
from llm_pipeline.engine_files.manifest import TOKENIZER_NAME, EngineManifest
from llm_pipeline.executors.cpu.engine.core import EngineCore
from llm_pipeline.executors.cpu.engine.ipc import EngineSettings
from llm_pipeline.executors.cpu.engine.process import load_engine
from llm_pipeline.protocol.messages import GenerationRequest, SamplingParams
from llm_pipeline.runtime.settings import PipelineSettings
from llm_pipeline.text.tokenizer import Tokenizer


class EngineOnly:
    """An engine with decode's settings, except that the prefix cache is off, as in the stacks of the same scenario."""

    def __init__(self, engine_dir: Path) -> None:
        manifest = EngineManifest.load(engine_dir)
        settings = PipelineSettings(engine_dir=engine_dir, cpu_prefix_cache=False)
        self._tokenizer = Tokenizer.load(engine_dir / TOKENIZER_NAME)
        self._stop_token_ids = tuple(manifest.tokens.eos)
        self._engine, _ = load_engine(EngineSettings.of(settings, manifest))
        self._next_key = 0

    def prepare(self, job: LoadJob) -> Callable[[], Callable[[], list[Timeline]]]:
        """Tokenizes all prompts, and returns the load itself."""
        streams = [[self._request(prompt, job.max_tokens) for prompt in prompts] for prompts in job.prompts]

        def load() -> Callable[[], list[Timeline]]:
            timelines = _run(self._engine, streams, job.timeout_s)
            return lambda: timelines

        return load

    def _request(self, prompt: str, max_tokens: int) -> GenerationRequest:
        self._next_key += 1
        return GenerationRequest(
            key=str(self._next_key),
            prompt_ids=tuple(self._tokenizer.encode(prompt)),
            max_tokens=max_tokens,
            sampling=SamplingParams(is_greedy=True),
            stop_token_ids=self._stop_token_ids,
        )


def _run(engine: EngineCore, streams: list[list[GenerationRequest]], timeout_s: float) -> list[Timeline]:
    timelines: dict[str, Timeline] = {}
    remaining: dict[str, list[GenerationRequest]] = {}

    def add(requests: list[GenerationRequest]) -> None:
        request, *rest = requests
        timelines[request.key] = Timeline(time.perf_counter(), prompt_tokens=len(request.prompt_ids))
        remaining[request.key] = rest
        engine.add(request)

    for stream in streams:
        add(stream)
    deadline = time.perf_counter() + timeout_s
    while engine.has_work:
        steps = engine.step()
        now_s = time.perf_counter()
        for step in steps:
            timeline = timelines[step.key]
            if step.token_ids:
                timeline.arrivals_s.append(now_s)
                timeline.events += 1
                timeline.completion_tokens += len(step.token_ids)
            timeline.end_s = now_s
            timeline.finish_reason = None if step.finish_reason is None else step.finish_reason.value
            timeline.failure = "the engine failed it" if step.error else None
            if step.is_final and remaining[step.key]:
                add(remaining[step.key])
        if now_s > deadline:
            for key in timelines:
                if engine.cancel(key) is not None:
                    timelines[key].failure = "timed out"
    return list(timelines.values())


def main(arguments: list[str]) -> None:
    """Serves jobs with the engine in the directory that the first argument names."""
    engine = EngineOnly(Path(arguments[0]))
    serve_jobs(engine.prepare)


if __name__ == "__main__":
    main(sys.argv[1:])
