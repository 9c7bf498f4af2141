"""What reaches upstream's sampler: every field that the profile honors, and nothing that it ignores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_pipeline.executors.tensorrt_llm_pytorch.sampling_arguments import sampling_arguments
from llm_pipeline.protocol.capabilities import PyTorchProfile, check_supported
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, SamplingParams
from llm_pipeline.runtime.settings import capabilities_of
from tests.support.llm_bench import LlmBench
from tests.support.sample_requests import make_request
from tests.support.trtllm_bench import TrtllmBench, trtllm_bench

IDS = st.integers(10, 900)
SAMPLED = SamplingParams(is_greedy=False, temperature=0.5, top_k=7, top_p=0.75, min_p=0.25, seed=2**64 - 1)
samplings = st.builds(
    SamplingParams,
    is_greedy=st.booleans(),
    temperature=st.sampled_from([0.25, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 2**31 - 1]),
    top_p=st.sampled_from([0.5, 1.0]),
    min_p=st.sampled_from([0.0, 0.25, 1.0]),
    seed=st.integers(0, 2**64 - 1),
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.5]),
    presence_penalty=st.sampled_from([-1.0, 0.0, 1.0]),
    frequency_penalty=st.sampled_from([-1.0, 0.0, 1.0]),
    min_tokens=st.integers(0, 4),
    logit_bias=st.lists(st.tuples(IDS, st.floats(-40, 40, width=32)), max_size=2).map(tuple),
    bad_words=st.lists(st.lists(IDS, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple),
)
requests = st.builds(
    lambda sampling, stop, prompt, logprobs: replace(
        make_request("request", prompt, 4, sampling, stop),
        return_logprobs=logprobs is not None,
        num_top_logprobs=logprobs or 0,
    ),
    samplings,
    st.lists(IDS, max_size=3, unique=True).map(tuple),
    st.lists(IDS, min_size=1, max_size=5).map(tuple),
    st.none() | st.integers(0, 20),
)


@pytest.fixture(scope="module", params=["1.2.1", "1.3.0"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrtllmBench]:
    version = request.param
    with trtllm_bench(tmp_path_factory.mktemp("llm"), LlmBench) as create:
        yield create(script={"version": version}, engine={"version": version})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=requests)
def test_a_request_is_refused_by_name_or_upstream_ignores_none_of_its_fields(
    bench: TrtllmBench, request: GenerationRequest
) -> None:
    """And whatever is accepted is valid for upstream's classes, which check types and ranges."""
    try:
        check_supported(request, capabilities_of(bench.settings, bench.manifest))
    except PipelineError:
        with pytest.raises(PipelineError):
            bench.submit(request)
        return
    if request.sampling.min_tokens and len(request.stop_token_ids) > 1:
        with pytest.raises(PipelineError, match="min_tokens"):
            bench.submit(request)
        return
    output = bench.end_of(request)
    assert output.finish_reason in (FinishReason.LENGTH, FinishReason.STOP)
    assert bench.fake.ignored_fields == set()


def sent_by(profile: PyTorchProfile, sampling: SamplingParams = SAMPLED, **request: Any) -> dict[str, Any]:
    return sampling_arguments(replace(make_request(sampling=sampling), **request), profile)


@pytest.mark.parametrize("profile", PyTorchProfile)
def test_sampled_request_sets_every_number(profile: PyTorchProfile) -> None:
    sent = sent_by(profile)
    expected = {"temperature": 0.5, "top_k": 7, "top_p": 0.75, "min_p": 0.25, "seed": 2**64 - 1, "max_tokens": 8}
    assert sent.items() >= expected.items()
    assert sent["include_stop_str_in_output"] is True
    assert sent["detokenize"] is False


@pytest.mark.parametrize("profile", PyTorchProfile)
def test_greedy_request_is_top_k_1(profile: PyTorchProfile) -> None:
    sent = sent_by(profile, replace(SAMPLED, is_greedy=True, top_k=0))
    assert sent["top_k"] == 1
    assert sent.get("temperature") in (None, 1.0)


def test_newer_releases_get_every_field_that_a_generation_config_could_fill_in() -> None:
    """Else the model's own repetition_penalty, say, would apply to requests that did not ask for it."""
    sent = sent_by(PyTorchProfile.V1_3, SamplingParams())
    assert {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"} <= sent.keys()
    assert sent["repetition_penalty"] == 1.0


def test_presence_and_frequency_penalties_do_not_count_the_prompt() -> None:
    sent = sent_by(PyTorchProfile.V1_3, replace(SAMPLED, presence_penalty=0.5), prompt_ids=(1, 2, 3, 4))
    assert sent["prompt_ignore_length"] == 4
    assert "prompt_ignore_length" not in sent_by(PyTorchProfile.V1_3)


@pytest.mark.parametrize(
    ("profile", "top", "value"),
    [(PyTorchProfile.V1_2, 0, 1), (PyTorchProfile.V1_3, 0, 0), (PyTorchProfile.V1_3, 5, 5)],
)
def test_least_number_of_logprobs_depends_on_the_release(profile: PyTorchProfile, top: int, value: int) -> None:
    assert sent_by(profile, return_logprobs=True, num_top_logprobs=top)["logprobs"] == value
    assert "logprobs" not in sent_by(profile)


@pytest.mark.parametrize("profile", PyTorchProfile)
@pytest.mark.parametrize(
    ("stop_token_ids", "expected"),
    [
        ((), {"end_id": 0, "ignore_eos": True}),
        ((2,), {"end_id": 2}),
        ((2, 3, 4), {"end_id": 2, "stop_token_ids": [3, 4]}),
    ],
)
def test_end_tokens(profile: PyTorchProfile, stop_token_ids: tuple[int, ...], expected: dict[str, Any]) -> None:
    sent = sent_by(profile, stop_token_ids=stop_token_ids)
    names = ("end_id", "ignore_eos", "stop_token_ids")
    assert {name: sent[name] for name in names if name in sent} == expected


def test_bad_words_of_one_token_and_of_several_are_banned(bench: TrtllmBench) -> None:
    words = ((10,), (11, 12), (13,))
    result, _ = bench.sent(make_request(sampling=SamplingParams(bad_words=words)))
    assert sorted(map(tuple, result.sampling_params._get_words("bad"))) == sorted(words)


def test_each_request_has_sampling_params_of_its_own(bench: TrtllmBench) -> None:
    """Upstream changes the object it gets."""
    request = make_request()
    first, second = (bench.sent(request)[0].sampling_params for _ in range(2))
    assert first is not second


def test_prompt_is_sent_as_token_ids_and_streams(bench: TrtllmBench) -> None:
    result, values = bench.sent(replace(make_request(prompt_ids=(10, 20, 30)), cache_salt=2**64 - 1))
    assert result.prompt_token_ids == [10, 20, 30]
    assert values["streaming"] is True
    assert values["cache_salt"] == str(2**64 - 1)
