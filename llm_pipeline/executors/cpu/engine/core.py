"""The engine loop's body: requests in, steps out. Combines the scheduler, the model and one sampler per request."""

from __future__ import annotations

import logging
from collections.abc import Sequence as SequenceType
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llm_pipeline.executors.cpu.engine.ipc import CacheCounts, DraftCounts, StepOutput
from llm_pipeline.executors.cpu.engine.logprobs import compute_logprobs
from llm_pipeline.executors.cpu.engine.prompt_lookup import DraftLimits, PromptLookup, share_rows
from llm_pipeline.executors.cpu.engine.sampler import BadLogitsError, Sampler
from llm_pipeline.executors.cpu.engine.scheduler import ScheduledChunk, Scheduler, Sequence
from llm_pipeline.guides.compiler import ConstraintMatcher
from llm_pipeline.guides.masks import GuideError
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import (
    GUIDE_PARAM,
    FinishReason,
    GenerationRequest,
    PromptLogprobs,
    TopLogprobs,
)

_log = logging.getLogger("cpu-engine")


class StepModel(Protocol):
    """The part of PagedModel that the engine uses."""

    block_size: int  # tokens
    block_count: int
    draft_step_tokens: int  # largest step, in tokens, that may contain drafts

    def run(self, chunks: SequenceType[ScheduledChunk]) -> npt.NDArray[np.float32]:
        """Computes one step; logits f32 [sum of the chunks' logits_count, vocab_size], in the chunks' order."""


def guide_error(key: str, reason: str) -> StepOutput:
    """Returns the final step of a request whose output can't be constrained to its guide."""
    message = f"The output could not be constrained to the requested format: {reason}"
    return StepOutput(key, error=PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, message, param=GUIDE_PARAM))


def _finish_reason(sequence: Sequence) -> FinishReason | None:
    """Returns the reason for which a sequence ends with its last token; None if it goes on."""
    if sequence.tokens[-1] in sequence.request.stop_token_ids:
        return FinishReason.STOP
    return FinishReason.LENGTH if sequence.generated >= sequence.request.max_tokens else None


