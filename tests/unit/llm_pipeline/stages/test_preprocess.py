"""Preprocess: prompts, their limits, and the room for a completion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tokenizers

from llm_pipeline.protocol.capabilities import CAPABILITIES
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import GUIDE_PARAM, Guide, GuideType
from llm_pipeline.stages.preprocess import PreprocessStage
from llm_pipeline.stages.validation import check_guided
from llm_pipeline.text.tokenizer import Tokenizer
from tests.support.preprocess_requests import CONTEXT, PARAMETERS, VOCABULARY, refusal
from tests.support.sample_requests import make_manifest


class Unused(Tokenizer):
    """A tokenizer for requests that must be answered without tokenizing anything."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        raise AssertionError(f"{len(text)} characters were tokenized")


def test_a_text_prompt_becomes_the_tokenizers_ids(stage: PreprocessStage, byte_level: Tokenizer) -> None:
    request = stage.prepare(replace(PARAMETERS, token_ids=None, prompt_text="Hello world"))
    assert list(request.prompt_ids) == byte_level.encode("Hello world")
    assert request.text_options.prompt_tokens == len(request.prompt_ids)
    assert request.text_options.context_ids == ()  # text never ends inside a character


def test_token_id_prompt_is_used_as_it_is(stage: PreprocessStage) -> None:
    request = stage.prepare(replace(PARAMETERS, token_ids=(9, 8, 7, 6, 5)))
    assert request.prompt_ids == (9, 8, 7, 6, 5)
    assert request.text_options.context_ids == (8, 7, 6, 5)  # they may end inside a character


def test_the_request_keeps_its_key_and_gets_the_models_end_ids(stage: PreprocessStage) -> None:
    request = stage.prepare(PARAMETERS)
    assert (request.key, request.stop_token_ids) == ("key", (0, 2))


def test_text_options_are_passed_to_postprocess(stage: PreprocessStage) -> None:
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
def test_prompt_of_special_tokens_only_is_the_start_of_a_text(
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
def test_exactly_one_non_empty_prompt_is_required(
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


def test_last_id_of_the_vocabulary_is_accepted(stage: PreprocessStage) -> None:
    assert stage.prepare(replace(PARAMETERS, token_ids=(0, VOCABULARY - 1))).prompt_ids == (0, VOCABULARY - 1)


def test_text_with_a_token_beyond_the_engines_vocabulary_is_rejected(byte_level: Tokenizer) -> None:
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
def test_default_max_tokens_applies_if_omitted(
    byte_level: Tokenizer, default: int, prompt_tokens: int, granted: int
) -> None:
    stage = PreprocessStage(
        byte_level, make_manifest(context_length=CONTEXT), CAPABILITIES["cpu"], default_max_tokens=default
    )
    assert stage.prepare(replace(PARAMETERS, token_ids=(1,) * prompt_tokens)).max_tokens == granted
