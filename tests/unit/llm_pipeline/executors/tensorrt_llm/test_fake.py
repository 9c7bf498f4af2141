"""The fake itself: it has every executor symbol of the API facts, and rejects what upstream's binding rejects."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.installed import fake_tensorrt_llm


@pytest.fixture(scope="module")
def trtllm() -> Iterator[Any]:
    with fake_tensorrt_llm() as bindings:
        yield bindings


def test_fake_has_every_class_and_enum_of_the_facts(trtllm: Any) -> None:
    from tensorrt_llm.api import BINDINGS  # type: ignore[import-not-found, unused-ignore]

    assert len(BINDINGS) > 55
    for name, facts in BINDINGS.items():
        if facts["kind"] in ("class", "enum") and name != "DecodingMode":  # no constructor is bound; we do not use it
            symbol: Any = trtllm
            for part in name.split("."):
                symbol = getattr(symbol, part)
            assert isinstance(symbol, type), name
        if facts["kind"] == "enum":
            assert issubclass(symbol, enum.Enum)
            assert [value.name for value in symbol] == facts["values"]


def test_every_default_of_the_facts_can_be_evaluated(trtllm: Any) -> None:
    assert trtllm.ExecutorConfig().kv_cache_config.enable_block_reuse is True
    assert trtllm.Request([1], 1).sampling_config.beam_width == 1
    assert trtllm.ParallelConfig().communication_mode is trtllm.CommunicationMode.LEADER
    assert trtllm.SchedulerConfig().capacity_scheduler_policy is trtllm.CapacitySchedulerPolicy.GUARANTEED_NO_EVICT


REJECTED: dict[str, Callable[[Any], Any]] = {
    "unknown keyword": lambda api: api.Request([1], 1, stop=["x"]),
    "unknown keyword of a config": lambda api: api.ExtendedRuntimePerfKnobConfig(cuda_graph_mode=True),
    "missing argument": lambda api: api.Request([1]),
    "positional argument that is keyword-only": lambda api: api.SamplingConfig(1, 50),
    "None for a required value": lambda api: api.Request([1], None),
    "None for a flag": lambda api: api.Request([1], 1, streaming=None),
    "None for a float": lambda api: api.Request([1], 1, priority=None),
    "text for a number": lambda api: api.SamplingConfig(top_k="5"),
    "fraction for an integer": lambda api: api.SamplingConfig(top_k=5.0),
    "boolean for an integer": lambda api: api.Request([1], True),
    "integer for a boolean": lambda api: api.Request([1], 1, streaming=1),
    "number for a timedelta": lambda api: api.Request([1], 1, allotted_time_ms=100),
    "text for tokens": lambda api: api.Request("abc", 1),
    "flat stop words": lambda api: api.Request([1], 1, stop_words=[2, 3]),
    "list for a tensor": lambda api: api.Request([1], 1, embedding_bias=[0.0]),
    "another class": lambda api: api.Request([1], 1, sampling_config=api.OutputConfig()),
    "negative seed": lambda api: api.SamplingConfig(seed=-1),
    "seed of 65 bits": lambda api: api.SamplingConfig(seed=2**64),
    "token id of 33 bits": lambda api: api.Request([2**31], 1),
    "executor without a config": lambda api: api.Executor(Path("x"), api.ModelType.DECODER_ONLY),
}


@pytest.mark.parametrize("call", REJECTED.values(), ids=REJECTED.keys())
def test_call_that_does_not_fit_the_signature_is_rejected(trtllm: Any, call: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError):
        call(trtllm)


OUT_OF_RANGE: list[dict[str, Any]] = [
    {"top_p": 0.0},
    {"top_p": 1.5},
    {"top_k": -1},
    {"temperature": -0.1},
    {"min_p": 1.5},
    {"repetition_penalty": 0.0},
    {"min_tokens": -1},
    {"beam_width": 0},
    {"num_return_sequences": 0},
]


@pytest.mark.parametrize("values", OUT_OF_RANGE, ids=str)
def test_sampling_value_out_of_range_is_rejected(trtllm: Any, values: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError):
        trtllm.SamplingConfig(**values)


ACCEPTED: dict[str, Callable[[Any], Any]] = {
    "whole number for a float": lambda api: api.SamplingConfig(temperature=1),
    "tuple for a list": lambda api: api.Request((1, 2), 1),
    "timedelta": lambda api: api.Request([1], 1, allotted_time_ms=timedelta(seconds=1)),
    "a seed of 64 bits": lambda api: api.SamplingConfig(seed=2**64 - 1),
    "None for an optional value": lambda api: api.Request([1], 1, stop_words=None),
}


@pytest.mark.parametrize("call", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_call_that_fits_the_signature_is_accepted(trtllm: Any, call: Callable[[Any], Any]) -> None:
    call(trtllm)


def test_attributes_have_the_access_of_the_binding(trtllm: Any) -> None:
    request = trtllm.Request([1], 1)
    request.streaming = True  # rw
    request.our_own = 5  # the class takes extra attributes
    assert (request.streaming, request.our_own) == (True, 5)
    with pytest.raises(AttributeError):
        request.max_tokens = 2  # ro
    with pytest.raises(AttributeError):
        _ = request.num_return_sequences  # can be set, but not read
    with pytest.raises(AttributeError):
        trtllm.SamplingConfig().top_q = 1


def test_fake_is_removed_afterwards() -> None:
    names = ("tensorrt_llm", "tensorrt_llm.bindings.executor", "torch")
    before = [sys.modules.get(name) for name in names]
    with fake_tensorrt_llm():
        assert "tensorrt_llm" in sys.modules
    assert [sys.modules.get(name) for name in names] == before
