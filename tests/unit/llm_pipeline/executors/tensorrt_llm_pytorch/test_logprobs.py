"""Logprobs and prompt logprobs on the LLM API's stand-in, in the pipeline's own form."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest
from tests.support.sample_requests import make_request
from tests.support.trtllm_bench import CreateBench, TrtllmBench, script


def with_logprobs(count: int, **fields: object) -> GenerationRequest:
    request = make_request(stop_token_ids=(2,))
    return replace(request, return_logprobs=True, num_top_logprobs=count, **fields)  # type: ignore[arg-type]


def new_release(create_bench: CreateBench, **rule: object) -> TrtllmBench:
    return create_bench(script={"version": "1.3.0", **(script(**rule) if rule else {})}, engine={"version": "1.3.0"})


@pytest.mark.parametrize("count", [0, 1, 20])
def test_each_token_has_its_logprob_and_the_most_likely_ones(create_bench: CreateBench, count: int) -> None:
    bench = new_release(create_bench)
    bench.end_of(with_logprobs(count))
    outputs = bench.outputs("request")
    ids = [token for output in outputs for token in output.token_ids]
    values = [value for output in outputs for value in output.logprobs]
    tops = [top for output in outputs for top in output.top_logprobs]
    assert len(ids) == len(values) == 8
    assert all(value is not None and value < 0 for value in values)
    assert len(tops) == (8 if count else 0)
    assert all(len(tokens) == len(logprobs) == count for tokens, logprobs in tops)


def test_older_release_gives_the_chosen_tokens_logprob_and_none_for_the_end_token(create_bench: CreateBench) -> None:
    """TRTLLMSampler leaves the end token out of its output, so it has no logprob."""
    bench = create_bench(script=script(token_ids=[8, 9, 2]))
    assert bench.end_of(with_logprobs(0)).finish_reason is FinishReason.STOP
    outputs = bench.outputs("request")
    assert [value for output in outputs for value in output.logprobs] == [-0.5, -0.5, None]
    with pytest.raises(PipelineError) as caught:
        bench.submit(with_logprobs(1))
    assert caught.value.code is ErrorCode.UNSUPPORTED_PARAMETER


@pytest.mark.parametrize("max_tokens", [0, 3])
@pytest.mark.parametrize("count", [0, 2])
def test_prompt_has_logprobs_from_its_second_token_on(create_bench: CreateBench, max_tokens: int, count: int) -> None:
    bench = new_release(create_bench)
    request = with_logprobs(count, max_tokens=max_tokens, return_prompt_logprobs=True)
    assert bench.end_of(request).finish_reason is FinishReason.LENGTH
    outputs = bench.outputs("request")
    (prompt,) = [output.prompt_logprobs for output in outputs if output.prompt_logprobs is not None]
    assert len(prompt.values) == len(request.prompt_ids) - 1
    assert None not in prompt.values
    assert len(prompt.tops) == (len(prompt.values) if count else 0)
    assert sum(len(output.token_ids) for output in outputs) == max_tokens


def test_prompt_logprobs_reuse_no_blocks_of_other_requests(create_bench: CreateBench) -> None:
    """Reused blocks have no logits; the salt of such a request is its own."""
    bench = new_release(create_bench)
    request = with_logprobs(0, return_prompt_logprobs=True, cache_salt=5)
    salts = [bench.sent(replace(request, key=key))[1]["cache_salt"] for key in ("a", "b")]
    assert len({*salts, "5"}) == 3


def test_request_without_logprobs_has_none(create_bench: CreateBench) -> None:
    bench = new_release(create_bench)
    assert bench.end_of(make_request()).logprobs == ()
