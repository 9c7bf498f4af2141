"""The checks of plain values that preprocess makes, whoever sent them: ranges, lengths, ids of the vocabulary.

The front end makes those of them that need no tokenizer, too, so that its refusals cost Triton nothing.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.limits import (
    MAX_BAD_WORD_CHARACTERS,
    MAX_BAD_WORDS,
    MAX_BIAS,
    MAX_BIASED_TOKENS,
    MAX_FACTOR,
    MAX_LOG_PROBS,
    MAX_PENALTY,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MAX_TEMPERATURE,
    MIN_FACTOR,
)
from llm_pipeline.protocol.messages import GUIDE_PARAM, CompletionParameters, SamplingParams


def checked_sampling(
    parameters: CompletionParameters,
    *,
    min_tokens: int,
    logit_bias: tuple[tuple[int, float], ...],
    bad_words: tuple[tuple[int, ...], ...],
) -> SamplingParams:
    """The sampling that a client asked for. The three arguments have been looked up in the vocabulary by the caller."""
    temperature = _in_range("temperature", parameters.temperature, 1.0, 0.0, MAX_TEMPERATURE)
    top_p = _in_range("top_p", parameters.top_p, 1.0, 0.0, 1.0)
    top_k = 0 if parameters.top_k is None else parameters.top_k
    if top_k < -1:
        raise out_of_range("top_k", top_k, "at least -1, where -1 and 0 mean off")
    # TensorRT-LLM refuses top_p 0, and its default seed is a constant: both are settled here, for every executor.
    return SamplingParams(
        is_greedy=temperature == 0 or top_p == 0 or top_k == 1,
        temperature=temperature or 1.0,
        top_k=max(top_k, 0),
        top_p=top_p or 1.0,
        min_p=_in_range("min_p", parameters.min_p, 0.0, 0.0, 1.0),
        seed=secrets.randbits(64) if parameters.seed is None else parameters.seed % 2**64,
        repetition_penalty=_repetition_penalty(parameters.repetition_penalty),
        presence_penalty=_in_range("presence_penalty", parameters.presence_penalty, 0.0, -MAX_PENALTY, MAX_PENALTY),
        frequency_penalty=_in_range("frequency_penalty", parameters.frequency_penalty, 0.0, -MAX_PENALTY, MAX_PENALTY),
        min_tokens=min_tokens,
        logit_bias=logit_bias,
        bad_words=bad_words,
    )


def _repetition_penalty(value: float | None) -> float:
    return _in_range("repetition_penalty", value, 1.0, MIN_FACTOR, MAX_FACTOR)


def _in_range(name: str, value: float | None, default: float, low: float, high: float) -> float:
    if value is None:
        return default
    if math.isnan(value) or not low <= value <= high:
        raise out_of_range(name, value, f"from {low:g} to {high:g}")
    return value


def checked_stop(stop: tuple[str, ...]) -> tuple[str, ...]:
    """Stop strings: not too many, none empty, none too long."""
    _check_texts("stop", stop, MAX_STOP_STRINGS, MAX_STOP_CHARACTERS)
    return stop


def checked_bad_words(words: tuple[str, ...]) -> tuple[str, ...]:
    """The same for bad words."""
    _check_texts("bad_words", words, MAX_BAD_WORDS, MAX_BAD_WORD_CHARACTERS)
    return words


def _check_texts(name: str, texts: tuple[str, ...], most: int, most_characters: int) -> None:
    if len(texts) > most:
        raise PipelineError(
            ErrorCode.VALUE_OUT_OF_RANGE, f"{name} holds {len(texts)} strings; the limit is {most}.", param=name
        )
    for text in texts:
        if not text:
            raise PipelineError(
                ErrorCode.VALUE_OUT_OF_RANGE, f"{name} holds an empty string; leave it out.", param=name
            )
        if len(text) > most_characters:
            raise PipelineError(
                ErrorCode.VALUE_OUT_OF_RANGE,
                f"A string of {name} has {len(text)} characters; the limit is {most_characters}.",
                param=name,
            )


def check_logit_bias(biases: Sequence[tuple[int, float]], vocab_size: int) -> None:
    """PipelineError unless ids and values are in range."""
    if len(biases) > MAX_BIASED_TOKENS:
        raise out_of_range("logit_bias", len(biases), f"a map of at most {MAX_BIASED_TOKENS} tokens")
    check_ids("logit_bias", [token_id for token_id, _ in biases], vocab_size)
    for _, bias in biases:
        if math.isnan(bias) or not -MAX_BIAS <= bias <= MAX_BIAS:
            raise out_of_range("logit_bias", bias, f"from {-MAX_BIAS:g} to {MAX_BIAS:g} for each token")


def check_stop_token_ids(ids: Sequence[int], vocab_size: int) -> None:
    """PipelineError for too many or unknown ones."""
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise out_of_range("stop_token_ids", len(ids), f"a list of at most {MAX_STOP_TOKEN_IDS} ids")
    check_ids("stop_token_ids", ids, vocab_size)


def check_log_probs(count: int | None) -> None:
    if count is not None and not 0 <= count <= MAX_LOG_PROBS:
        raise out_of_range("logprobs", count, f"from 0 to {MAX_LOG_PROBS}")


def check_truncation(count: int | None) -> None:
    if count is not None and count < 1 and count != -1:
        raise out_of_range("truncate_prompt_tokens", count, "at least 1, or -1 for as many as the context takes")


def check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    """PipelineError when an id is outside the vocabulary."""
    if ids and (min(ids) < 0 or max(ids) >= vocab_size):
        wrong = next(token_id for token_id in ids if not 0 <= token_id < vocab_size)
        raise PipelineError(
            ErrorCode.VALUE_OUT_OF_RANGE,
            f"Token id {wrong} is outside the vocabulary; ids of this model are 0 to {vocab_size - 1}.",
            param=name,
        )


def check_guided(parameters: CompletionParameters, end_ids: Sequence[int]) -> None:
    """PipelineError for what may leave a guided text no token to go on with, or no end.

    The end is the first of the model's `end_ids`: what follows the guide knows that one only.
    """
    if not end_ids:
        raise PipelineError(
            ErrorCode.UNSUPPORTED_PARAMETER,
            "This model has no end token, so a guided text would have no end; ask for no structured output.",
            param=GUIDE_PARAM,
        )
    asked = {
        "bad_words": parameters.bad_words,
        "min_tokens": parameters.min_tokens,
        "ignore_eos": parameters.ignore_eos,
        "end_id": parameters.end_id is not None and parameters.end_id != end_ids[0],
        "suffix": parameters.suffix,
    }
    for name, value in asked.items():
        if value:
            message = f"{name} does not go together with structured output; leave one of them out."
            raise PipelineError(ErrorCode.UNSUPPORTED_PARAMETER, message, param=name)


def priority_of(number: int | None) -> float:
    """vLLM's priority (any integer, lower goes first, 0 if left out) as ours: 0 to 1, higher first, 0.5 for 0."""
    return 0.5 if number is None else 0.5 - number / (2 * (1 + abs(number)))


def out_of_range(name: str, value: float, allowed: str) -> PipelineError:
    shown = value if isinstance(value, int) else f"{value:g}"
    return PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, f"{name} is {shown}; it must be {allowed}.", param=name)
