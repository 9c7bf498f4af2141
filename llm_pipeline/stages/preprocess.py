"""preprocess: from what a client asked for to a request that the engine can take.

Owns tokenization and every check that needs the tokenizer or the engine's limits. It also repeats the checks of plain
ranges that the front end has made: a client of Triton's own gRPC and HTTP deserves the same answers.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

from llm_pipeline.engine_manifest import EngineManifest
from llm_pipeline.errors import ErrorCode, PipelineError
from llm_pipeline.limits import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS, MAX_TEMPERATURE
from llm_pipeline.messages import CompletionParameters, GenerationRequest, Sampling, TextOptions
from llm_pipeline.tokenizer import Tokenizer

# A character of UTF-8 is at most 4 bytes, so at most 3 tokens of one byte each can be its unfinished beginning.
_CONTEXT_IDS = 4


class PreprocessStage:
    """See the module's docstring. `default_max_tokens` 0 means: fill the context."""

    def __init__(self, tokenizer: Tokenizer, manifest: EngineManifest, *, default_max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._context_length = manifest.limits.context_length
        self._vocab_size = manifest.limits.vocab_size
        self._end_ids = tuple(manifest.tokens.eos)
        self._default_max_tokens = default_max_tokens

    def prepare(self, parameters: CompletionParameters) -> GenerationRequest:
        """The validated request. PipelineError says what is wrong, the limit and the fix."""
        sampling = _sampling(parameters)
        stop = _checked_stop(parameters.stop)
        prompt_ids = self._prompt_ids(parameters)
        max_tokens = self._max_tokens(parameters.max_tokens, len(prompt_ids))
        return GenerationRequest(
            key=parameters.request_key,
            prompt_ids=tuple(prompt_ids),
            max_tokens=max_tokens,
            sampling=sampling,
            end_ids=self._end_ids,
            text=TextOptions(
                stop=stop,
                include_stop_str_in_output=parameters.include_stop_str_in_output,
                skip_special_tokens=parameters.skip_special_tokens,
                return_token_ids=parameters.return_token_ids,
                stream=parameters.stream,
                max_tokens=max_tokens,
                prompt_tokens=len(prompt_ids),
                context_ids=tuple(prompt_ids[-_CONTEXT_IDS:]) if parameters.text is None else (),
                is_text_start=self._tokenizer.special_ids.issuperset(prompt_ids),
            ),
        )

    def _prompt_ids(self, parameters: CompletionParameters) -> Sequence[int]:
        if (parameters.text is None) == (parameters.token_ids is None):
            raise PipelineError(
                ErrorCode.MISSING_REQUIRED_PARAMETER,
                "Send a prompt: either text or token ids, not both.",
                param="prompt",
            )
        if parameters.text is not None:
            return self._encode(parameters.text)
        return self._checked_ids(parameters.token_ids or ())

    def _encode(self, text: str) -> Sequence[int]:
        if not text:
            raise _empty_prompt()
        # Tokenizing megabytes only to refuse them would hold up everybody else's prompt.
        at_least = self._tokenizer.min_token_count(text)
        if at_least >= self._context_length:
            raise self._too_long(f"at least {at_least}")
        # Checked like a client's: tokenizer.json may hold added tokens that the engine has no row for.
        return self._checked_ids(self._tokenizer.encode(text))

    def _checked_ids(self, ids: Sequence[int]) -> Sequence[int]:
        if not ids:
            raise _empty_prompt()
        if min(ids) < 0 or max(ids) >= self._vocab_size:
            wrong = next(token_id for token_id in ids if not 0 <= token_id < self._vocab_size)
            raise PipelineError(
                ErrorCode.VALUE_OUT_OF_RANGE,
                f"Token id {wrong} is outside the vocabulary; ids of this model are 0 to {self._vocab_size - 1}.",
                param="prompt",
            )
        return ids

    def _max_tokens(self, asked: int | None, prompt_tokens: int) -> int:
        if asked is not None and asked < 1:
            raise _out_of_range("max_tokens", asked, "at least 1")
        if asked is not None and asked > self._context_length:
            raise _out_of_range("max_tokens", asked, f"at most this model's context of {self._context_length} tokens")
        room = self._context_length - prompt_tokens
        if room < 1:
            raise self._too_long(str(prompt_tokens))
        return min(asked or self._default_max_tokens or room, room)

    def _too_long(self, prompt_tokens: str) -> PipelineError:
        return PipelineError(
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            f"This model's context is {self._context_length} tokens and the prompt has {prompt_tokens}, "
            "which leaves no room for a completion. Shorten the prompt.",
            param="prompt",
        )


def _sampling(parameters: CompletionParameters) -> Sampling:
    temperature = _in_range("temperature", parameters.temperature, 1.0, 0.0, MAX_TEMPERATURE)
    top_p = _in_range("top_p", parameters.top_p, 1.0, 0.0, 1.0)
    min_p = _in_range("min_p", parameters.min_p, 0.0, 0.0, 1.0)
    top_k = 0 if parameters.top_k is None else parameters.top_k
    if top_k < -1:
        raise _out_of_range("top_k", top_k, "at least -1, where -1 and 0 mean off")
    # TensorRT-LLM refuses top_p 0, and its default seed is a constant: both are settled here, for every executor.
    return Sampling(
        is_greedy=temperature == 0 or top_p == 0 or top_k == 1,
        temperature=temperature or 1.0,
        top_k=max(top_k, 0),
        top_p=top_p or 1.0,
        min_p=min_p,
        seed=secrets.randbits(64) if parameters.seed is None else parameters.seed % 2**64,
    )


def _in_range(name: str, value: float | None, default: float, low: float, high: float) -> float:
    if value is None:
        return default
    if math.isnan(value) or not low <= value <= high:
        raise _out_of_range(name, value, f"from {low:g} to {high:g}")
    return value


def _checked_stop(stop: tuple[str, ...]) -> tuple[str, ...]:
    if len(stop) > MAX_STOP_STRINGS:
        raise PipelineError(
            ErrorCode.VALUE_OUT_OF_RANGE,
            f"stop holds {len(stop)} strings; the limit is {MAX_STOP_STRINGS}.",
            param="stop",
        )
    for word in stop:
        if not word:
            raise PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, "stop holds an empty string; leave it out.", param="stop")
        if len(word) > MAX_STOP_CHARACTERS:
            raise PipelineError(
                ErrorCode.VALUE_OUT_OF_RANGE,
                f"A stop string has {len(word)} characters; the limit is {MAX_STOP_CHARACTERS}.",
                param="stop",
            )
    return stop


def _empty_prompt() -> PipelineError:
    return PipelineError(
        ErrorCode.VALUE_OUT_OF_RANGE, "prompt is empty; send at least one character or token.", param="prompt"
    )


def _out_of_range(name: str, value: float, allowed: str) -> PipelineError:
    shown = value if isinstance(value, int) else f"{value:g}"
    return PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, f"{name} is {shown}; it must be {allowed}.", param=name)
