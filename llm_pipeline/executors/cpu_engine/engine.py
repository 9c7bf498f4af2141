"""Requests in, steps out: the scheduler, the model and one sampler per request."""

from __future__ import annotations

from collections.abc import Sequence as SequenceType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llm_pipeline.executors.cpu_engine.sampler import BadLogitsError, Sampler
from llm_pipeline.executors.cpu_engine.scheduler import Scheduler, Sequence, Slice
from llm_pipeline.executors.cpu_engine.wire import EngineStep
from llm_pipeline.messages import FinishReason, GenerationRequest


class Model(Protocol):
    """What the engine needs of a PagedModel."""

    block_size: int
    block_count: int

    def run(self, slices: SequenceType[Slice]) -> npt.NDArray[np.float32]: ...


class Engine:
    """Decodes many requests at once; not thread-safe: one loop owns it."""

    def __init__(self, model: Model, *, max_batched_tokens: int, max_active: int) -> None:
        self._model = model
        self._scheduler = Scheduler(
            block_count=model.block_count,
            block_size=model.block_size,
            max_batched_tokens=max_batched_tokens,
            max_active=max_active,
        )
        self._sequences: dict[str, Sequence] = {}
        self._samplers: dict[str, Sampler] = {}

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def active_count(self) -> int:
        return self._scheduler.active_count

    @property
    def waiting_count(self) -> int:
        return self._scheduler.waiting_count

    def add(self, request: GenerationRequest) -> None:
        """Queue a validated request."""
        sequence = Sequence(request, list(request.prompt_ids))
        self._sequences[request.key] = sequence
        self._samplers[request.key] = Sampler(request.sampling)
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
        logits = self._model.run(slices)
        steps = []
        row = 0
        for piece in slices:
            piece.sequence.computed = piece.end
            if piece.is_sampled:
                steps.append(self._sample(piece.sequence, logits[row]))
                row += 1
        return steps

    def _sample(self, sequence: Sequence, logits: npt.NDArray[np.float32]) -> EngineStep:
        request = sequence.request
        try:
            token_id = self._samplers[request.key].pick(logits)
        except BadLogitsError:
            self._forget(request.key)
            return EngineStep(request.key, failed=True)
        sequence.tokens.append(token_id)
        reason = None
        if token_id in request.end_ids:
            reason = FinishReason.STOP.value
        elif sequence.generated >= request.max_tokens:
            reason = FinishReason.LENGTH.value
        if reason is not None:
            self._forget(request.key)
        return EngineStep(request.key, token_id, reason)

    def _forget(self, key: str) -> None:
        self._scheduler.remove(self._sequences.pop(key))
        del self._samplers[key]
