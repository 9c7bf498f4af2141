"""Traps of upstream's Request, one per test.

Each docstring describes upstream's behavior, which the fake copies (tests/fakes) as far as the API facts go.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from llm_pipeline.executors.tensorrt_llm.request_limits import MAX_LOGPROB_TOKENS
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import GUIDE_PARAM, FinishReason, Guide, GuideType, SamplingParams
from tests.support.sample_requests import make_request
from tests.support.trtllm_bench import CreateBench, TrtllmBench, request_with


def test_ignore_eos_is_end_id_minus_1(bench: TrtllmBench) -> None:
    assert bench.sent(request_with(stop_token_ids=())).end_id == -1


def test_further_stop_tokens_are_stop_words_of_one_token(bench: TrtllmBench) -> None:
    """Upstream supports one end id."""
    sent = bench.sent(request_with(stop_token_ids=(2, 32, 33)))
    assert (sent.end_id, sent.stop_words) == (2, [[32], [33]])


def test_further_stop_token_is_the_last_token_of_the_output(create_bench: CreateBench) -> None:
    """Upstream's output includes stop words, but not the end id."""
    bench = create_bench(script={"rules": [{"prompt_ids": [5, 6, 7], "token_ids": [8, 32]}]})
    assert bench.end_of(request_with(stop_token_ids=(2, 32))).finish_reason is FinishReason.STOP
    assert bench.token_ids("request") == [8, 32]


def test_only_stop_token_sequences_go_upstream_not_stop_strings(bench: TrtllmBench) -> None:
    """Upstream matches ids: a stop string that tokenizes differently in context would be missed."""
    assert bench.sent(make_request(stop=("\n\n", "END"), max_tokens=2)).stop_words is None
    with_sequences = request_with(key="with sequences", stop_token_sequences=((8, 9), (10,)))
    assert bench.sent(with_sequences).stop_words == [[8, 9], [10]]


def test_stop_token_sequence_that_overlaps_the_prompt_is_left_out(bench: TrtllmBench) -> None:
    """Upstream matches the prompt's tokens, too: the request would stop without having generated the sequence."""
    bench.end_of(make_request("free", max_tokens=4))
    generated = bench.token_ids("free")
    sequence = (make_request().prompt_ids[-1], generated[0])
    assert bench.end_of(request_with(stop_token_sequences=(sequence,))).finish_reason is FinishReason.LENGTH
    assert bench.token_ids("request") == generated


def test_stop_words_and_bad_words_are_unset_if_empty(bench: TrtllmBench) -> None:
    """The executor leaked host memory for requests with stop words (TensorRT-LLM#5509)."""
    sent = bench.sent(make_request(stop_token_ids=(2,)))
    assert (sent.stop_words, sent.bad_words, sent.embedding_bias) == (None, None, None)


def test_bad_words_do_not_appear(bench: TrtllmBench) -> None:
    bench.end_of(make_request("free", max_tokens=1))
    token = bench.token_ids("free")[0]
    sampling = SamplingParams(bad_words=((token,),))
    assert bench.sent(make_request("kept", max_tokens=1, sampling=sampling)).bad_words == [[token]]
    assert bench.token_ids("kept") != [token]


def test_logit_bias_is_a_float32_tensor_of_the_engines_vocabulary(create_bench: CreateBench) -> None:
    """The tokenizer's vocabulary may be smaller."""
    bench = create_bench(engine={"vocab_size": 1024})
    bias = bench.sent(request_with(sampling=SamplingParams(logit_bias=((700, 100.0), (3, -1.5))))).embedding_bias
    assert bias.shape == (1024,)
    assert (bias[700], bias[3], bias[0]) == (100.0, -1.5, 0.0)
    assert bench.token_ids("request") == [700] * 4


def test_time_limit_is_a_timedelta(bench: TrtllmBench) -> None:
    """The parameter is called allotted_time_ms, but does not accept a number."""
    with pytest.raises(TypeError):
        bench.trtllm.Request([1], 1, allotted_time_ms=1500)
    assert bench.sent(request_with(time_limit_s=1.5)).allotted_time_ms == timedelta(seconds=1.5)


def test_arguments_after_max_tokens_are_keyword_only(bench: TrtllmBench) -> None:
    with pytest.raises(TypeError):
        bench.trtllm.Request([1], 1, True)
    with pytest.raises(TypeError):
        bench.trtllm.Request([1], 1, streaming=None)


def test_priority_can_be_set_but_not_read(bench: TrtllmBench) -> None:
    from tensorrt_llm.api import peek  # type: ignore[import-not-found, unused-ignore]

    sent = bench.sent(request_with(urgency=0.75))
    assert peek(sent, "priority") == 0.75
    with pytest.raises(AttributeError):
        _ = sent.priority


