"""Requests in, steps out: the scheduler, the model and one sampler per request."""

from __future__ import annotations

import logging
from collections.abc import Sequence as SequenceType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llm_pipeline.executors.cpu.engine.ipc import CacheCounts, EngineStep
from llm_pipeline.executors.cpu.engine.logprobs import log_probs_of
from llm_pipeline.executors.cpu.engine.sampler import BadLogitsError, Sampler
from llm_pipeline.executors.cpu.engine.scheduler import ScheduledChunk, Scheduler, Sequence
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, PromptLogprobs, TopLogprobs
from llm_pipeline.runtime.guided_decoding import ConstraintMatcher, GuideError

_log = logging.getLogger("cpu-engine")


class Model(Protocol):
    """What the engine needs of a PagedModel."""

    block_size: int
    block_count: int

    def run(self, slices: SequenceType[ScheduledChunk]) -> npt.NDArray[np.float32]: ...


class EngineCore:
    """Decodes many requests at once; not thread-safe: one loop owns it."""

    def __init__(self, model: Model, *, max_batched_tokens: int, max_active: int, prefix_cache: bool = True) -> None:
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
        self._prompt_log_probs: dict[str, tuple[list[float], list[TopLogprobs]]] = {}  # as far as they are computed

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def active_count(self) -> int:
        return self._scheduler.active_count

    @property
    def waiting_count(self) -> int:
        return self._scheduler.waiting_count

    @property
    def cache_counts(self) -> CacheCounts:
        scheduler = self._scheduler
        used = 1 - scheduler.free_block_count / self._model.block_count
        return CacheCounts(scheduler.looked_up_tokens, scheduler.reused_tokens, used)

    def add(self, request: GenerationRequest, guide: ConstraintMatcher | None = None) -> None:
        """Queue a validated request; `guide` follows its guide, if it has one."""
        sequence = Sequence(request, list(request.prompt_ids), wants_prompt_logits=request.return_prompt_logprobs)
        self._sequences[request.key] = sequence
        self._samplers[request.key] = Sampler(request.sampling, request.prompt_ids, request.stop_token_ids, guide)
        self._scheduler.add(sequence)

    def cancel(self, key: str) -> EngineStep | None:
        """End a request now; None when it has ended already."""
        if key not in self._sequences:
            return None
        self._forget(key)
        return EngineStep(key, finish_reason=FinishReason.CANCELLED.value)

    def step(self) -> list[EngineStep]:
        """One forward pass; the new token of every sequence whose known tokens are all computed."""
        slices = self._scheduler.plan()
        if not slices:
            return []
        logits = self._model.run(slices)
        steps = []
        row = 0
        for piece in slices:
            sequence = piece.sequence
            sequence.computed = piece.end
            rows = logits[row : row + piece.logits_count]
            row += piece.logits_count
            if sequence.wants_prompt_logits:
                self._score_prompt(piece, rows)
            if piece.is_sampled:
                steps.append(self._sample(sequence, rows[-1]))
        return steps

    def _score_prompt(self, piece: ScheduledChunk, rows: npt.NDArray[np.float32]) -> None:
        """Log probs of the prompt's tokens behind those of the slice; each row is about the token that comes next."""
        request = piece.sequence.request
        if piece.start == 0:  # also when the sequence starts again after a preemption
            self._prompt_log_probs[request.key] = ([], [])
        following = request.prompt_ids[piece.start + 1 : piece.end + 1]
        values, tops = log_probs_of(rows[: len(following)], following, request.num_top_logprobs)
        known_values, known_tops = self._prompt_log_probs[request.key]
        known_values += values
        known_tops += tops

    def _take_prompt_log_probs(self, sequence: Sequence) -> PromptLogprobs | None:
        """What to tell with the first step of a sequence; None when it was told or not asked for."""
        if not sequence.wants_prompt_logits:
            return None
        sequence.wants_prompt_logits = False
        values, tops = self._prompt_log_probs.pop(sequence.request.key)
        return PromptLogprobs(tuple(values), tuple(tops))

    def _sample(self, sequence: Sequence, logits: npt.NDArray[np.float32]) -> EngineStep:
        request = sequence.request
        prompt_log_probs = self._take_prompt_log_probs(sequence)
        if request.max_tokens == 0:
            self._forget(request.key)
            return EngineStep(request.key, finish_reason=FinishReason.LENGTH.value, prompt_log_probs=prompt_log_probs)
        try:
            token_id = self._samplers[request.key].pick(logits)
        except GuideError as error:
            self._forget(request.key)
            return EngineStep(request.key, guide_problem=str(error))
        except BadLogitsError as error:
            _log.error("a request failed: %s", error)
            self._forget(request.key)
            return EngineStep(request.key, failed=True)
        sequence.tokens.append(token_id)
        reason = None
        if token_id in request.stop_token_ids:
            reason = FinishReason.STOP.value
        elif sequence.generated >= request.max_tokens:
            reason = FinishReason.LENGTH.value
        if reason is not None:
            self._forget(request.key)
        if not request.return_logprobs:
            return EngineStep(request.key, token_id, reason)
        (value,), tops = log_probs_of(logits[np.newaxis], (token_id,), request.num_top_logprobs)
        top = tops[0] if tops else None
        return EngineStep(request.key, token_id, reason, False, value, top, prompt_log_probs)

    def _forget(self, key: str) -> None:
        self._scheduler.remove(self._sequences.pop(key))
        del self._samplers[key]
        self._prompt_log_probs.pop(key, None)
