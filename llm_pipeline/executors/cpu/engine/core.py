"""The engine loop's body: requests in, steps out. Combines the scheduler, the model and one sampler per request.

No request waits for the guide of another: a step samples those sequences whose masks have arrived, and `resume` the
others, once theirs have (guided.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceType
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llm_pipeline.executors.cpu.engine.guided import ConnectMasks, Masks, MaskSource, SequenceMasks, StalledChunk
from llm_pipeline.executors.cpu.engine.ipc import CacheCounts, DraftCounts, StepOutput
from llm_pipeline.executors.cpu.engine.logprobs import compute_logprobs
from llm_pipeline.executors.cpu.engine.prompt_lookup import DraftLimits, PromptLookup, share_rows
from llm_pipeline.executors.cpu.engine.sampler import BadLogitsError, Sampler
from llm_pipeline.executors.cpu.engine.scheduler import ScheduledChunk, Scheduler, Sequence
from llm_pipeline.guides.masks import GuideError, GuidesUnavailableError
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import (
    GUIDE_PARAM,
    FinishReason,
    GenerationRequest,
    PromptLogprobs,
    TopLogprobs,
)

_log = logging.getLogger("cpu-engine")
_MASK_TIMEOUT_S = 10.0  # the guide's process limits its CPU time; this is for one that is stopped or starved
_PARK_AFTER_S = 0.25  # a sequence that gives up its blocks computes its tokens again
_RETRY_AFTER_S = 1.0


class StepModel(Protocol):
    """The part of PagedModel that the engine uses."""

    block_size: int  # tokens
    block_count: int
    draft_step_tokens: int  # largest step, in tokens, that may contain drafts

    def run(self, chunks: SequenceType[ScheduledChunk]) -> npt.NDArray[np.float32]:
        """Computes one step; logits f32 [sum of the chunks' logits_count, vocab_size], in the chunks' order."""


def _guide_error(reason: str) -> PipelineError:
    """Returns the error of a request whose output can't be constrained to its guide."""
    message = f"The output could not be constrained to the requested format: {reason}"
    return PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, message, param=GUIDE_PARAM)


def _reject_guides(_address: str) -> MaskSource:
    raise OSError("this engine was created without a connection to guides")


def _finish_reason(sequence: Sequence) -> FinishReason | None:
    """Returns the reason for which a sequence ends with its last token; None if it goes on."""
    if sequence.tokens[-1] in sequence.request.stop_token_ids:
        return FinishReason.STOP
    return FinishReason.LENGTH if sequence.generated >= sequence.request.max_tokens else None


