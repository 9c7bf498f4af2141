"""Loads a CPU engine and generates greedily, one sequence at a time: the plainest way to run it, for checking.

The graph and its settings are the server's; scheduling and sampling are not in it and have tests of their own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from build_engine.errors import BuildEngineError
from llm_pipeline.executors.cpu.engine.scheduler import ScheduledChunk, Sequence
from llm_pipeline.executors.cpu.engine.weights import Weights, WeightsError, load_weights
from llm_pipeline.protocol.messages import GenerationRequest, SamplingParams

_KV_CACHE_BYTES = 256 << 20
_AT_ONCE = 64  # rows of logits: each is as long as the vocabulary


class GreedyEngine:
    """A loaded engine; takes 2 to 4 s for 135M parameters on two cores."""

    def __init__(self, weights: Weights) -> None:
        """BuildEngineError when OpenVINO is missing, or can't compile the model."""
        try:
            from llm_pipeline.executors.cpu.engine.paged_model import PagedModel
        except ImportError as error:
            raise BuildEngineError("OpenVINO is missing: pip install 'triton-completions[build]'") from error
        try:
            self._model = PagedModel(weights, kv_cache_bytes=_KV_CACHE_BYTES)
        except (RuntimeError, KeyError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise BuildEngineError(f"OpenVINO can't load the engine: {reason}") from error

    @classmethod
    def load(cls, engine_dir: Path) -> GreedyEngine:
        """The engine of a directory. BuildEngineError when it can't be loaded."""
        try:
            return cls(load_weights(engine_dir))
        except WeightsError as error:
            raise BuildEngineError(str(error)) from error

    def generate(self, prompt_ids: list[int], count: int) -> list[int]:
        """The `count` most likely next tokens, end of sequence ignored. BuildEngineError when logits are not finite."""
        ids = list(prompt_ids)
        computed = 0
        for _ in range(count):
            logits = self._run(ids, computed, len(ids))[-1]
            computed = len(ids)
            ids.append(int(logits.argmax()))
        return ids[len(prompt_ids) :]

    def logits(self, ids: list[int]) -> npt.NDArray[np.float32]:
        """At every position, [len(ids), vocab_size]."""
        return np.concatenate(
            [
                self._run(ids, start, min(start + _AT_ONCE, len(ids)), all_positions=True)
                for start in range(0, len(ids), _AT_ONCE)
            ]
        )

    def _run(self, ids: list[int], start: int, end: int, *, all_positions: bool = False) -> npt.NDArray[np.float32]:
        """Compute ids[start:end] behind what is computed; logits of the last of them, or of each."""
        request = GenerationRequest("greedy", tuple(ids), 1, SamplingParams())
        blocks = list(range(-(-end // self._model.block_size)))  # the only sequence: its blocks are the first ones
        sequence = Sequence(request, ids[:end], start, blocks, needs_prompt_logits=all_positions)
        logits = self._model.run([ScheduledChunk(sequence, start, end)])
        if not np.isfinite(logits).all():
            raise BuildEngineError(
                f"The engine's logits are not finite at position {end - 1}: the weights are damaged."
            )
        return logits.copy()  # the model's memory is used again by the next step
