"""Reads upstream's result of a request: one object that changes in place, with all tokens so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_pipeline.executors.tensorrt_llm.engine import Ending, EngineResponse
from llm_pipeline.protocol.messages import GenerationRequest, PromptLogprobs, TopLogprobs

_ENDINGS = {"length": Ending.LENGTH, "timeout": Ending.TIMED_OUT, "cancelled": Ending.CANCELLED}


class OutputReader:
    """Makes the responses of one request. Counts the tokens itself: `token_ids_diff` has the last response's only."""

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request
        self._count = 0  # tokens that were read
        self._last_id: int | None = None
        self._has_prompt_logprobs = False

    def read(self, request_id: int, result: Any) -> EngineResponse | None:
        """Returns what is new in a result of one sequence; None if that is nothing."""
        output = result.outputs[0]
        ids = tuple(output.token_ids[self._count :])
        ending = self._ending(output.finish_reason, ids) if result.finished else None
        prompt_logprobs = self._prompt_logprobs(output)
        if self._request.max_tokens == 0:  # the token is upstream's least
            if ending is None:
                return None
            ids, ending = (), Ending.LENGTH if ending in (Ending.END_ID, Ending.STOP_WORDS) else ending
        elif not (ids or ending or prompt_logprobs):
            return None
        logprobs, tops = self._logprobs(output, ids)
        if ids:
            self._last_id = ids[-1]
            self._count += len(ids)
        return EngineResponse(
            request_id,
            token_ids=ids,
            logprobs=logprobs,
            top_logprobs=tops,
            prompt_logprobs=prompt_logprobs,
            ending=ending,
        )

    def _ending(self, reason: str | None, ids: Sequence[int]) -> Ending:
        """Tells the end token from further stop tokens, which upstream calls "stop" both.

        TRTLLMSampler leaves the end token out of the output, so an output that does not end with one of the others ends
        with it.
        """
        if reason != "stop":
            return _ENDINGS.get(reason or "", Ending.UNKNOWN)
        last_id = ids[-1] if ids else self._last_id
        return Ending.STOP_WORDS if last_id in self._request.stop_token_ids[1:] else Ending.END_ID

    def _logprobs(self, output: Any, ids: Sequence[int]) -> tuple[tuple[float | None, ...], tuple[TopLogprobs, ...]]:
        if not self._request.return_logprobs or not ids:
            return (), ()
        entries: Sequence[Any] = output.logprobs[self._count : self._count + len(ids)]
        values = tuple(_value_of(entry, token_id) for entry, token_id in zip(entries, ids, strict=False))
        count = self._request.num_top_logprobs
        return values, tuple(_most_likely(entry, count) for entry in entries) if count else ()

    def _prompt_logprobs(self, output: Any) -> PromptLogprobs | None:
        """Returns the prompt's logprobs, once. Upstream's entry n is for token n + 1; the last is the completion's.

        (_compute_pytorch_prompt_logprobs in tensorrt_llm/executor/base_worker.py of 1.3.)
        """
        request = self._request
        if not request.return_prompt_logprobs or self._has_prompt_logprobs or not output.prompt_logprobs:
            return None
        self._has_prompt_logprobs = True
        entries = output.prompt_logprobs[: len(request.prompt_ids) - 1]
        values = tuple(
            _value_of(entry, token_id) for entry, token_id in zip(entries, request.prompt_ids[1:], strict=False)
        )
        count = request.num_top_logprobs
        return PromptLogprobs(values, tuple(_most_likely(entry, count) for entry in entries) if count else ())


def _value_of(entry: Mapping[int, Any] | float, token_id: int) -> float | None:
    """Returns the logprob of a token in one position's entry, a map of token ids to Logprob or a single number."""
    if isinstance(entry, Mapping):
        found = entry.get(token_id)
        return None if found is None else float(found.logprob)
    return float(entry)


def _most_likely(entry: Mapping[int, Any], count: int) -> TopLogprobs:
    """Returns the `count` most likely tokens. The entry may have the chosen token after them."""
    ranked = sorted(entry.items(), key=lambda item: -item[1].logprob)[:count]
    return tuple(token_id for token_id, _ in ranked), tuple(float(found.logprob) for _, found in ranked)
