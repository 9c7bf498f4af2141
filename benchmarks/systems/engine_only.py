"""The CPU engine alone: `python -m benchmarks.systems.engine_only ENGINE_DIR`. No Triton, no sockets, no threads of ours.

What any server around this engine could reach at best: the engine's own loop, tokens noted when a step has made them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.load.job import Job, Timeline, serve_jobs
from llm_pipeline.engine_files.manifest import TOKENIZER_NAME, EngineManifest
from llm_pipeline.executors.cpu.engine.core import EngineCore
from llm_pipeline.executors.cpu.engine.ipc import EngineSettings
from llm_pipeline.executors.cpu.engine.process import load_engine
from llm_pipeline.protocol.messages import GenerationRequest, SamplingParams
from llm_pipeline.runtime.settings import PipelineSettings
from llm_pipeline.text.tokenizer import Tokenizer


class BareEngine:
    """An engine with the settings that decode would give it, but no prefix cache; and its requests."""

    def __init__(self, engine_dir: Path) -> None:
        manifest = EngineManifest.load(engine_dir)
        settings = PipelineSettings(engine_dir=engine_dir, cpu_prefix_cache=False)  # as for the stacks beside it
        self._tokenizer = Tokenizer.load(engine_dir / TOKENIZER_NAME)
        self._end_ids = tuple(manifest.tokens.eos)
        self._engine, _ = load_engine(EngineSettings.of(settings, manifest))
        self._next_key = 0

    def prepare(self, job: Job) -> Callable[[], Callable[[], list[Timeline]]]:
        """Tokenize all prompts; the load itself is what is returned."""
        streams = [[self._request(prompt, job.max_tokens) for prompt in prompts] for prompts in job.prompts]

        def load() -> Callable[[], list[Timeline]]:
            timelines = _run(self._engine, streams, job.limit_s)
            return lambda: timelines

        return load

    def _request(self, prompt: str, max_tokens: int) -> GenerationRequest:
        self._next_key += 1
        return GenerationRequest(
            key=str(self._next_key),
            prompt_ids=tuple(self._tokenizer.encode(prompt)),
            max_tokens=max_tokens,
            sampling=SamplingParams(is_greedy=True),
            stop_token_ids=self._end_ids,
        )


def _run(engine: EngineCore, streams: list[list[GenerationRequest]], limit_s: float) -> list[Timeline]:
    timelines: dict[str, Timeline] = {}
    following: dict[str, list[GenerationRequest]] = {}

    def add(requests: list[GenerationRequest]) -> None:
        request, *rest = requests
        timelines[request.key] = Timeline(time.perf_counter(), prompt_tokens=len(request.prompt_ids))
        following[request.key] = rest
        engine.add(request)

    for stream in streams:
        add(stream)
    deadline = time.perf_counter() + limit_s
    while engine.has_work:
        steps = engine.step()
        now_s = time.perf_counter()
        for step in steps:
            timeline = timelines[step.key]
            if step.token_ids:
                timeline.arrivals_s.append(now_s)
                timeline.events += 1
                timeline.completion_tokens += 1
            timeline.end_s = now_s
            timeline.finish_reason = None if step.finish_reason is None else step.finish_reason.value
            timeline.failure = "the engine failed it" if step.error else None
            if step.is_final and following[step.key]:
                add(following[step.key])
        if now_s > deadline:
            for key in timelines:
                if engine.cancel(key) is not None:
                    timelines[key].failure = "not finished in time"
    return list(timelines.values())


def main(arguments: list[str]) -> None:
    bare = BareEngine(Path(arguments[0]))
    serve_jobs(bare.prepare)


if __name__ == "__main__":
    main(sys.argv[1:])
