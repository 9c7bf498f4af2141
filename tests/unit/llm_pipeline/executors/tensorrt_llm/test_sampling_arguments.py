"""Traps of upstream's SamplingConfig, one per test.

Each docstring describes upstream's behavior, which the fake copies (tests/fakes) as far as the API facts go.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llm_pipeline.executors.tensorrt_llm.request_limits import RequestLimits
from llm_pipeline.protocol.capabilities import CAPABILITIES
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, GenerationRequest, SamplingParams
from llm_pipeline.stages.preprocess import PreprocessStage
from llm_pipeline.text.tokenizer import Tokenizer
from tests.support.sample_requests import make_manifest
from tests.support.trtllm_bench import TrtllmBench, request_with

SAMPLED = SamplingParams(is_greedy=False, temperature=0.7, top_p=0.9, seed=5)


def sampling_of(bench: TrtllmBench, sampling: SamplingParams) -> dict[str, Any]:
    """Runs a request and returns the values of its SamplingConfig that were set."""
    from tensorrt_llm.api import set_values  # type: ignore[import-not-found, unused-ignore]

    config = bench.sent(request_with(sampling=sampling, stop_token_ids=(2,))).sampling_config
    return {name: value for name, value in set_values(config).items() if name != "beam_width"}


def prepared(tokenizer: Tokenizer, **parameters: Any) -> GenerationRequest:
    """Returns a request as preprocess makes it from a client's parameters."""
    stage = PreprocessStage(tokenizer, make_manifest(context_length=10**6), CAPABILITIES["cpu"], default_max_tokens=4)
    return stage.prepare(CompletionParameters("key", "id", prompt_text="hello", **parameters))


def test_top_p_0_is_greedy_although_upstream_rejects_it(bench: TrtllmBench, byte_level: Tokenizer) -> None:
    with pytest.raises(RuntimeError):
        bench.trtllm.SamplingConfig(top_p=0.0)
    request = prepared(byte_level, top_p=0.0, temperature=1.0)
    assert bench.sent(request).sampling_config.top_p is None
    assert bench.sent(replace(request, key="2")).sampling_config.top_k == 1


def test_greedy_is_top_k_1_and_nothing_else(bench: TrtllmBench) -> None:
    assert sampling_of(bench, SamplingParams()) == {"top_k": 1, "min_tokens": 0}


def test_sampled_request_always_sets_top_k_and_top_p(bench: TrtllmBench) -> None:
    """With upstream's defaults, 0 and 0, its kernel takes the most likely token at any temperature."""
    plain = SamplingParams(is_greedy=False, temperature=0.8, seed=1)
    assert sampling_of(bench, plain) == {
        "top_k": 0,
        "top_p": 1.0,
        "temperature": 0.8,
        "seed": 1,
        "min_tokens": 0,
    }


def test_each_request_has_its_own_seed_because_the_default_is_a_constant(
    bench: TrtllmBench, byte_level: Tokenizer
) -> None:
    requests = [replace(prepared(byte_level, temperature=1.0), key=f"request {number}") for number in range(3)]
    seeds = {bench.sent(request).sampling_config.seed for request in requests}
    assert len(seeds) == 3
    assert max(seeds) > 2**32


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**63 - 1])
def test_seed_is_an_int64_for_clients_and_a_uint64_upstream(
    bench: TrtllmBench, byte_level: Tokenizer, seed: int
) -> None:
    assert bench.sent(prepared(byte_level, temperature=1.0, seed=seed)).sampling_config.seed == seed % 2**64


def test_all_sampling_parameters_reach_upstream(bench: TrtllmBench) -> None:
    sampling = replace(
        SAMPLED,
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=-0.5,
        frequency_penalty=0.5,
        min_tokens=2,
    )
    assert sampling_of(bench, sampling) == {
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.1,
        "temperature": 0.7,
        "seed": 5,
        "repetition_penalty": 1.2,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.5,
        "min_tokens": 2,
    }


def test_value_that_only_upstream_rejects_is_400_and_leaves_no_request(
    bench: TrtllmBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream's message goes to the log only. (NVIDIA's model keeps an id map entry if a conversion fails.)"""
    monkeypatch.setattr(RequestLimits, "check", lambda self, request: None)
    with pytest.raises(PipelineError) as caught:
        bench.submit(request_with(sampling=replace(SAMPLED, repetition_penalty=-1.0)))
    assert caught.value.code is ErrorCode.VALUE_OUT_OF_RANGE
    assert "samplingConfig" not in caught.value.message
    stats = bench.executor.stats()
    assert (stats.active_requests, stats.queued_requests) == (0, 0)


def test_min_tokens_is_always_set(bench: TrtllmBench) -> None:
    """Upstream's default is 1, and applies as soon as any request of the batch has set it (penaltyLayer.cpp)."""
    assert bench.sent(request_with(stop_token_ids=(2,))).sampling_config.min_tokens == 0


def test_min_tokens_without_an_end_token_is_0(bench: TrtllmBench) -> None:
    """Its kernel masks the logit of the end token, and -1 is not a valid index (penaltyKernels.cu)."""
    sent = bench.sent(request_with(sampling=SamplingParams(min_tokens=3)))
    assert (sent.end_id, sent.sampling_config.min_tokens) == (-1, 0)


def test_min_tokens_is_rejected_for_several_stop_tokens(bench: TrtllmBench) -> None:
    """Upstream suppresses one end id; the others are stop words, which end a request at any time."""
    with pytest.raises(PipelineError) as caught:
        bench.submit(request_with(stop_token_ids=(2, 32), sampling=SamplingParams(min_tokens=3)))
    assert (caught.value.code, caught.value.param) == (ErrorCode.UNSUPPORTED_PARAMETER, "min_tokens")
