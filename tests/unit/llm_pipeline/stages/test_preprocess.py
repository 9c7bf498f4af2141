"""preprocess: the contract's checks, clamps and defaults, one request at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.protocol.capabilities import CAPABILITIES
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.fields import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS
from llm_pipeline.protocol.messages import GUIDE_PARAM, CompletionParameters, Guide, GuideType
from llm_pipeline.stages.preprocess import PreprocessStage
from llm_pipeline.stages.validation import check_guided, urgency_of
from llm_pipeline.text.tokenizer import Tokenizer
from tests.support.sample_requests import make_manifest

CONTEXT = 64
VOCABULARY = 1000
PARAMETERS = CompletionParameters(request_key="key", request_id="id", token_ids=(1, 2, 3))


class Unused(Tokenizer):
    """A tokenizer for requests that must be answered without tokenizing anything."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        raise AssertionError(f"{len(text)} characters were tokenized")


@pytest.fixture
def stage(byte_level: Tokenizer) -> PreprocessStage:
    manifest = make_manifest(context_length=CONTEXT, vocab_size=VOCABULARY, end_ids=(0, 2))
    return PreprocessStage(byte_level, manifest, CAPABILITIES["cpu"], default_max_tokens=16)


def refusal(stage: PreprocessStage, **requested: Any) -> PipelineError:
    with pytest.raises(PipelineError) as caught:
        stage.prepare(replace(PARAMETERS, **requested))
    return caught.value


def test_a_text_prompt_becomes_the_tokenizers_ids(stage: PreprocessStage, byte_level: Tokenizer) -> None:
    request = stage.prepare(replace(PARAMETERS, token_ids=None, prompt_text="Hello world"))
    assert list(request.prompt_ids) == byte_level.encode("Hello world")
    assert request.text_options.prompt_tokens == len(request.prompt_ids)
    assert request.text_options.context_ids == ()  # text never ends inside a character


def test_a_prompt_of_ids_is_taken_as_it_is(stage: PreprocessStage) -> None:
    request = stage.prepare(replace(PARAMETERS, token_ids=(9, 8, 7, 6, 5)))
    assert request.prompt_ids == (9, 8, 7, 6, 5)
    assert request.text_options.context_ids == (8, 7, 6, 5)  # they may end inside a character


def test_the_request_keeps_its_key_and_gets_the_models_end_ids(stage: PreprocessStage) -> None:
    request = stage.prepare(PARAMETERS)
    assert (request.key, request.stop_token_ids) == ("key", (0, 2))


def test_text_options_travel_along(stage: PreprocessStage) -> None:
    text = stage.prepare(
        replace(
            PARAMETERS,
            stop=("a", "b"),
            include_stop_str_in_output=True,
            skip_special_tokens=False,
            return_token_ids=True,
            stream=True,
            max_tokens=5,
        )
    ).text_options
    assert (text.stop, text.include_stop_str_in_output, text.skip_special_tokens) == (("a", "b"), True, False)
    assert (text.return_token_ids, text.stream, text.max_tokens, text.prompt_tokens) == (True, True, 5, 3)


@pytest.mark.parametrize(
    ("prompt", "is_text_start"), [((0, 1), True), ((0, 50), False), ((50,), False)], ids=["special", "mixed", "text"]
)
def test_a_prompt_of_special_tokens_only_holds_no_text(
    stage: PreprocessStage, prompt: tuple[int, ...], is_text_start: bool
) -> None:
    assert stage.prepare(replace(PARAMETERS, token_ids=prompt)).text_options.is_text_start is is_text_start


# --- Guides ----------------------------------------------------------------------------------------------------------


def test_a_guided_text_ends_with_the_first_of_the_models_end_tokens(stage: PreprocessStage) -> None:
    """The guide knows no other, so with another one the text would never end."""
    guided = replace(PARAMETERS, guide=Guide(GuideType.JSON))
    assert stage.prepare(replace(guided, end_id=0)).stop_token_ids == (0,)
    assert refusal(stage, guide=guided.guide, end_id=2).param == "end_id"


def test_a_guide_is_refused_for_a_model_without_an_end_token() -> None:
    with pytest.raises(PipelineError, match="no end token") as caught:
        check_guided(PARAMETERS, ())
    assert (caught.value.code, caught.value.param) == (ErrorCode.UNSUPPORTED_PARAMETER, GUIDE_PARAM)


