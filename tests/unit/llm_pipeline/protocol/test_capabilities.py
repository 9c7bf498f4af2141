"""Capabilities: every executor supports a field beyond common sampling or rejects it by name."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest

from llm_pipeline.executors.tensorrt_llm.request_limits import RequestLimits
from llm_pipeline.protocol.capabilities import (
    CAPABILITIES,
    REQUEST_EXTENSIONS,
    Capabilities,
    check_supported,
)
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.executor_names import ExecutorName
from llm_pipeline.protocol.fields import SAMPLING_EXTENSIONS
from llm_pipeline.protocol.messages import GenerationRequest, Guide, GuideType, SamplingParams
from llm_pipeline.protocol.model_info import ModelInfo
from llm_pipeline.runtime.settings import PipelineSettings, capabilities_of
from tests.fakes.gpu_engine import make_gpu_engine
from tests.support.pytorch_manifests import make_pytorch_manifest
from tests.support.sample_requests import make_manifest, make_request

COMMON_SAMPLING = {"is_greedy", "temperature", "top_k", "top_p", "min_p", "seed"}
COMMON_REQUEST = {"key", "prompt_ids", "max_tokens", "sampling", "stop_token_ids", "text_options"}
IGNORABLE = {"stop_token_sequences", "cache_salt", "tenant", "tenant_share", "guide_address", "trace"}

EXTENSION_CASES: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"sampling": SamplingParams(repetition_penalty=1.1)},
    "presence_penalty": {"sampling": SamplingParams(presence_penalty=0.5)},
    "frequency_penalty": {"sampling": SamplingParams(frequency_penalty=-0.5)},
    "min_tokens": {"sampling": SamplingParams(min_tokens=3)},
    "logit_bias": {"sampling": SamplingParams(logit_bias=((5, 1.0),))},
    "bad_words": {"sampling": SamplingParams(bad_words=((5,),))},
    "return_logprobs": {"return_logprobs": True},
    "num_top_logprobs": {"return_logprobs": True, "num_top_logprobs": 1},
    "return_prompt_logprobs": {"return_logprobs": True, "return_prompt_logprobs": True},
    "guide": {"guide": Guide(GuideType.JSON), "stop_token_ids": (2,)},
    "urgency": {"urgency": 0.9},
    "time_limit_s": {"time_limit_s": 3.0},
    "adapter": {"adapter": "support-agent"},
}


def asking(**fields_of_request: Any) -> GenerationRequest:
    return replace(make_request(), **fields_of_request)


def test_every_field_of_the_messages_is_common_or_an_extension_or_ignorable() -> None:
    """A field without an entry would be ignored silently."""
    assert {field.name for field in fields(SamplingParams)} == COMMON_SAMPLING | set(SAMPLING_EXTENSIONS)
    request_fields = {field.name for field in fields(GenerationRequest)}
    assert request_fields == COMMON_REQUEST | set(REQUEST_EXTENSIONS) | IGNORABLE
    assert set(EXTENSION_CASES) == {*SAMPLING_EXTENSIONS, *REQUEST_EXTENSIONS}


NOTHING = Capabilities("nothing")
EVERYTHING = Capabilities(
    "everything",
    sampling=SAMPLING_EXTENSIONS,
    priority=True,
    time_limit=True,
    prompt_logprobs=True,
    logprobs=20,
    guides=tuple(GuideType),
    lora=True,
)


def test_plain_request_needs_no_extension() -> None:
    check_supported(make_request(), NOTHING)


@pytest.mark.parametrize("name", EXTENSION_CASES)
def test_unsupported_extension_is_rejected_with_the_clients_name(name: str) -> None:
    with pytest.raises(PipelineError) as caught:
        check_supported(asking(**EXTENSION_CASES[name]), NOTHING)
    params = {*SAMPLING_EXTENSIONS, *(extension.param for extension in REQUEST_EXTENSIONS.values())}
    assert caught.value.code is ErrorCode.UNSUPPORTED_PARAMETER
    assert caught.value.param in params
    check_supported(asking(**EXTENSION_CASES[name]), EVERYTHING)


@pytest.mark.parametrize("count", [0, 1, 20])
def test_number_of_logprobs_is_limited_by_the_executor(count: int) -> None:
    request = asking(return_logprobs=True, num_top_logprobs=count)
    check_supported(request, replace(NOTHING, logprobs=count))
    if count:
        with pytest.raises(PipelineError, match=f"at most {count - 1} ") as caught:
            check_supported(request, replace(NOTHING, logprobs=count - 1))
        assert caught.value.param == "logprobs"


def pytorch_capabilities(version: str, *, tp: int = 1, pp: int = 1, **settings: Any) -> Capabilities:
    return capabilities_of(
        PipelineSettings(engine_dir=Path(), executor="tensorrt_llm_pytorch", **settings),
        make_pytorch_manifest(version, tp=tp, pp=pp),
    )


@pytest.mark.parametrize(
    ("version", "refused"),
    [
        ("1.2.1", {"num_top_logprobs", "return_prompt_logprobs", "guide", "adapter"}),
        ("1.3.0rc26", {"min_tokens", "guide", "adapter"}),
        ("1.4.0rc4", {"min_tokens", "guide", "adapter"}),
    ],
)
def test_pytorch_runtime_refuses_what_the_sampler_of_its_release_ignores(version: str, refused: set[str]) -> None:
    capabilities = pytorch_capabilities(version)
    for name, fields_of_request in EXTENSION_CASES.items():
        if name not in refused:
            check_supported(asking(**fields_of_request), capabilities)
            continue
        with pytest.raises(PipelineError) as caught:
            check_supported(asking(**fields_of_request), capabilities)
        assert caught.value.code is ErrorCode.UNSUPPORTED_PARAMETER


def test_pytorch_runtime_has_structural_tags_with_xgrammar_alone() -> None:
    guides = {
        backend: pytorch_capabilities("1.3.0", trtllm_guided_decoding=backend).guides
        for backend in ("off", "xgrammar", "llguidance")
    }
    assert guides["off"] == ()
    assert set(guides["xgrammar"]) - set(guides["llguidance"]) == {GuideType.STRUCTURAL_TAG}


@pytest.mark.parametrize(("pp", "has_guides"), [(1, True), (2, False)])
def test_model_directory_of_several_stages_has_no_guides(pp: int, has_guides: bool) -> None:
    assert bool(pytorch_capabilities("1.3.0", pp=pp, trtllm_guided_decoding="xgrammar").guides) == has_guides


@pytest.mark.parametrize(
    ("version", "tp", "has_bias"), [("1.2.1", 1, True), ("1.2.1", 8, True), ("1.2.1", 3, False), ("1.3.0", 3, True)]
)
def test_logit_bias_of_older_releases_needs_a_vocabulary_that_the_gpus_divide(
    version: str, tp: int, has_bias: bool
) -> None:
    """The vocabulary has 1,000 tokens."""
    assert ("logit_bias" in pytorch_capabilities(version, tp=tp).sampling) == has_bias


def test_pytorch_runtime_has_lora_if_there_are_adapters() -> None:
    assert not pytorch_capabilities("1.3.0").lora
    assert pytorch_capabilities("1.3.0", trtllm_lora_adapters='{"a": "/adapters/a"}').lora


def test_every_executor_has_capabilities() -> None:
    assert set(CAPABILITIES) == set(get_args(ExecutorName))
    assert all(row.executor == name for name, row in CAPABILITIES.items())


@pytest.mark.parametrize("row", CAPABILITIES.values(), ids=str)
def test_model_info_survives_json(row: Capabilities) -> None:
    description = ModelInfo(8192, 1000, 16, True, row)
    assert ModelInfo.from_json(description.to_json()) == description


@pytest.mark.parametrize(("backend", "has_guides"), [("off", False), ("xgrammar", True)])
def test_disabled_guided_decoding_is_not_a_capability(backend: str, has_guides: bool) -> None:
    settings = PipelineSettings(engine_dir=Path(), executor="tensorrt_llm", trtllm_guided_decoding=backend)
    assert bool(capabilities_of(settings, make_manifest()).guides) == has_guides


@pytest.mark.parametrize(("pp", "has_guides"), [(1, True), (2, False)])
def test_an_engine_of_several_stages_has_no_guides(tmp_path: Path, pp: int, has_guides: bool) -> None:
    manifest = make_gpu_engine(tmp_path, pp=pp)
    settings = PipelineSettings(engine_dir=tmp_path, executor="tensorrt_llm", trtllm_guided_decoding="xgrammar")
    assert bool(capabilities_of(settings, manifest).guides) == has_guides


def test_stop_sequence_hint_and_cache_salt_are_ignorable() -> None:
    check_supported(asking(stop_token_sequences=((5, 6),), cache_salt=7), NOTHING)


ADMISSION = RequestLimits(vocab_size=100, max_seq_len=64, max_prompt_tokens=32, has_guided_decoding=True)


@pytest.mark.parametrize(
    "name", sorted(set(EXTENSION_CASES) - {"num_top_logprobs", "return_prompt_logprobs", "adapter"})
)
def test_tensorrt_llm_supports_most_extensions(name: str) -> None:
    ADMISSION.check(asking(**EXTENSION_CASES[name]))


@pytest.mark.parametrize("name", ["num_top_logprobs", "return_prompt_logprobs"])
def test_tensorrt_llm_returns_the_chosen_tokens_logprob_only(name: str) -> None:
    with pytest.raises(PipelineError) as caught:
        ADMISSION.check(asking(**EXTENSION_CASES[name]))
    assert caught.value.code is ErrorCode.UNSUPPORTED_PARAMETER


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("max_tokens", {"max_tokens": 0}),
        ("prompt", {"prompt_ids": ()}),
        ("prompt", {"prompt_ids": (100,)}),
        ("prompt", {"prompt_ids": (-1,)}),
        ("repetition_penalty", {"sampling": SamplingParams(repetition_penalty=0.0)}),
        ("repetition_penalty", {"sampling": SamplingParams(repetition_penalty=float("nan"))}),
        ("presence_penalty", {"sampling": SamplingParams(presence_penalty=float("inf"))}),
        ("frequency_penalty", {"sampling": SamplingParams(frequency_penalty=float("nan"))}),
        ("min_tokens", {"sampling": SamplingParams(min_tokens=-1)}),
        ("logit_bias", {"sampling": SamplingParams(logit_bias=((100, 1.0),))}),
        ("logit_bias", {"sampling": SamplingParams(logit_bias=((5, float("nan")),))}),
        ("bad_words", {"sampling": SamplingParams(bad_words=((),))}),
        ("bad_words", {"sampling": SamplingParams(bad_words=((5, 100),))}),
        ("stop", {"stop_token_sequences": ((),)}),
        ("guide", {"guide": Guide(GuideType.REGEX)}),
        ("priority", {"urgency": 1.5}),
        ("time_limit_s", {"time_limit_s": 0.0}),
        ("cache_salt", {"cache_salt": -1}),
    ],
)
def test_tensorrt_llm_rejects_values_out_of_range_by_name(param: str, fields: dict[str, Any]) -> None:
    with pytest.raises(PipelineError) as caught:
        ADMISSION.check(asking(**fields))
    assert (caught.value.code, caught.value.param) == (ErrorCode.VALUE_OUT_OF_RANGE, param)
