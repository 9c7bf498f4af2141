"""Preprocess: stop strings, sampling params, and the fields beyond common sampling."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.protocol.capabilities import CAPABILITIES
from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.protocol.fields import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS
from llm_pipeline.stages.preprocess import PreprocessStage
from llm_pipeline.stages.validation import urgency_of
from llm_pipeline.text.tokenizer import Tokenizer
from tests.support.preprocess_requests import CONTEXT, PARAMETERS, VOCABULARY, refusal
from tests.support.sample_requests import make_manifest

# --- Stop strings ----------------------------------------------------------------------------------------------------


def test_stop_strings_at_the_limits_are_accepted(stage: PreprocessStage) -> None:
    stop = (*(str(number) for number in range(MAX_STOP_STRINGS - 1)), "é" * MAX_STOP_CHARACTERS)
    assert stage.prepare(replace(PARAMETERS, stop=stop)).text_options.stop == stop


@pytest.mark.parametrize(
    ("stop", "expected_message"),
    [
        (("x",) * (MAX_STOP_STRINGS + 1), str(MAX_STOP_STRINGS)),
        (("x", ""), "empty"),
        (("x" * (MAX_STOP_CHARACTERS + 1),), str(MAX_STOP_CHARACTERS)),
    ],
    ids=["too many", "empty", "too long"],
)
def test_bad_stop_strings_are_refused(stage: PreprocessStage, stop: tuple[str, ...], expected_message: str) -> None:
    error = refusal(stage, stop=stop)
    assert (error.code, error.param) == (ErrorCode.VALUE_OUT_OF_RANGE, "stop")
    assert expected_message in error.message


# --- Sampling --------------------------------------------------------------------------------------------------------


def test_omitted_fields_give_plain_sampling(stage: PreprocessStage) -> None:
    sampling = stage.prepare(PARAMETERS).sampling
    assert (sampling.is_greedy, sampling.temperature, sampling.top_k) == (False, 1.0, 0)
    assert (sampling.top_p, sampling.min_p) == (1.0, 0.0)


def test_values_in_range_are_passed_on(stage: PreprocessStage) -> None:
    sampling = stage.prepare(replace(PARAMETERS, temperature=2.0, top_k=40, top_p=0.5, min_p=1.0, seed=7)).sampling
    assert (sampling.is_greedy, sampling.temperature, sampling.top_k) == (False, 2.0, 40)
    assert (sampling.top_p, sampling.min_p, sampling.seed) == (0.5, 1.0, 7)


@pytest.mark.parametrize("requested", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_k": 1}], ids=str)
def test_greedy_has_three_forms_and_reaches_no_executor_as_zero(
    stage: PreprocessStage, requested: dict[str, Any]
) -> None:
    sampling = stage.prepare(replace(PARAMETERS, **requested)).sampling
    assert sampling.is_greedy
    assert sampling.temperature > 0
    assert sampling.top_p > 0


@pytest.mark.parametrize("top_k", [-1, 0, None])
def test_top_k_is_off(stage: PreprocessStage, top_k: int | None) -> None:
    sampling = stage.prepare(replace(PARAMETERS, top_k=top_k)).sampling
    assert (sampling.top_k, sampling.is_greedy) == (0, False)


def test_top_k_above_the_vocabulary_is_fine(stage: PreprocessStage) -> None:
    assert stage.prepare(replace(PARAMETERS, top_k=10 * VOCABULARY)).sampling.top_k == 10 * VOCABULARY


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-0.1, 2.1, math.nan, math.inf)),
        *(("top_p", value) for value in (-0.1, 1.1, math.nan)),
        *(("min_p", value) for value in (-0.1, 1.1, math.nan, -math.inf)),
        ("top_k", -2),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(stage: PreprocessStage, name: str, value: float) -> None:
    error = refusal(stage, **{name: value})
    assert (error.code, error.param) == (ErrorCode.VALUE_OUT_OF_RANGE, name)
    assert error.message.startswith(f"{name} is {value:g}. It must be ")


def test_without_a_seed_every_request_gets_another_random_one_of_64_bits(stage: PreprocessStage) -> None:
    seeds = {stage.prepare(PARAMETERS).sampling.seed for _ in range(64)}
    assert len(seeds) == 64
    assert max(seeds) >= 2**56  # all 64 below that: once in 2**512 runs
    assert max(seeds) < 2**64


@pytest.mark.parametrize(
    ("requested", "used"),
    [(0, 0), (7, 7), (2**63 - 1, 2**63 - 1), (-1, 2**64 - 1), (-(2**63), 2**63)],
    ids=["zero", "seven", "int64 max", "minus one", "int64 min"],
)
def test_a_seed_keeps_all_its_64_bits(stage: PreprocessStage, requested: int, used: int) -> None:
    assert stage.prepare(replace(PARAMETERS, seed=requested)).sampling.seed == used


# --- Fields beyond common sampling -----------------------------------------------------------------------------------


def test_bad_words_are_banned_as_they_are_and_after_a_space(stage: PreprocessStage, byte_level: Tokenizer) -> None:
    banned = stage.prepare(replace(PARAMETERS, bad_words=("fox", " dog"))).sampling.bad_words
    for text in ("fox", " fox", "dog", " dog"):
        assert tuple(byte_level.encode(text)) in banned


def test_biases_of_ids_and_words_add_up(stage: PreprocessStage, byte_level: Tokenizer) -> None:
    (first, *_) = byte_level.encode("fox")
    request = stage.prepare(replace(PARAMETERS, logit_bias=((first, 2.0), (999, -1.0)), bias_words=(("fox", 0.5),)))
    found = dict(request.sampling.logit_bias)
    assert (found[first], found[999]) == (2.5, -1.0)
    assert set(found) == {*byte_level.encode("fox"), 999}


@pytest.mark.parametrize(
    ("requested", "end_ids"),
    [
        ({}, (0, 2)),
        ({"stop_token_ids": (7, 2)}, (0, 2, 7)),
        ({"ignore_eos": True}, ()),
        ({"ignore_eos": True, "stop_token_ids": (2,)}, (2,)),
        ({"end_id": 5}, (5,)),
        ({"end_id": -1}, ()),
    ],
)
def test_stop_token_ids(stage: PreprocessStage, requested: dict[str, Any], end_ids: tuple[int, ...]) -> None:
    assert stage.prepare(replace(PARAMETERS, **requested)).stop_token_ids == end_ids


def test_stop_tokens_of_the_client_are_visible_like_stop_strings(stage: PreprocessStage) -> None:
    requested = replace(PARAMETERS, stop_token_ids=(7, 2))
    assert stage.prepare(requested).text_options.visible_stop_token_ids == ()
    assert stage.prepare(replace(requested, include_stop_str_in_output=True)).text_options.visible_stop_token_ids == (
        7,
    )


@pytest.mark.parametrize(("requested", "kept"), [(2, (2, 3)), (3, (1, 2, 3)), (9, (1, 2, 3)), (-1, (1, 2, 3))])
def test_a_prompt_keeps_its_last_tokens(stage: PreprocessStage, requested: int, kept: tuple[int, ...]) -> None:
    assert stage.prepare(replace(PARAMETERS, truncate_prompt_tokens=requested)).prompt_ids == kept


@pytest.mark.parametrize(
    ("side", "requested", "kept"),
    [
        ("left", 2, (2, 3)),
        ("right", 2, (1, 2)),
        ("right", 9, (1, 2, 3)),
        ("right", -1, (1, 2, 3)),
        ("right", None, (1, 2, 3)),
    ],
)
def test_a_prompt_is_cut_on_the_requested_side(
    stage: PreprocessStage, side: str, requested: int | None, kept: tuple[int, ...]
) -> None:
    parameters = replace(PARAMETERS, truncate_prompt_tokens=requested, truncation_side=side)
    assert stage.prepare(parameters).prompt_ids == kept


def test_truncation_on_the_right_leaves_room_for_the_completion(stage: PreprocessStage) -> None:
    ids = tuple(range(CONTEXT * 2))
    requested = replace(PARAMETERS, token_ids=ids, truncate_prompt_tokens=-1, truncation_side="right", max_tokens=10)
    assert stage.prepare(requested).prompt_ids == ids[: CONTEXT - 10]


def test_ids_of_the_prompt_are_returned_as_the_model_saw_them(stage: PreprocessStage) -> None:
    requested = replace(PARAMETERS, truncate_prompt_tokens=2, return_token_ids=True)
    for echo in (False, True):
        assert stage.prepare(replace(requested, echo=echo)).text_options.prompt_token_ids == (2, 3)
    assert stage.prepare(PARAMETERS).text_options.prompt_token_ids is None


def test_truncation_to_the_context_leaves_room_for_the_completion(stage: PreprocessStage) -> None:
    requested = replace(PARAMETERS, token_ids=tuple(range(CONTEXT * 2)), truncate_prompt_tokens=-1, max_tokens=10)
    assert stage.prepare(requested).prompt_ids == tuple(range(CONTEXT * 2))[-(CONTEXT - 10) :]


def test_add_special_tokens_false_omits_them(padded_library: tokenizers.Tokenizer) -> None:
    stage = PreprocessStage(Tokenizer(padded_library), make_manifest(), CAPABILITIES["cpu"], default_max_tokens=4)
    requested = replace(PARAMETERS, token_ids=None, prompt_text="ab")
    assert stage.prepare(requested).prompt_ids == (2, 0, 1)
    assert stage.prepare(replace(requested, add_special_tokens=False)).prompt_ids == (0, 1)


def test_nothing_is_generated_only_to_score_or_echo_a_prompt(stage: PreprocessStage) -> None:
    request = stage.prepare(replace(PARAMETERS, max_tokens=0, echo=True, num_logprobs=2))
    assert (request.max_tokens, request.return_prompt_logprobs, request.num_top_logprobs) == (0, True, 2)
    assert request.text_options.echo_ids == (1, 2, 3)
    full = replace(PARAMETERS, token_ids=(1,) * CONTEXT, max_tokens=0, echo=True)
    assert stage.prepare(full).max_tokens == 0  # a prompt may fill the context then
    assert refusal(stage, max_tokens=0).param == "max_tokens"


def test_a_text_prompt_is_echoed_as_it_was_written_unless_it_was_cut(stage: PreprocessStage) -> None:
    requested = replace(PARAMETERS, token_ids=None, prompt_text="Hello world", echo=True)
    assert stage.prepare(requested).text_options.echo_text == "Hello world"
    assert stage.prepare(replace(requested, truncate_prompt_tokens=1)).text_options.echo_text is None
    assert stage.prepare(replace(requested, echo=False)).text_options.echo_ids is None


def test_default_max_tokens_is_raised_to_min_tokens(stage: PreprocessStage) -> None:
    assert stage.prepare(replace(PARAMETERS, min_tokens=20)).max_tokens == 20


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=5))
def test_lower_priority_is_more_urgent_and_unset_is_zero(numbers: list[int]) -> None:
    ranked = [urgency_of(number) for number in sorted(numbers)]
    assert ranked == sorted(ranked, reverse=True)
    assert all(0 <= priority <= 1 for priority in ranked)
    assert urgency_of(None) == urgency_of(0) == 0.5


@pytest.mark.parametrize(
    ("requested", "param"),
    [
        ({"logit_bias": ((VOCABULARY, 1.0),)}, "logit_bias"),
        ({"logit_bias": ((1, 101.0),)}, "logit_bias"),
        ({"logit_bias": ((1, math.nan),)}, "logit_bias"),
        ({"stop_token_ids": (VOCABULARY,)}, "stop_token_ids"),
        ({"stop_token_ids": (1,) * 65}, "stop_token_ids"),
        ({"bad_words": ("",)}, "bad_words"),
        ({"bad_words": ("x" * 257,)}, "bad_words"),
        ({"bad_words": ("x",) * 65}, "bad_words"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncation_side": "middle"}, "truncation_side"),
        ({"truncation_side": ""}, "truncation_side"),
        ({"num_logprobs": 21}, "logprobs"),
        ({"num_logprobs": -1}, "logprobs"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": math.nan}, "frequency_penalty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty"),
        ({"repetition_penalty": 1e40}, "repetition_penalty"),
        ({"repetition_penalty": math.inf}, "repetition_penalty"),
    ],
)
def test_values_out_of_range_are_refused_by_name(stage: PreprocessStage, requested: dict[str, Any], param: str) -> None:
    error = refusal(stage, **requested)
    assert (error.code, error.param) == (ErrorCode.VALUE_OUT_OF_RANGE, param)


def test_unsupported_fields_are_rejected_before_the_executor_gets_the_request(byte_level: Tokenizer) -> None:
    stage = PreprocessStage(byte_level, make_manifest(), CAPABILITIES["scripted"], default_max_tokens=4)
    error = refusal(stage, num_logprobs=0)
    assert (error.code, error.param) == (ErrorCode.UNSUPPORTED_PARAMETER, "logprobs")
