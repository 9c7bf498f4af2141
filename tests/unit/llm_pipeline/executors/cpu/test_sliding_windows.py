"""Tiny models with sliding windows in the whole engine: batches, chunked prefill, prefix cache, prompt lookup."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from build_engine.cpu.build import BuildRequest, build_engine
from build_engine.cpu.default_model import find_model
from build_engine.progress import SilentProgress
from build_engine.targets.registry import find_target
from llm_pipeline.executors.cpu.executor import CpuExecutor
from llm_pipeline.runtime.settings import PipelineSettings
from tests.support.executor_rules import RuleBench
from tests.support.hugging_face_models import CONTEXT_LENGTH, REFERENCE_MODELS
from tests.support.transformers_reference import GREEDY_TOKENS, PROMPT, load_reference

MAX_ACTIVE = 4


@pytest.fixture(scope="module", params=["mistral-window", "gemma3"])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bench(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuleBench]:
    directory = tmp_path_factory.mktemp(model)
    request = BuildRequest(
        find_model(REFERENCE_MODELS[model].write(directory / model)), find_target("cpu"), "fp16", directory / "engine"
    )
    engine = build_engine(request, SilentProgress())
    settings = PipelineSettings(engine_dir=engine.engine_dir, cpu_kv_cache_gib=0.01, cpu_max_active=MAX_ACTIVE)
    bench = RuleBench(
        lambda sink: CpuExecutor(settings, engine.manifest, sink), long=CONTEXT_LENGTH - 20, max_active=MAX_ACTIVE
    )
    yield bench
    bench.executor.close()


def test_greedy_tokens_in_a_batch_are_those_of_transformers(bench: RuleBench, model: str) -> None:
    """More requests than slots: some start while others decode, and the later ones find the prompt in the cache."""
    expected = load_reference(model).greedy_ids
    numbers = [bench.submit(max_tokens=GREEDY_TOKENS, prompt_ids=PROMPT) for _ in range(2 * MAX_ACTIVE + 1)]
    for number in numbers:
        bench.end_of(number)
        assert bench.recorder.token_ids(number) == expected


def test_prompts_that_end_at_any_position_of_a_window_continue_like_transformers(bench: RuleBench, model: str) -> None:
    expected = load_reference(model).greedy_ids
    for known in (1, 7, 24, 25, 63):
        number = bench.submit(max_tokens=GREEDY_TOKENS - known, prompt_ids=(*PROMPT, *expected[:known]))
        bench.end_of(number)
        assert bench.recorder.token_ids(number) == expected[known:]
