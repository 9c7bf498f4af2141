"""Runs a CPU engine greedily, one sequence at a time, to check it.

Uses the server's graph and settings, but not its scheduler and sampler.
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
_CHUNK_TOKENS = 64  # limits the logits of one run to [64, vocab_size]


class GreedyEngine:
    """A loaded engine. Loading takes 2 to 4 s for 135M parameters on two cores."""

    def __init__(self, weights: Weights) -> None:
        """Raises BuildEngineError if OpenVINO is missing or can't compile the model."""
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
        """Loads the engine of a directory. Raises BuildEngineError if that fails."""
        try:
            return cls(load_weights(engine_dir))
        except WeightsError as error:
            raise BuildEngineError(str(error)) from error

    def generate(self, prompt_ids: list[int], count: int) -> list[int]:
        """`count` greedy token ids; end tokens are ignored. Raises BuildEngineError if logits are not finite."""
        ids = list(prompt_ids)
        computed = 0
        for _ in range(count):
            logits = self._run(ids, computed, len(ids))[-1]
            computed = len(ids)
            ids.append(int(logits.argmax()))
        return ids[len(prompt_ids) :]

    def logits(self, ids: list[int]) -> npt.NDArray[np.float32]:
        """Logits at every position, float32, [len(ids), vocab_size]."""
        return np.concatenate(
            [
                self._run(ids, start, min(start + _CHUNK_TOKENS, len(ids)), all_positions=True)
                for start in range(0, len(ids), _CHUNK_TOKENS)
            ]
        )

    def _run(self, ids: list[int], start: int, end: int, *, all_positions: bool = False) -> npt.NDArray[np.float32]:
        """Computes ids[start:end]; ids[:start] must be in the KV cache. Returns logits of the last position or of all.

        float32, [1, vocab_size] or [end - start, vocab_size].
        """
        request = GenerationRequest("greedy", tuple(ids), 1, SamplingParams())
        blocks = list(range(-(-end // self._model.block_size)))  # of the only sequence
        sequence = Sequence(request, ids[:end], start, blocks, wants_prompt_logits=all_positions)
        logits = self._model.run([ScheduledChunk(sequence, start, end)])
        if not np.isfinite(logits).all():
            raise BuildEngineError(
                f"The engine's logits are not finite at position {end - 1}. The weights are damaged. Build it again."
            )
        return logits.copy()  # the next step reuses the model's memory
