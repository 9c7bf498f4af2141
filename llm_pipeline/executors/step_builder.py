"""Builds an EngineStep from an engine's output request by request. For engines that report one request at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import EngineStep, FinishReason, RequestEnd, RequestLogprobs


class RequestOutput(NamedTuple):
    """New tokens of one request, its end, or both. `token_ids` includes an end token."""

    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    error: PipelineError | None = None
    logprobs: RequestLogprobs | None = None  # of these tokens, if requested

    @property
    def is_final(self) -> bool:
        return self.finish_reason is not None or self.error is not None


class StepBuilder:
    """Collects the output of requests. Several outputs of one request become one, in order."""

    def __init__(self) -> None:
        self._token_ids: dict[int, Sequence[int]] = {}  # by request number
        self._ends: list[RequestEnd] = []
        self._logprobs: dict[int, RequestLogprobs] = {}
        self.begun: dict[int, float] = {}  # as in EngineStep

    def add(
        self,
        number: int,
        token_ids: tuple[int, ...] = (),
        finish_reason: FinishReason | None = None,
        error: PipelineError | None = None,
        logprobs: RequestLogprobs | None = None,
    ) -> None:
        """Adds the fields of a RequestOutput. Nothing may be added for a request after its end."""
        if token_ids:
            earlier = self._token_ids.get(number)
            self._token_ids[number] = token_ids if earlier is None else (*earlier, *token_ids)
        if logprobs is not None:
            before = self._logprobs.get(number)
            self._logprobs[number] = logprobs if before is None else _joined(before, logprobs)
        if finish_reason is not None or error is not None:
            self._ends.append(RequestEnd(number, finish_reason, error))

    def build(self) -> EngineStep:
        """Returns everything added so far as one step; its arrays are int64."""
        lists = self._token_ids.values()
        numbers = np.fromiter(self._token_ids, np.int64, len(lists))
        counts = [len(ids) for ids in lists]
        token_ids = np.fromiter(chain.from_iterable(lists), np.int64, sum(counts))
        is_one_each = len(token_ids) == len(numbers)  # no list is empty
        return EngineStep(
            numbers,
            token_ids,
            None if is_one_each else np.array(counts, np.int64),
            self._ends,
            self._logprobs,
            self.begun,
        )


def _joined(first: RequestLogprobs, second: RequestLogprobs) -> RequestLogprobs:
    return RequestLogprobs(
        first.logprobs + second.logprobs,
        first.top_logprobs + second.top_logprobs,
        first.prompt_logprobs or second.prompt_logprobs,
    )
