"""One test for each trap of TensorRT-LLM's executor bindings that is known from its sources and its issue tracker.

Each docstring says what upstream does. The stand-in does the same (tests/fakes), as far as the API facts tell.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from llm_pipeline.engine_files.manifest import ManifestError
from llm_pipeline.executors.tensorrt_llm.compatibility import read_vocabulary
from llm_pipeline.protocol.capabilities import CAPABILITIES
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import (
    GUIDE_PARAM,
    CompletionParameters,
    FinishReason,
    GenerationRequest,
    Guide,
    GuideType,
    SamplingParams,
)
from llm_pipeline.stages.preprocess import PreprocessStage
from llm_pipeline.text.tokenizer import Tokenizer
from tests.support.sample_requests import make_manifest, make_request
from tests.support.trtllm_bench import LONG, TrtllmBench, trtllm_bench

CreateBench = Callable[..., TrtllmBench]
SAMPLED = SamplingParams(is_greedy=False, temperature=0.7, top_p=0.9, seed=5)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[CreateBench]:
    with trtllm_bench(tmp_path) as create:
        yield create


@pytest.fixture
def any_bench(bench: CreateBench) -> TrtllmBench:
    return bench()


def request_with(**fields: Any) -> GenerationRequest:
    return replace(make_request(max_tokens=4), **fields)


def sampling_of(bench: TrtllmBench, sampling: SamplingParams) -> dict[str, Any]:
    """What of the sampling upstream was told."""
    config = bench.sent(request_with(sampling=sampling, stop_token_ids=(2,))).sampling_config
    return {name: value for name, value in config._values.items() if value is not None and name != "beam_width"}


def prepared(tokenizer: Tokenizer, **parameters: Any) -> GenerationRequest:
    """A request as preprocess makes it from what a client sent."""
    stage = PreprocessStage(tokenizer, make_manifest(context_length=10**6), CAPABILITIES["cpu"], default_max_tokens=4)
    return stage.prepare(CompletionParameters("key", "id", prompt_text="hello", **parameters))


# Sampling


def test_top_p_0_is_refused_upstream_and_greedy_for_us(any_bench: TrtllmBench, byte_level: Tokenizer) -> None:
    with pytest.raises(RuntimeError):
        any_bench.trtllm.SamplingConfig(top_p=0.0)
    request = prepared(byte_level, top_p=0.0, temperature=1.0)
    assert any_bench.sent(request).sampling_config.top_p is None
    assert any_bench.sent(replace(request, key="2")).sampling_config.top_k == 1


def test_greedy_is_top_k_1_and_nothing_else(any_bench: TrtllmBench) -> None:
    assert sampling_of(any_bench, SamplingParams()) == {"top_k": 1, "min_tokens": 0}


def test_a_sampled_request_without_top_k_and_top_p_would_be_greedy(any_bench: TrtllmBench) -> None:
    """Upstream's defaults are 0 and 0, and then its kernel takes the most likely token, whatever the temperature."""
    plain = SamplingParams(is_greedy=False, temperature=0.8, seed=1)
    assert sampling_of(any_bench, plain) == {
        "top_k": 0,
        "top_p": 1.0,
        "temperature": 0.8,
        "seed": 1,
        "min_tokens": 0,
    }


def test_the_default_seed_is_a_constant_so_each_request_brings_its_own(
    any_bench: TrtllmBench, byte_level: Tokenizer
) -> None:
    requests = [replace(prepared(byte_level, temperature=1.0), key=f"request {number}") for number in range(3)]
    seeds = {any_bench.sent(request).sampling_config.seed for request in requests}
    assert len(seeds) == 3
    assert max(seeds) > 2**32


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**63 - 1])
def test_a_seed_is_an_int64_for_clients_and_a_uint64_upstream(
    any_bench: TrtllmBench, byte_level: Tokenizer, seed: int
) -> None:
    assert any_bench.sent(prepared(byte_level, temperature=1.0, seed=seed)).sampling_config.seed == seed % 2**64


def test_the_same_seed_gives_the_same_tokens_alone_and_in_a_crowd(any_bench: TrtllmBench) -> None:
    first, second = (replace(make_request(name, max_tokens=20), sampling=SAMPLED) for name in ("first", "second"))
    any_bench.end_of(first)
    crowd = [any_bench.submit(make_request(f"crowd {n}", prompt_ids=(n,), max_tokens=30)) for n in range(4)]
    any_bench.end_of(second)
    for key in crowd:
        any_bench.recorder.wait_for_end(key)
    assert any_bench.recorder.token_ids("first") == any_bench.recorder.token_ids("second")


