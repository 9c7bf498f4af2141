"""`tensorrt_llm.sampling_params`: SamplingParams and GuidedDecodingParams, with upstream's checks.

A SamplingParams is changed by the constructor and again by the LLM, as upstream's is (`__post_init__`, `_setup`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from tensorrt_llm.llm_facts import make_dataclass, release

_MAX_LOGPROBS = 100


class _GuideMethods:
    __slots__ = ()

    def _validate(self) -> None:
        count = sum(bool(getattr(self, field.name)) for field in dataclasses.fields(self))  # type: ignore[arg-type]
        if count > 1:
            raise ValueError(f"Only one guide can be used for a request, but got {count}.")


GuidedDecodingParams = make_dataclass("tensorrt_llm.sampling_params.GuidedDecodingParams", _GuideMethods)


class _SamplingMethods:
    __slots__ = ()

    def __post_init__(self: Any) -> None:
        if self.pad_id is None:
            self.pad_id = self.end_id
        self.best_of = self.best_of or self.n
        if isinstance(self.embedding_bias, torch.Tensor):
            self.embedding_bias = self.embedding_bias.detach().clone()
        elif self.embedding_bias is not None:
            self.embedding_bias = torch.tensor(self.embedding_bias, dtype=torch.float32)
        self._validate()

    def _validate(self: Any) -> None:
        is_new = release() != "1.2"
        _check_range(self, "top_p", 0, 1, refuses_nan=is_new)
        _check_range(self, "top_k", 0, None, refuses_nan=is_new)
        _check_range(self, "temperature", 0, None, refuses_nan=is_new)
        if is_new:
            _check_range(self, "min_p", 0, 1, refuses_nan=True)
        if self.best_of < self.n:
            raise ValueError(f"best_of ({self.best_of}) cannot be less than n ({self.n})")
        if self.best_of > 1 and self._greedy_decoding:
            raise ValueError("Greedy decoding in the LLM API does not allow multiple returns.")
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens < 1:
            raise ValueError(f"truncate_prompt_tokens must be >= 1, got {self.truncate_prompt_tokens}")
        if self.guided_decoding is not None:
            self.guided_decoding._validate()
        if is_new:
            self._validate_logprobs()
        else:
            self.logprobs = self.logprobs and int(self.logprobs)
            self.prompt_logprobs = self.prompt_logprobs and int(self.prompt_logprobs)

    def _validate_logprobs(self: Any) -> None:
        if isinstance(self.logprobs, bool):
            self.logprobs = 0 if self.logprobs else None
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must be positive, zero or None")
            if value is not None and value > _MAX_LOGPROBS:
                raise ValueError(f"{name} must be less than or equal to {_MAX_LOGPROBS}")
            if getattr(self, f"{name}_simple_format") and value != 0:
                raise ValueError(f"{name}_simple_format=True requires {name} == 0, got {name}={value}")

    @property
    def _greedy_decoding(self: Any) -> bool:
        is_new = release() != "1.2"
        if self.use_beam_search:
            return False
        if self.top_k == 1 or self.top_p == 0 or self.temperature == 0 or (is_new and self.min_p == 1):
            return True
        is_unset = self.temperature is None and self.top_p is None and self.top_k is None
        return is_unset and not (is_new and self.min_p)

    def _setup(self: Any, tokenizer: Any, generation_eos_ids: list[int]) -> None:
        """Fills the fields that depend on the tokenizer. Upstream calls it only if `end_id` is None."""
        self.end_id = tokenizer.eos_token_id
        self.pad_id = self.end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        for name in ("bad", "stop"):
            texts = getattr(self, name)
            if texts is not None:
                texts = [texts] if isinstance(texts, str) else texts
                setattr(self, f"_{name}_word_ids", [tokenizer.encode(text) for text in texts])
        if release() != "1.2":
            ids = list(self.stop_token_ids or [])
            ids += [token for token in generation_eos_ids if token != self.end_id and token not in ids]
            self.stop_token_ids = ids or None

    def _get_words(self: Any, name: str) -> list[list[int]]:
        words = [[token] for token in getattr(self, f"{name}_token_ids") or []]
        texts = getattr(self, name)
        if texts is None:
            return words
        word_ids = getattr(self, f"_{name}_word_ids")
        if word_ids is None:
            raise RuntimeError(
                f"SamplingParams.{name} ({texts}) is not processed by tokenizer, please call the setup method."
            )
        return words + list(word_ids)

    def _get_stop_reasons_and_words(self: Any) -> list[tuple[int | str, list[int]]]:
        reasons: list[int | str] = list(self.stop_token_ids or [])
        if self.stop is not None:
            reasons += [self.stop] if isinstance(self.stop, str) else self.stop
        return list(zip(reasons, self._get_words("stop"), strict=False))


def _check_range(params: Any, name: str, low: float, high: float | None, *, refuses_nan: bool) -> None:
    """Raises ValueError for values out of range. Only later releases refuse NaN, which no comparison holds for."""
    value = getattr(params, name)
    if value is None:
        return
    is_inside = low <= value and (high is None or value <= high)
    is_outside = value < low or (high is not None and value > high)
    if is_outside or (refuses_nan and not is_inside):
        limits = f"{name} >= {low}" if high is None else f"{low} <= {name} <= {high}"
        raise ValueError(f"require {limits}, got {name}={value}")


SamplingParams = make_dataclass("tensorrt_llm.sampling_params.SamplingParams", _SamplingMethods)