# --- Prompts that are refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ({"prompt_text": None, "token_ids": None}, ErrorCode.MISSING_REQUIRED_PARAMETER),
        ({"prompt_text": "a", "token_ids": (1,)}, ErrorCode.MISSING_REQUIRED_PARAMETER),
        ({"prompt_text": "", "token_ids": None}, ErrorCode.VALUE_OUT_OF_RANGE),
        ({"token_ids": ()}, ErrorCode.VALUE_OUT_OF_RANGE),
    ],
    ids=["neither", "both", "empty text", "no ids"],
)
def test_there_must_be_exactly_one_prompt_that_is_not_empty(
    stage: PreprocessStage, prompt: dict[str, Any], code: ErrorCode
) -> None:
    error = refusal(stage, **prompt)
    assert (error.code, error.param) == (code, "prompt")


def test_text_without_a_single_token_is_an_empty_prompt() -> None:
    nothing = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    stage = PreprocessStage(Tokenizer(nothing), make_manifest(), CAPABILITIES["cpu"], default_max_tokens=16)
    assert refusal(stage, token_ids=None, prompt_text="zzz").code is ErrorCode.VALUE_OUT_OF_RANGE


@pytest.mark.parametrize("wrong", [-1, VOCABULARY, 2**31 - 1], ids=["negative", "one too high", "int32 max"])
def test_an_id_outside_the_vocabulary_is_named_with_the_range(stage: PreprocessStage, wrong: int) -> None:
    error = refusal(stage, token_ids=(1, wrong, 2))
    assert (error.code, error.param) == (ErrorCode.VALUE_OUT_OF_RANGE, "prompt")
    assert str(wrong) in error.message
    assert f"0 to {VOCABULARY - 1}" in error.message


def test_the_last_id_of_the_vocabulary_is_fine(stage: PreprocessStage) -> None:
    assert stage.prepare(replace(PARAMETERS, token_ids=(0, VOCABULARY - 1))).prompt_ids == (0, VOCABULARY - 1)


def test_text_can_not_smuggle_in_a_token_that_the_engine_has_no_row_for(byte_level: Tokenizer) -> None:
    """A tokenizer.json may have added tokens beyond the model's output matrix."""
    highest = max(byte_level.encode("<tool call>"))
    stage = PreprocessStage(byte_level, make_manifest(vocab_size=highest), CAPABILITIES["cpu"], default_max_tokens=16)
    assert refusal(stage, token_ids=None, prompt_text="a<tool call>").code is ErrorCode.VALUE_OUT_OF_RANGE


# --- The context -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [CONTEXT, CONTEXT + 1, 5 * CONTEXT])
def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers(stage: PreprocessStage, length: int) -> None:
    error = refusal(stage, token_ids=(1,) * length)
    assert (error.code, error.param) == (ErrorCode.CONTEXT_LENGTH_EXCEEDED, "prompt")
    assert f"context is {CONTEXT} tokens" in error.message
    assert f"prompt has {length}" in error.message


def test_a_prompt_may_leave_room_for_one_token(stage: PreprocessStage) -> None:
    assert stage.prepare(replace(PARAMETERS, token_ids=(1,) * (CONTEXT - 1))).max_tokens == 1


def test_huge_text_is_refused_without_being_tokenized(byte_level_library: tokenizers.Tokenizer) -> None:
    """Tokenizing megabytes only to refuse them would delay the prompts of other requests."""
    stage = PreprocessStage(
        Unused(byte_level_library), make_manifest(context_length=CONTEXT), CAPABILITIES["cpu"], default_max_tokens=16
    )
    error = refusal(stage, token_ids=None, prompt_text="word " * 100_000)
    assert error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert f"context is {CONTEXT} tokens" in error.message


@pytest.mark.parametrize(
    ("prompt_tokens", "requested", "granted"),
    [(3, 1, 1), (3, 61, 61), (3, 62, 61), (3, CONTEXT, 61), (60, 16, 4)],
    ids=["one", "exactly the room", "one too many", "the whole context", "little room"],
)
def test_max_tokens_is_clamped_to_the_room_that_is_left(
    stage: PreprocessStage, prompt_tokens: int, requested: int, granted: int
) -> None:
    request = stage.prepare(replace(PARAMETERS, token_ids=(1,) * prompt_tokens, max_tokens=requested))
    assert (request.max_tokens, request.text_options.max_tokens) == (granted, granted)


