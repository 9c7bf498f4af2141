"""Listens to the choices of one request and keeps its record, the metrics, the limits and readiness up to date."""

from __future__ import annotations

import time

from frontend.generation.admission import Admission
from frontend.generation.completion_run import CancelReason, Choice
from frontend.models.registry import ServedModel
from frontend.observability.request_record import RequestRecord
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import TextChunk


class RunMetrics:
    """A RunListener for one HTTP request. `on_chunk` runs for every chunk: keep it cheap."""

    def __init__(self, record: RequestRecord, model: ServedModel, admission: Admission) -> None:
        self._record = record
        self._metrics = model.metrics
        self._admission = admission
        self._load = model.in_flight_limit
        self._readiness = model.readiness
        self._counted_prompts: set[int] = set()

    def on_chunk(self, choice: Choice, chunk: TextChunk) -> None:
        """See RunListener."""
        now_s = time.monotonic()
        self._readiness.last_chunk_s = now_s  # also of a chunk without a token, as when a prompt is only scored
        tokens = chunk.completion_tokens - choice.completion_tokens
        if tokens <= 0:
            return
        if choice.last_chunk_s:
            self._metrics.token_gaps.observe((now_s - choice.last_chunk_s) / tokens, tokens)
        else:
            self._first_tokens(now_s)
        choice.last_chunk_s = now_s

    def _first_tokens(self, now_s: float) -> None:
        self._admission.queued -= 1
        self._load.queued -= 1
        record = self._record
        # Without a stream the whole answer arrives at once: the time of its first token is not known here.
        if record.is_stream and record.first_token_s is None:
            record.first_token_s = now_s
            self._metrics.time_to_first_token.observe(now_s - record.started_s)

    def on_failure(self, error: PipelineError) -> None:
        """See RunListener."""
        if error.kind.status >= 500:
            self._readiness.doubt()

    def on_cancel(self, reason: CancelReason) -> None:
        """See RunListener."""
        self._metrics.count_cancelled(reason.value)

    def on_end(self, choice: Choice) -> None:
        """See RunListener."""
        self._admission.choice_ended(had_token=choice.last_chunk_s > 0)
        self._load.choice_ended(had_token=choice.last_chunk_s > 0)
        self._metrics.generation_tokens.inc(choice.completion_tokens)
        if choice.prompt_index not in self._counted_prompts:
            self._counted_prompts.add(choice.prompt_index)
            self._metrics.prompt_tokens.inc(choice.prompt_tokens)