def test_penalties_and_the_rest_of_the_sampling_reach_upstream(any_bench: TrtllmBench) -> None:
    sampling = replace(
        SAMPLED,
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=-0.5,
        frequency_penalty=0.5,
        min_tokens=2,
    )
    assert sampling_of(any_bench, sampling) == {
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


def test_a_value_that_only_upstream_refuses_is_400_and_leaves_nothing_behind(
    any_bench: TrtllmBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its words stay in the log. (NVIDIA's model leaves an entry in its id map when a conversion fails.)"""
    monkeypatch.setattr("llm_pipeline.executors.tensorrt_llm.admission.RequestLimits.check", lambda self, request: None)
    with pytest.raises(PipelineError) as caught:
        any_bench.submit(request_with(sampling=replace(SAMPLED, repetition_penalty=-1.0)))
    assert caught.value.code is ErrorCode.VALUE_OUT_OF_RANGE
    assert "samplingConfig" not in caught.value.message
    stats = any_bench.executor.stats()
    assert (stats.active_requests, stats.queued_requests) == (0, 0)


def test_min_tokens_of_one_request_does_not_count_for_another(any_bench: TrtllmBench) -> None:
    """Upstream's default is 1, and takes effect as soon as any request of the batch has set it (penaltyLayer.cpp)."""
    assert any_bench.sent(request_with(stop_token_ids=(2,))).sampling_config.min_tokens == 0


def test_min_tokens_without_an_end_token_is_0(any_bench: TrtllmBench) -> None:
    """Its kernel masks the logit of the end token, and -1 is no logit (penaltyKernels.cu)."""
    sent = any_bench.sent(request_with(sampling=SamplingParams(min_tokens=3)))
    assert (sent.end_id, sent.sampling_config.min_tokens) == (-1, 0)


def test_min_tokens_is_refused_where_the_engine_could_not_keep_it(any_bench: TrtllmBench) -> None:
    """It holds back one end id; the others are stop words, which end a request at any time."""
    with pytest.raises(PipelineError) as caught:
        any_bench.submit(request_with(stop_token_ids=(2, 32), sampling=SamplingParams(min_tokens=3)))
    assert (caught.value.code, caught.value.param) == (ErrorCode.UNSUPPORTED_PARAMETER, "min_tokens")


# The request


def test_ignore_eos_is_end_id_minus_1(any_bench: TrtllmBench) -> None:
    assert any_bench.sent(request_with(stop_token_ids=())).end_id == -1


def test_further_end_tokens_are_stop_words_of_one_token(any_bench: TrtllmBench) -> None:
    """Upstream has one end id."""
    sent = any_bench.sent(request_with(stop_token_ids=(2, 32, 33)))
    assert (sent.end_id, sent.stop_words) == (2, [[32], [33]])


def test_a_further_end_token_is_the_last_one_handed_back(bench: CreateBench) -> None:
    """Stop words are in upstream's output, the end id is not."""
    made = bench(script={"rules": [{"prompt_ids": [5, 6, 7], "token_ids": [8, 32]}]})
    assert made.end_of(request_with(stop_token_ids=(2, 32))).finish_reason is FinishReason.STOP
    assert made.recorder.token_ids("request") == [8, 32]


def test_stop_strings_stay_here_and_only_token_hints_go_upstream(any_bench: TrtllmBench) -> None:
    """Upstream matches ids: a stop string that tokenizes differently in its place would be missed."""
    assert any_bench.sent(make_request(stop=("\n\n", "END"), max_tokens=2)).stop_words is None
    hinted = request_with(key="hinted", stop_token_sequences=((8, 9), (10,)))
    assert any_bench.sent(hinted).stop_words == [[8, 9], [10]]


def test_a_hint_that_the_prompt_has_begun_stays_here(any_bench: TrtllmBench) -> None:
    """Upstream compares the last tokens, the prompt's among them: the request would stop without having made it."""
    any_bench.end_of(make_request("free", max_tokens=4))
    made = any_bench.recorder.token_ids("free")
    hint = (make_request().prompt_ids[-1], made[0])
    assert any_bench.end_of(request_with(stop_token_sequences=(hint,))).finish_reason is FinishReason.LENGTH
    assert any_bench.recorder.token_ids("request") == made


def test_stop_and_bad_words_are_left_out_when_there_are_none(any_bench: TrtllmBench) -> None:
    """Host memory leaked in the executor when requests carried stop words (TensorRT-LLM#5509)."""
    sent = any_bench.sent(make_request(stop_token_ids=(2,)))
    assert (sent.stop_words, sent.bad_words, sent.embedding_bias) == (None, None, None)


def test_bad_words_do_not_appear(any_bench: TrtllmBench) -> None:
    any_bench.end_of(make_request("free", max_tokens=1))
    token = any_bench.recorder.token_ids("free")[0]
    sampling = SamplingParams(bad_words=((token,),))
    assert any_bench.sent(make_request("kept", max_tokens=1, sampling=sampling)).bad_words == [[token]]
    assert any_bench.recorder.token_ids("kept") != [token]


def test_logit_bias_is_a_float32_tensor_of_the_engines_vocabulary(bench: CreateBench) -> None:
    """Not of the tokenizer's, which may be smaller."""
    made = bench(engine={"vocab_size": 1024})
    bias = made.sent(request_with(sampling=SamplingParams(logit_bias=((700, 100.0), (3, -1.5))))).embedding_bias
    assert bias.shape == (1024,)
    assert (bias[700], bias[3], bias[0]) == (100.0, -1.5, 0.0)
    assert made.recorder.token_ids("request") == [700] * 4


def test_the_time_limit_is_a_timedelta(any_bench: TrtllmBench) -> None:
    """The parameter is called allotted_time_ms and takes no number."""
    with pytest.raises(TypeError):
        any_bench.trtllm.Request([1], 1, allotted_time_ms=1500)
    assert any_bench.sent(request_with(time_limit_s=1.5)).allotted_time_ms == timedelta(seconds=1.5)


def test_all_after_max_tokens_goes_by_name(any_bench: TrtllmBench) -> None:
    with pytest.raises(TypeError):
        any_bench.trtllm.Request([1], 1, True)
    with pytest.raises(TypeError):
        any_bench.trtllm.Request([1], 1, streaming=None)


def test_priority_can_be_given_but_not_read_back(any_bench: TrtllmBench) -> None:
    from tensorrt_llm.api import peek

    sent = any_bench.sent(request_with(urgency=0.75))
    assert peek(sent, "priority") == 0.75
    with pytest.raises(AttributeError):
        _ = sent.priority


def test_only_new_tokens_are_asked_for_and_never_the_prompt(any_bench: TrtllmBench) -> None:
    """exclude_input_from_output is False by default here, unlike in the LLM API."""
    sent = any_bench.sent(make_request(max_tokens=5))
    assert (sent.streaming, sent.return_all_generated_tokens) == (True, False)
    assert sent.output_config.exclude_input_from_output is True
    assert len(any_bench.recorder.token_ids("request")) == 5


def test_what_is_not_asked_for_is_not_passed_because_releases_differ(
    bench: CreateBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older Request without the newest parameter takes our requests as long as they do not need it."""
    made = bench()
    from tensorrt_llm.api import BINDINGS

    parameters = [item for item in BINDINGS["Request"]["params"] if item["name"] != "cache_salt_id"]
    monkeypatch.setitem(BINDINGS["Request"], "params", parameters)
    monkeypatch.setattr("tensorrt_llm.bindings.executor.Request", _rebuilt_request(made))
    assert made.end_of(request_with(key="without")).finish_reason is FinishReason.LENGTH
    with pytest.raises(TypeError, match="cache_salt_id"):
        made.submit(request_with(key="with", cache_salt=7))


def _rebuilt_request(made: TrtllmBench) -> type:
    from tensorrt_llm.api import BINDINGS, _make_class

    return _make_class("Request", BINDINGS["Request"], vars(made.trtllm))


def test_the_cache_salt_of_a_tenant_goes_upstream(any_bench: TrtllmBench) -> None:
    assert any_bench.sent(request_with(cache_salt=2**64 - 1)).cache_salt_id == 2**64 - 1


# Results


def test_has_error_is_a_method_and_asked_first(any_bench: TrtllmBench) -> None:
    """Error and result are alternatives of one variant; a bound method is always true."""
    from llm_pipeline.executors.tensorrt_llm import bindings as upstream

    class OnlyAnError:
        request_id, error_msg = 7, "it broke"

        def has_error(self) -> bool:
            return True

        @property
        def result(self) -> Any:
            raise AssertionError("the result of an error was read")

    response = upstream._read(OnlyAnError())
    assert response is not None
    assert (response.error, response.may_go_on) == ("it broke", False)


def test_a_response_without_a_readable_id_is_dropped_not_fatal(any_bench: TrtllmBench) -> None:
    from llm_pipeline.executors.tensorrt_llm import bindings as upstream

    assert upstream._read(object()) is None


@pytest.mark.parametrize("included", [False, True], ids=["left out", "included"])
def test_the_end_token_is_handed_back_once_whether_upstream_includes_it_or_not(
    bench: CreateBench, included: bool
) -> None:
    """Its sampling kernels do not advance the length on the end token, so it is in no output of the releases read."""
    from llm_pipeline.executors.tensorrt_llm.engine import Ending, EngineResponse
    from llm_pipeline.executors.tensorrt_llm.steps import LiveRequest, make_step

    live = LiveRequest(request_with(stop_token_ids=(2,)))
    step = make_step(live, EngineResponse(1, (8, 2) if included else (8,), ending=Ending.END_ID))
    assert step is not None
    assert step.token_ids == (8, 2)


@pytest.mark.parametrize("repeats", [False, True], ids=["of new tokens", "of all so far"])
def test_log_probs_are_of_the_tokens_handed_back_and_the_end_token_has_none(bench: CreateBench, repeats: bool) -> None:
    made = bench(
        script={
            "repeats_log_probs": repeats,
            "rules": [{"prompt_ids": [5, 6, 7], "token_ids": [8, 9, 10], "finish": "END_ID"}],
        }
    )
    made.end_of(request_with(stop_token_ids=(2,), max_tokens=8, return_logprobs=True))
    steps = made.recorder.steps("request")
    assert [value for step in steps for value in step.logprobs] == [-0.5, -0.5, -0.5, None]
    assert all(len(step.logprobs) == len(step.token_ids) for step in steps)


def test_no_log_probs_without_asking(any_bench: TrtllmBench) -> None:
    any_bench.end_of(make_request())
    assert all(step.logprobs == () for step in any_bench.recorder.steps("request"))


# Guided decoding


def test_a_guide_goes_upstream_with_its_type(bench: CreateBench, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(json.dumps({"model": {"vocab": {"Ġa": 1, "Ġb": 0}}, "added_tokens": [_added(3, "<end>")]}))
    made = bench(engine={"tokenizer": tokenizer}, trtllm_guided_decoding="xgrammar")
    sent = made.sent(request_with(guide=Guide(GuideType.REGEX, "[ab]+")))
    assert sent.guided_decoding_params.guide == "[ab]+"
    assert sent.guided_decoding_params.guide_type is made.trtllm.GuidedDecodingParams.GuideType.REGEX
    config = made.fake.config.guided_decoding_config
    assert config.encoded_vocab == ["Ġb", "Ġa", "", "<end>"]
    assert config.stop_token_ids == [2]
    assert config.tokenizer_str == tokenizer.read_text()


def _added(token_id: int, content: str) -> dict[str, Any]:
    return {"id": token_id, "content": content}


def test_a_vocabulary_that_lists_its_pieces_is_read_too() -> None:
    """Unigram models list pieces with scores; ids are positions."""
    document = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": [_added(1, "<s>")]}
    assert read_vocabulary(json.dumps(document)) == ["a", "<s>"]


def test_a_guide_without_guided_decoding_is_refused_here(any_bench: TrtllmBench) -> None:
    """Upstream would fail it inside the batch."""
    with pytest.raises(PipelineError) as caught:
        any_bench.submit(request_with(guide=Guide(GuideType.JSON)))
    assert (caught.value.code, caught.value.param) == (ErrorCode.UNSUPPORTED_PARAMETER, GUIDE_PARAM)


# Loading


def test_the_executor_is_made_of_path_type_and_config(any_bench: TrtllmBench) -> None:
    trtllm = any_bench.trtllm
    with pytest.raises(TypeError):
        trtllm.Executor(any_bench.settings.engine_dir, trtllm.ModelType.DECODER_ONLY)


def test_normalize_log_probs_is_always_said(any_bench: TrtllmBench) -> None:
    """Its default is True in one release and False in another."""
    assert any_bench.fake.config.normalize_log_probs is False


def test_upstreams_config_carries_the_settings(bench: CreateBench) -> None:
    made = bench(
        trtllm_kv_cache_free_fraction=0.5,
        trtllm_kv_cache_tokens=4096,
        trtllm_kv_host_cache_gib=2,
        trtllm_scheduler_policy="max_utilization",
        trtllm_max_queue_size=9,
        trtllm_max_batch_size=2,
        trtllm_max_num_tokens=512,
    )
    config, policies = made.fake.config, made.trtllm.CapacitySchedulerPolicy
    assert config.kv_cache_config.free_gpu_memory_fraction == 0.5
    assert config.kv_cache_config.max_tokens == 4096
    assert config.kv_cache_config.host_cache_size == 2 * 2**30
    assert config.scheduler_config.capacity_scheduler_policy is policies.MAX_UTILIZATION
    assert (config.max_queue_size, config.max_batch_size, config.max_num_tokens) == (9, 2, 512)
    assert config.batching_type is made.trtllm.BatchingType.INFLIGHT
    assert config.parallel_config is None


@pytest.mark.parametrize("built", [True, False], ids=["built for it", "not built for it"])
def test_block_reuse_and_chunked_context_follow_what_the_engine_was_built_for(bench: CreateBench, built: bool) -> None:
    """Both need use_paged_context_fmha."""
    config = bench(engine={"has_paged_context": built}).fake.config
    assert config.enable_chunked_context is built
    assert config.kv_cache_config.enable_block_reuse is built


@pytest.mark.parametrize("name", ["trtllm_block_reuse", "trtllm_chunked_context"])
def test_a_setting_that_needs_paged_context_is_refused_without_it(bench: CreateBench, name: str) -> None:
    with pytest.raises(ManifestError, match=name.upper()):
        bench(engine={"has_paged_context": False}, **{name: True})


@pytest.mark.parametrize("name", ["trtllm_max_batch_size", "trtllm_max_num_tokens"])
def test_the_engines_limits_can_be_lowered_but_not_raised(bench: CreateBench, name: str) -> None:
    with pytest.raises(ManifestError, match=f"{name.upper()} is 100000"):
        bench(**{name: 100_000})


def test_orchestrator_mode_names_the_worker_program(bench: CreateBench, tmp_path: Path) -> None:
    worker = tmp_path / "trtllmExecutorWorker"
    worker.touch()
    made = bench(
        engine={"tp": 2}, script={"sms": [90, 90]}, trtllm_parallel_mode="orchestrator", trtllm_worker_path=worker
    )
    parallel = made.fake.config.parallel_config
    assert parallel.communication_mode is made.trtllm.CommunicationMode.ORCHESTRATOR
    assert parallel.orchestrator_config.is_orchestrator is True
    assert parallel.orchestrator_config.worker_executable_path == str(worker)
    assert made.end_of(make_request(max_tokens=2)).finish_reason is FinishReason.LENGTH


def test_the_executor_is_shut_down_by_name(any_bench: TrtllmBench) -> None:
    """An early binding's __exit__ refused None, so `with` failed."""
    any_bench.executor.close()
    assert any_bench.fake.is_down


# What NVIDIA's own Python model gets wrong


def test_two_live_requests_with_one_prompt_and_any_names_are_kept_apart(any_bench: TrtllmBench) -> None:
    """Ids are the executor's own; a map keyed on the client's id lets two requests overwrite each other."""
    keys = [any_bench.submit(make_request(f"same name? {n}", max_tokens=LONG)) for n in range(2)]
    for key in keys:
        any_bench.recorder.wait_for_token(key)
    any_bench.executor.cancel(keys[0])
    assert any_bench.recorder.wait_for_end(keys[0]).finish_reason is FinishReason.CANCELLED
    assert not any(step.is_final for step in any_bench.recorder.steps(keys[1]))


def test_an_over_long_input_never_reaches_the_engine(bench: CreateBench) -> None:
    """One put the service into an unrecoverable hang (TensorRT-LLM#4441)."""
    made = bench(engine={"max_seq_len": 16})
    with pytest.raises(PipelineError) as caught:
        made.submit(make_request(prompt_ids=(1,) * 10, max_tokens=7))
    assert caught.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert made.fake.requests == []


def test_without_chunked_context_a_prompt_must_fit_one_step(bench: CreateBench) -> None:
    made = bench(engine={"max_num_tokens": 8, "has_paged_context": False})
    assert made.end_of(make_request("fits", prompt_ids=(1,) * 8, max_tokens=2)).finish_reason is FinishReason.LENGTH
    with pytest.raises(PipelineError) as caught:
        made.submit(make_request(prompt_ids=(1,) * 9, max_tokens=2))
    assert caught.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert "8" in caught.value.message
