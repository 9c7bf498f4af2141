"""Tests that need a GPU: TensorRT-LLM behaves like the fake. NOT RUN yet.

The list of what is not proved yet is in docs/tensorrt-llm.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_pipeline.executors.tensorrt_llm.request_limits import RequestLimits
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, SamplingParams, TextOptions
from tests.support.executor_rules import RULES, Output, RuleBench

pytestmark = pytest.mark.gpu
FACTS = json.loads((Path(__file__).parents[1] / "data" / "tensorrt_llm_api.json").read_text(encoding="utf-8"))[
    "symbols"
]
PREFIX = "tensorrt_llm.bindings.executor."
PASSED = {  # arguments that bindings.py passes, by class
    "Request": (
        "streaming return_all_generated_tokens sampling_config output_config end_id stop_words bad_words "
        "embedding_bias guided_decoding_params priority allotted_time_ms cache_salt_id"
    ),
    "SamplingConfig": (
        "top_k top_p temperature min_p seed repetition_penalty presence_penalty frequency_penalty min_tokens"
    ),
    "OutputConfig": "exclude_input_from_output return_log_probs",
    "KvCacheConfig": "enable_block_reuse free_gpu_memory_fraction max_tokens host_cache_size",
    "SchedulerConfig": "capacity_scheduler_policy",
    "ParallelConfig": "communication_type communication_mode orchestrator_config",
    "OrchestratorConfig": "is_orchestrator worker_executable_path",
    "GuidedDecodingConfig": "backend encoded_vocab tokenizer_str stop_token_ids",
    "ExecutorConfig": (
        "max_beam_width scheduler_config kv_cache_config enable_chunked_context normalize_log_probs batching_type "
        "max_batch_size max_num_tokens max_queue_size parallel_config guided_decoding_config"
    ),
}


def bindings() -> Any:
    import tensorrt_llm.bindings.executor as trtllm  # type: ignore[import-not-found, unused-ignore]

    return trtllm


def bound_parameters(name: str) -> set[str]:
    """Returns the parameter names in nanobind's docstring of a constructor."""
    return set(re.findall(r"[(,*]\s*(\w+):", getattr(bindings(), name).__init__.__doc__ or ""))


@pytest.mark.parametrize("name", PASSED)
def test_the_installed_binding_has_every_parameter_that_we_pass(name: str) -> None:
    assert set(PASSED[name].split()) <= bound_parameters(name)


@pytest.mark.parametrize("name", PASSED)
def test_the_facts_are_those_of_the_installed_binding(name: str) -> None:
    """A difference does not break the executor, but then the fake checks against outdated facts."""
    known = {parameter["name"] for parameter in FACTS[PREFIX + name]["params"]}
    assert known == bound_parameters(name) - {"self"}


@pytest.mark.parametrize("rule", RULES)
def test_executor_rules(bench: RuleBench, rule: Callable[[RuleBench], None]) -> None:
    rule(bench)


@pytest.fixture
def generate(bench: RuleBench) -> Callable[..., tuple[list[int], Output]]:
    """Runs a request to its end and returns its tokens and its last output."""

    def run(
        prompt_ids: tuple[int, ...] = (1, 2, 3, 4), max_tokens: int = 24, **fields: Any
    ) -> tuple[list[int], Output]:
        options = TextOptions(max_tokens=max_tokens, prompt_tokens=len(prompt_ids))
        request = GenerationRequest(
            "request", prompt_ids, max_tokens, fields.pop("sampling", SamplingParams()), text_options=options
        )
        number = bench.submit_request(replace(request, **fields))
        last = bench.recorder.wait_for_end(number)
        return bench.recorder.token_ids(number), last

    return run


SAMPLED = SamplingParams(is_greedy=False, temperature=1.0, seed=11)


def test_greedy_repeats(generate: Callable[..., Any]) -> None:
    assert generate()[0] == generate()[0]


def test_a_seed_repeats_and_another_differs(generate: Callable[..., Any]) -> None:
    first, again, other = (generate(sampling=replace(SAMPLED, seed=seed))[0] for seed in (11, 11, 2**64 - 1))
    assert first == again != other