@pytest.mark.parametrize("requested", [0, -1, -(2**31)])
def test_max_tokens_below_one_is_refused(stage: PreprocessStage, requested: int) -> None:
    error = refusal(stage, max_tokens=requested)
    assert (error.code, error.param) == (ErrorCode.VALUE_OUT_OF_RANGE, "max_tokens")


@pytest.mark.parametrize("requested", [CONTEXT + 1, 1_234_567, 2**31 - 1])
def test_max_tokens_above_the_context_is_refused_with_both_numbers(stage: PreprocessStage, requested: int) -> None:
    error = refusal(stage, max_tokens=requested)
    assert (error.code, error.param) == (ErrorCode.VALUE_OUT_OF_RANGE, "max_tokens")
    assert f"max_tokens is {requested}." in error.message  # digit by digit, not 1.23457e+06
    assert str(CONTEXT) in error.message


@pytest.mark.parametrize(
    ("default", "prompt_tokens", "granted"), [(16, 3, 16), (16, 60, 4), (0, 3, 61)], ids=["16", "clamped", "0 fills"]
)
def test_without_max_tokens_the_default_counts(
    byte_level: Tokenizer, default: int, prompt_tokens: int, granted: int
) -> None:
    stage = PreprocessStage(
        byte_level, make_manifest(context_length=CONTEXT), CAPABILITIES["cpu"], default_max_tokens=default
    )
    assert stage.prepare(replace(PARAMETERS, token_ids=(1,) * prompt_tokens)).max_tokens == granted


# --- Stop strings ----------------------------------------------------------------------------------------------------


def test_as_many_and_as_long_stop_strings_as_allowed_pass(stage: PreprocessStage) -> None:
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


def test_nothing_asked_is_plain_sampling(stage: PreprocessStage) -> None:
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


def test_bad_words_are_banned_as_they_are_and_behind_a_space(stage: PreprocessStage, byte_level: Tokenizer) -> None:
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
def test_what_ends_a_request(stage: PreprocessStage, requested: dict[str, Any], end_ids: tuple[int, ...]) -> None:
    assert stage.prepare(replace(PARAMETERS, **requested)).stop_token_ids == end_ids


def test_end_tokens_of_the_client_are_shown_like_stop_strings(stage: PreprocessStage) -> None:
    requested = replace(PARAMETERS, stop_token_ids=(7, 2))
    assert stage.prepare(requested).text_options.visible_stop_token_ids == ()
    assert stage.prepare(replace(requested, include_stop_str_in_output=True)).text_options.visible_stop_token_ids == (
        7,
    )


@pytest.mark.parametrize(("requested", "kept"), [(2, (2, 3)), (3, (1, 2, 3)), (9, (1, 2, 3)), (-1, (1, 2, 3))])
def test_a_prompt_keeps_its_last_tokens(stage: PreprocessStage, requested: int, kept: tuple[int, ...]) -> None:
    assert stage.prepare(replace(PARAMETERS, truncate_prompt_tokens=requested)).prompt_ids == kept


def test_as_many_as_the_context_takes_leaves_room_for_the_completion(stage: PreprocessStage) -> None:
    requested = replace(PARAMETERS, token_ids=tuple(range(CONTEXT * 2)), truncate_prompt_tokens=-1, max_tokens=10)
    assert stage.prepare(requested).prompt_ids == tuple(range(CONTEXT * 2))[-(CONTEXT - 10) :]


def test_special_tokens_are_left_out_on_demand(padded_library: tokenizers.Tokenizer) -> None:
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


def test_a_default_limit_below_min_tokens_gives_way(stage: PreprocessStage) -> None:
    assert stage.prepare(replace(PARAMETERS, min_tokens=20)).max_tokens == 20


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=5))
def test_lower_numbers_go_first_and_none_is_zero(numbers: list[int]) -> None:
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


def test_what_the_executor_lacks_is_refused_before_it_is_asked(byte_level: Tokenizer) -> None:
    stage = PreprocessStage(byte_level, make_manifest(), CAPABILITIES["scripted"], default_max_tokens=4)
    error = refusal(stage, num_logprobs=0)
    assert (error.code, error.param) == (ErrorCode.UNSUPPORTED_PARAMETER, "logprobs")
