"""The engine loop's body: requests in, steps out. Combines the scheduler, the model and one sampler per request."""

from __future__ import annotations

import logging
from collections.abc import Sequence as SequenceType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llm_pipeline.executors.cpu.engine.ipc import CacheCounts, StepOutput
from llm_pipeline.executors.cpu.engine.logprobs import compute_logprobs
from llm_pipeline.executors.cpu.engine.sampler import BadLogitsError, Sampler
from llm_pipeline.executors.cpu.engine.scheduler import ScheduledChunk, Scheduler, Sequence
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import (
    GUIDE_PARAM,
    FinishReason,
    GenerationRequest,
    PromptLogprobs,
    TopLogprobs,
)
from llm_pipeline.runtime.guided_decoding import ConstraintMatcher, GuideError

_log = logging.getLogger("cpu-engine")


class StepModel(Protocol):
    """The part of PagedModel that the engine uses."""

    block_size: int  # tokens
    block_count: int

    def run(self, chunks: SequenceType[ScheduledChunk]) -> npt.NDArray[np.float32]:
        """Computes one step; logits f32 [sum of the chunks' logits_count, vocab_size], in the chunks' order."""


def guide_error(key: str, reason: str) -> StepOutput:
    """Returns the final step of a request whose output can't be constrained to its guide."""
    message = f"The output could not be constrained to the requested format: {reason}"
    return StepOutput(key, error=PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, message, param=GUIDE_PARAM))


class EngineCore:
    """Decodes many requests at once. Not thread-safe: it belongs to one loop."""

    def __init__(
        self, model: StepModel, *, max_batched_tokens: int, max_active: int, prefix_cache: bool = True
    ) -> None:
        self._model = model
        self._scheduler = Scheduler(
            block_count=model.block_count,
            block_size=model.block_size,
            max_batched_tokens=max_batched_tokens,
            max_active=max_active,
            prefix_cache=prefix_cache,
        )
        self._sequences: dict[str, Sequence] = {}
        self._samplers: dict[str, Sampler] = {}
        self._prompt_logprobs: dict[str, tuple[list[float], list[TopLogprobs]]] = {}  # computed so far

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def active_count(self) -> int:
        return self._scheduler.active_count

    @property
    def cache_counts(self) -> CacheCounts:
        scheduler = self._scheduler
        used = 1 - scheduler.free_block_count / self._model.block_count
        return CacheCounts(scheduler.looked_up_tokens, scheduler.reused_tokens, used)

    def add(self, request: GenerationRequest, matcher: ConstraintMatcher | None = None) -> None:
        """Queues a validated request; `matcher` constrains its output, if it has a guide."""
        sequence = Sequence(request, list(request.prompt_ids), needs_prompt_logits=request.return_prompt_logprobs)
        self._sequences[request.key] = sequence
        self._samplers[request.key] = Sampler(request.sampling, request.prompt_ids, request.stop_token_ids, matcher)
        self._scheduler.add(sequence)

    def cancel(self, key: str) -> StepOutput | None:
        """Ends a request now and returns its final step; None if it has already ended."""
        if key not in self._sequences:
            return None
        self._remove(key)
        return StepOutput(key, finish_reason=FinishReason.CANCELLED)

    def step(self) -> list[StepOutput]:
        """Runs one forward pass. Returns one step for every sequence whose known tokens are all computed.

        The model's logits are f32 [rows, vocab_size], valid until its next run. A chunk has one row if its last token
        is the sequence's last, one per token if prompt logprobs are pending, and else none.
        """
        chunks = self._scheduler.schedule()
        if not chunks:
            return []
        logits = self._model.run(chunks)
        steps = []
        row = 0
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.computed = chunk.end
            rows = logits[row : row + chunk.logits_count]
            row += chunk.logits_count
            if sequence.needs_prompt_logits:
                self._score_prompt(chunk, rows)
            if chunk.is_sampled:
                steps.append(self._sample(sequence, rows[-1]))
        return steps

    def _score_prompt(self, chunk: ScheduledChunk, rows: npt.NDArray[np.float32]) -> None:
        """Adds the logprobs of the prompt tokens that follow the chunk's tokens.

        `rows` is f32 [chunk tokens, vocab_size]; each row scores the next token, so the prompt's last row scores none.
        """
        request = chunk.sequence.request
        if chunk.start == 0:  # also when the sequence starts again after a preemption
            self._prompt_logprobs[request.key] = ([], [])
        next_ids = request.prompt_ids[chunk.start + 1 : chunk.end + 1]
        values, tops = compute_logprobs(rows[: len(next_ids)], next_ids, request.num_top_logprobs)
        all_values, all_tops = self._prompt_logprobs[request.key]
        all_values += values
        all_tops += tops

    def _take_prompt_logprobs(self, sequence: Sequence) -> PromptLogprobs | None:
        """Returns the prompt logprobs for the sequence's first step; None if already sent or not requested."""
        if not sequence.needs_prompt_logits:
            return None
        sequence.needs_prompt_logits = False
        values, tops = self._prompt_logprobs.pop(sequence.request.key)
        return PromptLogprobs(tuple(values), tuple(tops))

    def _sample(self, sequence: Sequence, logits: npt.NDArray[np.float32]) -> StepOutput:
        """Appends the next token; `logits` is f32 [vocab_size]."""
        request = sequence.request
        prompt_logprobs = self._take_prompt_logprobs(sequence)
        if request.max_tokens == 0:
            self._remove(request.key)
            return StepOutput(request.key, finish_reason=FinishReason.LENGTH, prompt_logprobs=prompt_logprobs)
        try:
            token_id = self._samplers[request.key].sample(logits)
        except GuideError as error:
            self._remove(request.key)
            return guide_error(request.key, str(error))
        except BadLogitsError as error:
            _log.error("a request failed: %s", error)
            self._remove(request.key)
            return StepOutput(request.key, error=internal_error())
        sequence.tokens.append(token_id)
        reason = None
        if token_id in request.stop_token_ids:
            reason = FinishReason.STOP
        elif sequence.generated >= request.max_tokens:
            reason = FinishReason.LENGTH
        if reason is not None:
            self._remove(request.key)
        if not request.return_logprobs:
            return StepOutput(request.key, (token_id,), reason)
        values, tops = compute_logprobs(logits[np.newaxis], (token_id,), request.num_top_logprobs)
        return StepOutput(
            request.key,
            (token_id,),
            reason,
            logprobs=tuple(values),
            top_logprobs=tuple(tops),
            prompt_logprobs=prompt_logprobs,
        )

    def _remove(self, key: str) -> None:
        self._scheduler.remove(self._sequences.pop(key))
        del self._samplers[key]
        self._prompt_logprobs.pop(key, None)