class EngineCore:
    """Decodes many requests at once. Not thread-safe: it belongs to one loop.

    `max_draft_tokens` limits the draft of each sequence in a step (prompt_lookup.py); with 0 there are no drafts.
    """

    def __init__(
        self,
        model: StepModel,
        *,
        max_batched_tokens: int,
        max_active: int,
        prefix_cache: bool = True,
        max_draft_tokens: int = 0,
    ) -> None:
        self._model = model
        self._limits = DraftLimits(max_draft_tokens, min(model.draft_step_tokens, max_batched_tokens))
        self._drafted_tokens = self._accepted_draft_tokens = 0
        self._scheduler = Scheduler(
            block_count=model.block_count,
            block_size=model.block_size,
            max_batched_tokens=max_batched_tokens,
            max_active=max_active,
            prefix_cache=prefix_cache,
        )
        self._sequences: dict[str, Sequence] = {}
        self._samplers: dict[str, Sampler] = {}
        self._lookups: dict[str, PromptLookup] = {}  # of sequences that have been looked up
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

    @property
    def draft_counts(self) -> DraftCounts:
        return DraftCounts(self._drafted_tokens, self._accepted_draft_tokens)

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

        A step has one token, and one more for each accepted draft token.

        The model's logits are f32 [rows, vocab_size], valid until its next run. A chunk has one row if its last token
        is the sequence's last, one more for each draft token, one per token if prompt logprobs are pending, and else
        none.
        """
        chunks = self._scheduler.schedule()
        if not chunks:
            return []
        if self._limits.per_sequence:
            chunks = self._with_drafts(chunks)
        logits = self._model.run(chunks)
        steps = []
        row = 0
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.computed = chunk.end  # without the draft, which `_sample` accepts or not
            rows = logits[row : row + chunk.logits_count]
            row += chunk.logits_count
            if sequence.needs_prompt_logits:
                self._score_prompt(chunk, rows)
            if chunk.is_sampled:
                steps.append(self._sample(chunk, rows[-1 - len(chunk.draft) :]))
        return steps

    def _with_drafts(self, chunks: list[ScheduledChunk]) -> list[ScheduledChunk]:
        """Adds drafts to the chunks of a step in which all sequences decode and rows are left."""
        count = len(chunks)
        if count >= self._limits.step_rows or not all(
            chunk.end - chunk.start == 1 and chunk.is_sampled for chunk in chunks
        ):
            return chunks
        candidates = {}
        for index, chunk in enumerate(chunks):
            sequence = chunk.sequence
            if not sequence.needs_prompt_logits and sequence.request.max_tokens - sequence.generated > 1:
                lookup = self._lookups.setdefault(sequence.request.key, PromptLookup())
                if probability := lookup.look_up(sequence.tokens):
                    candidates[index] = probability
        context = sum(chunk.end for chunk in chunks) / count
        shares = share_rows(candidates, self._limits, sequences=count, mean_context=context)
        return [replace(chunk, draft=self._draft(chunk.sequence, shares.get(i, 0))) for i, chunk in enumerate(chunks)]

    def _draft(self, sequence: Sequence, count: int) -> tuple[int, ...]:
        """Returns a draft of at most `count` tokens, for which the sequence has blocks."""
        # The token after the draft is sampled, too, and must not exceed max_tokens.
        count = min(count, sequence.request.max_tokens - sequence.generated - 1)
        if count > 0:
            count = self._scheduler.reserve(sequence, count)
        lookup = self._lookups.get(sequence.request.key)
        return () if lookup is None else lookup.draft(sequence.tokens, max(count, 0))

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

    def _sample(self, chunk: ScheduledChunk, rows: npt.NDArray[np.float32]) -> StepOutput:
        """Appends the next token, and the one after each draft token that is the token sampled in its place.

        `rows` is f32 [1 + draft tokens, vocab_size]. Each token is sampled as it would be without the draft.
        """
        sequence, request = chunk.sequence, chunk.sequence.request
        prompt_logprobs = self._take_prompt_logprobs(sequence)
        if request.max_tokens == 0:
            self._remove(request.key)
            return StepOutput(request.key, finish_reason=FinishReason.LENGTH, prompt_logprobs=prompt_logprobs)
        token_ids: list[int] = []
        reason = error = None
        for logits, draft_id in zip(rows, (*chunk.draft, None), strict=True):
            sequence.computed = chunk.end + len(token_ids)
            try:
                token_id = self._samplers[request.key].sample(logits)
            except GuideError as failure:
                error = guide_error(request.key, str(failure)).error
                break
            except BadLogitsError as failure:
                _log.error("a request failed: %s", failure)
                error = internal_error()
                break
            token_ids.append(token_id)
            sequence.tokens.append(token_id)
            reason = _finish_reason(sequence)
            if reason is not None or token_id != draft_id:
                break
        self._record_draft(chunk, token_ids)
        if reason is not None or error is not None:
            self._remove(request.key)
        step = StepOutput(request.key, tuple(token_ids), reason, error)
        if not request.return_logprobs:
            return step
        values, tops = compute_logprobs(rows[: len(token_ids)], token_ids, request.num_top_logprobs)
        return replace(step, logprobs=tuple(values), top_logprobs=tuple(tops), prompt_logprobs=prompt_logprobs)

    def _record_draft(self, chunk: ScheduledChunk, token_ids: SequenceType[int]) -> None:
        """Counts the draft tokens that are the sampled ones, and lets the sequence's drafts adapt."""
        if chunk.draft:
            drafted = len(chunk.draft)
            accepted = sum(pair[0] == pair[1] for pair in zip(chunk.draft, token_ids, strict=False))
            self._drafted_tokens += drafted
            self._accepted_draft_tokens += accepted
            self._lookups[chunk.sequence.request.key].record(drafted, accepted)

    def _remove(self, key: str) -> None:
        self._scheduler.remove(self._sequences.pop(key))
        del self._samplers[key]
        self._lookups.pop(key, None)
        self._prompt_logprobs.pop(key, None)
