"""Observes the choices of one request: updates its record, the metrics, its slots and the model's readiness."""

from __future__ import annotations

import time

from frontend.generation.charge import Charge
from frontend.generation.completion_run import CancelReason, Choice
from frontend.generation.concurrency import Slots
from frontend.models.registry import ServedModel
from frontend.observability.request_record import RequestRecord
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import TextChunk


class RunMetrics:
    """A RunObserver for one HTTP request. `on_chunk` runs for every chunk, so it must stay cheap."""

    def __init__(self, record: RequestRecord, model: ServedModel, slots: Slots, charge: Charge) -> None:
        self._record = record
        self._metrics = model.metrics
        self._observe_gap = model.metrics.token_gaps.observe
        self._slots = slots
        self._charge = charge
        self._readiness = model.readiness
        self._counted_prompts: set[int] = set()

    def on_chunk(self, choice: Choice, chunk: TextChunk) -> None:
        """Measures the time between tokens."""
        now_s = time.monotonic()
        self._readiness.last_chunk_s = now_s  # also for a chunk without a token, as when a prompt is only scored
        tokens = chunk.completion_tokens - choice.completion_tokens
        if tokens <= 0:
            return
        last_s, choice.last_chunk_s = choice.last_chunk_s, now_s
        if last_s:
            self._observe_gap((now_s - last_s) / tokens, tokens)
        else:
            self._first_token(now_s)

    def _first_token(self, now_s: float) -> None:
        self._slots.first_token()
        record = self._record
        # Without streaming the whole completion arrives at once, so the time of its first token is not known here.
        if record.is_stream and record.first_token_s is None:
            record.first_token_s = now_s
            self._metrics.time_to_first_token.observe(now_s - record.started_s, record.exemplar)

    def on_failure(self, error: PipelineError) -> None:
        """Requests a warm-up probe after a failure that is not the client's fault."""
        if error.kind.status >= 500:
            self._readiness.request_probe()

    def on_cancel(self, reason: CancelReason) -> None:
        """Counts the cancelled request."""
        if self._record.trace is not None:
            self._record.trace.on_cancel(reason.value)
        self._metrics.count_cancelled(reason.value)

    def on_end(self, choice: Choice) -> None:
        """Releases the slot and counts the tokens."""
        metrics = self._metrics
        self._slots.release(had_token=choice.last_chunk_s > 0, choice=choice.index)
        self._charge.end(choice)
        metrics.generation_tokens.inc(choice.completion_tokens)
        metrics.generation_length.observe(choice.completion_tokens)
        if choice.finish_reason is not None:
            metrics.count_finished(choice.finish_reason)
        if choice.index == 0 and choice.parameters.max_tokens is not None:
            metrics.max_tokens.observe(choice.parameters.max_tokens)
        if choice.prompt_index not in self._counted_prompts:
            self._counted_prompts.add(choice.prompt_index)
            metrics.prompt_tokens.inc(choice.prompt_tokens)
            if choice.prompt_tokens:  # else it failed before it was tokenized
                metrics.prompt_length.observe(choice.prompt_tokens)