def test_sampling_without_top_k_and_top_p_is_not_greedy(generate: Callable[..., Any]) -> None:
    assert generate(sampling=replace(SAMPLED, temperature=2.0))[0] != generate()[0]


def test_min_p_1_is_greedy(generate: Callable[..., Any]) -> None:
    assert generate(sampling=replace(SAMPLED, min_p=1.0))[0] == generate()[0]


def test_stop_token_is_the_last_token_of_the_output(generate: Callable[..., Any]) -> None:
    free, _ = generate()
    tokens, last = generate(stop_token_ids=(free[5],))
    assert last.finish_reason is FinishReason.STOP
    assert tokens == free[: free.index(free[5]) + 1]


def test_further_stop_token_is_the_last_token_of_the_output(generate: Callable[..., Any], gpu_engine: Any) -> None:
    free, _ = generate()
    unused = next(token for token in range(gpu_engine.manifest.limits.vocab_size) if token not in free)
    tokens, last = generate(stop_token_ids=(unused, free[5]))
    assert last.finish_reason is FinishReason.STOP
    assert tokens == free[: free.index(free[5]) + 1]


def test_without_stop_tokens_a_request_runs_to_max_tokens(generate: Callable[..., Any]) -> None:
    tokens, last = generate(max_tokens=200)
    assert (len(tokens), last.finish_reason) == (200, FinishReason.LENGTH)


def test_logit_bias_forces_and_bad_words_forbid_a_token(generate: Callable[..., Any]) -> None:
    free, _ = generate()
    forced, _ = generate(max_tokens=4, sampling=SamplingParams(logit_bias=((free[3], 1000.0),)))
    assert forced == [free[3]] * 4
    without, _ = generate(sampling=SamplingParams(bad_words=((free[0],),)))
    assert free[0] not in without


def test_min_tokens_suppresses_the_stop_token(generate: Callable[..., Any]) -> None:
    free, _ = generate()
    tokens, _ = generate(stop_token_ids=(free[2],), sampling=SamplingParams(min_tokens=8))
    assert len(tokens) > 8


def test_each_token_has_a_logprob(generate: Callable[..., Any], bench: RuleBench) -> None:
    free, _ = generate()
    request = GenerationRequest(
        "request", (1, 2, 3, 4), 24, SamplingParams(), stop_token_ids=(free[9],), return_logprobs=True
    )
    number = bench.submit_request(request)
    bench.recorder.wait_for_end(number)
    values = [value for output in bench.recorder.outputs(number) for value in output.logprobs]
    assert len(values) == len(bench.recorder.token_ids(number))
    assert all(value is not None and value <= 0 for value in values[:-1])


def test_a_time_limit_ends_a_request(generate: Callable[..., Any]) -> None:
    _, last = generate(max_tokens=1500, time_limit_s=0.05)
    assert last.error is not None
    assert last.error.code is ErrorCode.DEADLINE_EXCEEDED


def test_priority_and_cache_salt_are_accepted(generate: Callable[..., Any]) -> None:
    assert generate(urgency=0.9, cache_salt=2**64 - 1)[0] == generate()[0]


def test_gauges_are_reported(generate: Callable[..., Any], bench: RuleBench) -> None:
    generate(max_tokens=200)
    gauges = bench.executor.stats().gauges
    assert gauges["kv_cache_max_blocks"] > 0
    assert gauges["iteration"] > 0


def test_value_that_upstream_rejects_is_400(generate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RequestLimits, "check", lambda self, request: None)
    with pytest.raises(PipelineError) as caught:
        generate(sampling=replace(SAMPLED, top_p=0.0))
    assert caught.value.code is ErrorCode.VALUE_OUT_OF_RANGE


def test_error_text_of_a_full_queue_is_known(gpu_engine: Any) -> None:
    """Needs its own process: a second executor in this one may not fit into the GPU's memory."""
    pytest.skip("manual: set TRTLLM_MAX_QUEUE_SIZE=1, send 100 requests at once, expect 429 and not 500")