class EngineCore:
    """Decodes many requests at once. Not thread-safe: it belongs to one loop.

    `max_draft_tokens` limits the draft of each sequence in a step (prompt_lookup.py); with 0 there are no drafts.
    `prompt_tokens_beside_others` is for the scheduler.
    `connect_masks` connects to the guide of a request that has one; it may raise OSError.
    """

    def __init__(
        self,
        model: StepModel,
        *,
        max_batched_tokens: int,
        max_active: int,
        prefix_cache: bool = True,
        max_draft_tokens: int = 0,
        prompt_tokens_beside_others: int = 0,
        connect_masks: ConnectMasks = _reject_guides,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._connect_masks = connect_masks
        self._clock = clock
        self._limits = DraftLimits(max_draft_tokens, min(model.draft_step_tokens, max_batched_tokens))
        self._drafted_tokens = self._accepted_draft_tokens = 0
        self._scheduler = Scheduler(
            block_count=model.block_count,
            block_size=model.block_size,
            max_batched_tokens=max_batched_tokens,
            max_active=max_active,
            prefix_cache=prefix_cache,
            prompt_tokens_beside_others=prompt_tokens_beside_others,
        )
        self._sequences: dict[str, Sequence] = {}
        self._samplers: dict[str, Sampler] = {}
        self._lookups: dict[str, PromptLookup] = {}  # of sequences that have been looked up
        self._prompt_logprobs: dict[str, tuple[list[float], list[TopLogprobs]]] = {}  # computed so far
        self._masks: dict[str, SequenceMasks] = {}  # of guided sequences
        self._stalled: dict[str, StalledChunk] = {}
        self._begun: dict[str, float] | None = None

    @property
    def has_work(self) -> bool:
        """Whether a step can be computed. Not true while all requests wait for masks."""
        return self._scheduler.has_work

    @property
    def stalled_descriptors(self) -> list[int]:
        """Descriptors that become readable when `resume` can continue a sequence."""
        return [self._masks[key].fileno() for key in self._stalled]

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

    def add(self, request: GenerationRequest) -> None:
        """Queues a validated request. One with a guide has the address of its masks."""
        sequence = Sequence(request, list(request.prompt_ids), needs_prompt_logits=request.return_prompt_logprobs)
        self._sequences[request.key] = sequence
        self._samplers[request.key] = Sampler(request.sampling, request.prompt_ids, request.stop_token_ids)
        if request.guide is not None and request.max_tokens:
            self._masks[request.key] = SequenceMasks(sequence, self._connect_masks)
        self._scheduler.add(sequence)

    def cancel(self, key: str) -> StepOutput | None:
        """Ends a request now and returns its final step; None if it has already ended."""
        if key not in self._sequences:
            return None
        self._remove(key)
        return StepOutput(key, finish_reason=FinishReason.CANCELLED)

    def take_begun(self) -> dict[str, float] | None:
        """Returns the times at which requests left the queue since the last call, by key; None without any."""
        begun, self._begun = self._begun, None
        return begun

    def resume(self) -> list[StepOutput]:
        """Continues the stalled sequences whose masks have arrived, and returns a step for each of them.

        Ends those whose masks don't arrive within 10 s. After a while, gives the slots and blocks of stalled sequences
        to others that wait.
        """
        steps = []
        for key, stalled in list(self._stalled.items()):
            if step := self._sample_guided(stalled.chunk, stalled.rows):
                steps.append(step)
                continue
            waited_s = self._clock() - stalled.since_s
            if waited_s > _MASK_TIMEOUT_S:
                _log.warning("a guide's process has not answered for %.0f s; its request ends", waited_s)
                reason = f"it took more than {_MASK_TIMEOUT_S:.0f} s to find the allowed tokens."
                self._remove(key)
                steps.append(StepOutput(key, error=_guide_error(reason)))
            elif waited_s > _PARK_AFTER_S and self._scheduler.has_waiting:
                self._scheduler.park(stalled.chunk.sequence)
        return steps

    def step(self) -> list[StepOutput]:
        """Runs one forward pass. Returns one step for every sequence whose known tokens are all computed.

        A step has one token, and one more for each accepted draft token. Guided sequences whose masks have not arrived
        are stalled and have none.

        The model's logits are f32 [rows, vocab_size], valid until its next run. A chunk has one row if its last token
        is the sequence's last, one more for each draft token, one per token if prompt logprobs are pending, and else
        none.
        """
        chunks = self._scheduler.schedule()
        if self._scheduler.admitted:
            now_s, admitted, self._scheduler.admitted = self._clock(), self._scheduler.admitted, []
            self._begun = {**(self._begun or {}), **{sequence.request.key: now_s for sequence in admitted}}
        if not chunks:
            return []
        if self._limits.per_sequence:
            chunks = self._with_drafts(chunks)
        for chunk in chunks:
            if masks := self._masks.get(chunk.sequence.request.key):
                masks.ask(chunk.draft)
        logits = self._model.run(chunks)
        steps = []
        guided = []
        row = 0
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.computed = chunk.end  # without the draft, which `_sample` accepts or not
            rows = logits[row : row + chunk.logits_count]
            row += chunk.logits_count
            if sequence.needs_prompt_logits:
                self._score_prompt(chunk, rows)
            if chunk.is_sampled:
                rows = rows[-1 - len(chunk.draft) :]
                if sequence.request.key in self._masks:
                    guided.append((chunk, rows))
                else:
                    steps.append(self._sample(chunk, rows))
        for chunk, rows in guided:  # last, when most of their masks have arrived
            if step := self._sample_guided(chunk, rows):
                steps.append(step)
            else:
                self._stall(chunk, rows)
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
            masks = self._masks.get(sequence.request.key)
            if masks is not None and masks.is_asked:
                continue  # without a draft, before a preemption or with the first chunk of the prompt
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

    def _stall(self, chunk: ScheduledChunk, rows: npt.NDArray[np.float32]) -> None:
        """Leaves a sequence out of steps until its masks have arrived. `rows` are valid until the next step.

        The draft is dropped, because requests that wait may be many, and a row takes up to a megabyte.
        """
        chunk.sequence.is_stalled = True
        stalled = StalledChunk(replace(chunk, draft=()), rows[:1].copy(), self._clock())
        self._stalled[chunk.sequence.request.key] = stalled

    def _sample_guided(self, chunk: ScheduledChunk, rows: npt.NDArray[np.float32]) -> StepOutput | None:
        """Samples as `_sample` does with the sequence's masks; returns None if they have not arrived."""
        sequence = chunk.sequence
        key = sequence.request.key
        try:
            masks = self._masks[key].take()
        except (GuideError, GuidesUnavailableError) as failure:
            self._remove(key)
            if isinstance(failure, GuideError):
                return StepOutput(key, error=_guide_error(str(failure)))
            error = PipelineError(ErrorCode.SERVICE_UNAVAILABLE, str(failure), retry_after_s=_RETRY_AFTER_S)
            return StepOutput(key, error=error)
        if masks is None:
            return None
        if self._stalled.pop(key, None):
            self._scheduler.resume(sequence)
        return self._sample(chunk, rows, masks)

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

    def _sample(self, chunk: ScheduledChunk, rows: npt.NDArray[np.float32], masks: Masks | None = None) -> StepOutput:
        """Appends the next token, and the one after each draft token that is the token sampled in its place.

        `rows` is f32 [1 + draft tokens, vocab_size]. Each token is sampled as it would be without the draft. The masks
        of a guided sequence are one for each row; if they are fewer, the draft ends with them.
        """
        sequence, request = chunk.sequence, chunk.sequence.request
        prompt_logprobs = self._take_prompt_logprobs(sequence)
        if request.max_tokens == 0:
            self._remove(request.key)
            return StepOutput(request.key, finish_reason=FinishReason.LENGTH, prompt_logprobs=prompt_logprobs)
        token_ids: list[int] = []
        reason = error = None
        followers = (*chunk.draft, None)
        for index, draft_id in enumerate(followers if masks is None else followers[: len(masks)]):
            try:
                token_id = self._samplers[request.key].sample(rows[index], None if masks is None else masks[index])
            except BadLogitsError as failure:
                _log.error("a request failed: %s", failure)
                error = internal_error()
                break
            token_ids.append(token_id)
            sequence.tokens.append(token_id)
            reason = _finish_reason(sequence)
            if reason is not None or token_id != draft_id:
                break
        sequence.computed += max(len(token_ids) - 1, 0)
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
        self._stalled.pop(key, None)
        if masks := self._masks.pop(key, None):
            masks.close()
