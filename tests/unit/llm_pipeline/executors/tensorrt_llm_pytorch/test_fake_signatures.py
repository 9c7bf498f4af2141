"""The LLM API's stand-in has upstream's signatures, in both releases, and rejects what upstream rejects."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.llm_api import LlmApi, llm_api

RELEASES = {"1.2": "1.2.1", "1.3": "1.3.0"}


@pytest.fixture(params=RELEASES)
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LlmApi]:
    with llm_api(tmp_path, version=RELEASES[request.param]) as opened:
        yield opened


@pytest.fixture
def old(tmp_path: Path) -> Iterator[LlmApi]:
    with llm_api(tmp_path) as opened:
        yield opened


@pytest.fixture
def new(tmp_path: Path) -> Iterator[LlmApi]:
    with llm_api(tmp_path, version="1.3.0rc26") as opened:
        yield opened


def symbol(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(__import__(module, fromlist=[attribute]), attribute)


def test_every_symbol_of_the_facts_is_where_upstream_has_it(api: LlmApi) -> None:
    from tensorrt_llm.llm_facts import SYMBOLS, facts_of  # type: ignore[import-not-found, unused-ignore]

    assert len(SYMBOLS) >= 15
    for name, symbols in SYMBOLS.items():
        found, facts = symbol(name), facts_of(name)
        assert isinstance(found, type), name
        if symbols["kind"] == "enum":
            assert [item.value for item in found] == facts["values"]  # type: ignore[attr-defined]
        if symbols["kind"] == "dataclass":
            parameters = list(inspect.signature(found).parameters)
            assert parameters == [item["name"] for item in facts["params"]]
        if symbols["kind"] == "model":
            fields = found.model_fields  # type: ignore[attr-defined]
            assert list(fields) == [item["name"].lstrip("_") for item in facts["params"]]


def test_llm_has_the_methods_and_properties_of_the_facts(api: LlmApi) -> None:
    from tensorrt_llm.llm_facts import facts_of

    facts = facts_of("tensorrt_llm.LLM")
    for name, parameters in facts["methods"].items():
        method = getattr(api.LLM, name)
        if name != "generate_async":  # which takes anything, and binds it to the facts' parameters
            assert [item["name"] for item in parameters] == list(inspect.signature(method).parameters)[1:]
    with api.open() as llm:
        assert all(hasattr(llm, name) for name in facts["properties"])
        result = llm.generate_async([5, 6, 7], api.params())
        for name in facts_of("tensorrt_llm.llmapi.RequestOutput")["properties"]:
            assert hasattr(result, name)
        result.result()


def test_every_release_names_its_sources() -> None:
    import json

    path = Path(__file__).parents[4] / "data" / "tensorrt_llm_llm_api.json"
    for name, symbols in json.loads(path.read_text())["symbols"].items():
        for facts in symbols["releases"].values():
            assert facts["source"].startswith("tensorrt_llm/"), name
            assert facts["source_commit"], name


REJECTED: dict[str, tuple[type[Exception], Callable[[LlmApi], Any]]] = {
    "unknown sampling field": (TypeError, lambda api: api.SamplingParams(top_q=1)),
    "positional sampling field": (TypeError, lambda api: api.SamplingParams(2)),
    "assignment of an unknown sampling field": (AttributeError, lambda api: setattr(api.params(), "top_q", 1)),
    "top_p above 1": (ValueError, lambda api: api.params(top_p=1.5)),
    "negative top_k": (ValueError, lambda api: api.params(top_k=-1)),
    "negative temperature": (ValueError, lambda api: api.params(temperature=-0.1)),
    "text for a number that is compared": (TypeError, lambda api: api.params(top_k="5")),
    "two guides": (
        ValueError,
        lambda api: api.params(guided_decoding=api.llmapi.GuidedDecodingParams(regex="a", json_object=True)),
    ),
    "adapter without its directory": (ValueError, lambda api: api.executor.LoRARequest("a", 1, "/nowhere")),
    "unknown keyword of LLM": (ValueError, lambda api: api.open(max_batch=3)),
    "wrong type in LLM": (ValidationError, lambda api: api.open(max_batch_size="many")),
    "unknown field of KvCacheConfig": (ValidationError, lambda api: api.llmapi.KvCacheConfig(max_token=1)),
    "fraction above 1": (ValidationError, lambda api: api.llmapi.KvCacheConfig(free_gpu_memory_fraction=1.5)),
    "unknown policy": (ValidationError, lambda api: api.llmapi.SchedulerConfig(capacity_scheduler_policy="NONE")),
    "unknown guide backend": (ValidationError, lambda api: api.open(guided_decoding_backend="outlines")),
    "stream_interval 0": (ValidationError, lambda api: api.open(stream_interval=0)),
    "directory without a model": (OSError, lambda api: api.open(model=str(api.folder / "nothing"))),
    "more GPUs than there are": (RuntimeError, lambda api: api.open(tensor_parallel_size=2)),
    "guides without a tokenizer": (RuntimeError, lambda api: api.open(guided_decoding_backend="xgrammar")),
}


@pytest.mark.parametrize(("error", "call"), REJECTED.values(), ids=REJECTED.keys())
def test_construction_that_does_not_fit_is_rejected(
    api: LlmApi, error: type[Exception], call: Callable[[LlmApi], Any]
) -> None:
    with pytest.raises(error):
        call(api)


CALLS: dict[str, tuple[type[Exception], Callable[[LlmApi, Any], Any]]] = {
    "unknown keyword": (TypeError, lambda api, llm: llm.generate_async([5], api.params(), stream=True)),
    "no end_id and no tokenizer": (ValueError, lambda api, llm: llm.generate_async([5], api.SamplingParams())),
    "no parameters and no tokenizer": (ValueError, lambda api, llm: llm.generate_async([5])),
    "a dictionary of parameters": (TypeError, lambda api, llm: llm.generate_async([5], {"end_id": 2})),
    "inputs without a prompt": (TypeError, lambda api, llm: llm.generate_async({"ids": [5]}, api.params())),
    "a tuple of tokens": (TypeError, lambda api, llm: llm.generate_async((5, 6), api.params())),
    "text without a tokenizer": (ValueError, lambda api, llm: llm.generate_async("hello", api.params())),
    "a salt that is a number": (AttributeError, lambda api, llm: llm.generate_async([5], api.params(), cache_salt=5)),
    "stop strings beside end_id": (RuntimeError, lambda api, llm: llm.generate_async([5], api.params(stop=["x"]))),
    "a fraction for a token id": (RuntimeError, lambda api, llm: llm.generate_async([5, 6.5], api.params())),
    "a fraction for an integer": (RuntimeError, lambda api, llm: llm.generate_async([5], api.params(min_tokens=1.5))),
    "top_p 0": (RuntimeError, lambda api, llm: llm.generate_async([5], api.params(top_p=0.0))),
    "a negative seed": (RuntimeError, lambda api, llm: llm.generate_async([5], api.params(seed=-1))),
    "a prompt that fills the context": (RuntimeError, lambda api, llm: llm.generate_async([5] * 64, api.params())),
    "bias that is no tensor": (RuntimeError, lambda api, llm: llm.generate_async([5], _with_bias(api, [0.5]))),
}


def _with_bias(api: LlmApi, bias: Any) -> Any:
    params = api.params()
    params.embedding_bias = bias
    return params


@pytest.mark.parametrize(("error", "call"), CALLS.values(), ids=CALLS.keys())
def test_request_that_does_not_fit_is_rejected(
    api: LlmApi, error: type[Exception], call: Callable[[LlmApi, Any], Any]
) -> None:
    with api.open() as llm, pytest.raises(error):
        call(api, llm)


def test_a_prompt_over_one_step_is_rejected_without_chunked_prefill(api: LlmApi) -> None:
    with api.open(max_num_tokens=4) as llm, pytest.raises(ValueError, match=r"should not exceed max_num_tokens \(4\)"):
        llm.generate_async([5] * 5, api.params())
    with api.open(max_num_tokens=4, enable_chunked_prefill=True) as llm:
        assert llm.generate_async([5] * 5, api.params()).result().finished


def test_priority_is_unknown_before_1_3(old: LlmApi) -> None:
    with old.open() as llm, pytest.raises(TypeError, match="priority"):
        llm.generate_async([5], old.params(), priority=0.9)


def test_the_sampler_is_no_choice_from_1_3_on(new: LlmApi) -> None:
    with pytest.raises(ValueError, match="sampler_type"):
        new.open(sampler_type="TRTLLMSampler")
    with pytest.raises(ValueError, match="min_p"):
        new.params(min_p=1.5)
    with pytest.raises(ValueError, match="less than or equal to 100"):
        new.params(logprobs=101)
    with pytest.raises(ValueError, match="temperature"):
        new.params(temperature=float("nan"))


def test_1_2_takes_values_that_later_releases_refuse(old: LlmApi) -> None:
    old.params(min_p=1.5)
    old.params(logprobs=101)
    assert old.params(temperature=float("nan")).temperature != old.params().temperature


def test_the_default_of_max_tokens_is_32(api: LlmApi) -> None:
    with api.open() as llm:
        params = api.SamplingParams(end_id=2)
        assert llm.generate_async([5, 6], params).result().outputs[0].length == 32