def test_responses_contain_only_new_tokens(bench: TrtllmBench) -> None:
    """exclude_input_from_output is False by default, unlike in the LLM API."""
    sent = bench.sent(make_request(max_tokens=5))
    assert (sent.streaming, sent.return_all_generated_tokens) == (True, False)
    assert sent.output_config.exclude_input_from_output is True
    assert len(bench.token_ids("request")) == 5


def test_cache_salt_goes_upstream(bench: TrtllmBench) -> None:
    assert bench.sent(request_with(cache_salt=2**64 - 1)).cache_salt_id == 2**64 - 1


def test_guide_without_guided_decoding_is_rejected_before_enqueue(bench: TrtllmBench) -> None:
    """Upstream would fail it inside the running batch."""
    with pytest.raises(PipelineError) as caught:
        bench.submit(request_with(guide=Guide(GuideType.JSON)))
    assert (caught.value.code, caught.value.param) == (ErrorCode.UNSUPPORTED_PARAMETER, GUIDE_PARAM)


def test_over_long_prompt_never_reaches_the_engine(create_bench: CreateBench) -> None:
    """One has hung a whole server (TensorRT-LLM#4441)."""
    bench = create_bench(engine={"max_seq_len": 16})
    with pytest.raises(PipelineError) as caught:
        bench.submit(make_request(prompt_ids=(1,) * 10, max_tokens=7))
    assert caught.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert bench.fake.requests == []


def test_without_chunked_context_a_prompt_must_fit_into_one_step(create_bench: CreateBench) -> None:
    bench = create_bench(engine={"max_num_tokens": 8, "has_paged_context": False})
    assert bench.end_of(make_request("fits", prompt_ids=(1,) * 8, max_tokens=2)).finish_reason is FinishReason.LENGTH
    with pytest.raises(PipelineError) as caught:
        bench.submit(make_request(prompt_ids=(1,) * 9, max_tokens=2))
    assert caught.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert "8" in caught.value.message


@pytest.mark.parametrize("name", ["from the stats", "from the setting"])
def test_request_beyond_the_kv_cache_is_rejected(create_bench: CreateBench, name: str) -> None:
    """Upstream accepts it, and ends it early with the finish reason LENGTH."""
    engine = {"max_seq_len": 4096}
    if name == "from the setting":
        bench = create_bench(engine=engine, trtllm_kv_cache_tokens=1024)
    else:
        bench = create_bench(engine=engine, script={"kv_block_tokens": 1})
        bench.submit(make_request("first", max_tokens=100))
        bench.recorder.wait_for(lambda: bench.executor.stats().gauges.get("kv_cache_max_blocks", 0) == 1024)
    with pytest.raises(PipelineError, match=r"1022; together they must not exceed 1024, .* KV cache") as caught:
        bench.submit(make_request(prompt_ids=(1, 2, 3), max_tokens=1022))
    assert caught.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert (
        bench.end_of(make_request("fits", prompt_ids=(1, 2, 3), max_tokens=1021)).finish_reason is FinishReason.LENGTH
    )
    assert len(bench.token_ids("fits")) == 1021


def test_logprobs_limit_max_tokens(bench: TrtllmBench) -> None:
    """Each response has the logprobs of all tokens so far: their cost grows with the square of max_tokens."""
    with pytest.raises(PipelineError, match=f"at most {MAX_LOGPROB_TOKENS} tokens") as caught:
        bench.submit(request_with(return_logprobs=True, max_tokens=MAX_LOGPROB_TOKENS + 1))
    assert (caught.value.code, caught.value.param) == (ErrorCode.VALUE_OUT_OF_RANGE, "max_tokens")
    without = make_request("without", max_tokens=MAX_LOGPROB_TOKENS + 1)
    assert bench.end_of(without).finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(("vocab_size", "is_honored"), [(1000, True), (1002, False)])
def test_logit_bias_needs_a_vocabulary_that_the_gpus_divide_evenly(
    create_bench: CreateBench, vocab_size: int, is_honored: bool
) -> None:
    """Upstream copies the tensor into one of the padded vocabulary; other sizes fail the step of all requests."""
    bench = create_bench(
        engine={"tp": 2, "pp": 2, "vocab_size": vocab_size},
        script={"sms": [90] * 4},
        ompi_comm_world_size=4,
        ompi_comm_world_local_size=4,
    )
    biased = request_with(sampling=SamplingParams(logit_bias=((7, 100.0),)))
    if is_honored:
        assert bench.end_of(biased).finish_reason is FinishReason.LENGTH
        assert set(bench.token_ids("request")) == {7}
        return
    with pytest.raises(PipelineError) as caught:
        bench.submit(biased)
    assert (caught.value.code, caught.value.param) == (ErrorCode.UNSUPPORTED_PARAMETER, "logit_bias")
