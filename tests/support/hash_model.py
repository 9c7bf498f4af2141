"""A deterministic model for the CPU engine, in numpy, that exposes every mistake with the KV cache."""

from __future__ import annotations

import zlib
from collections.abc import Sequence as SequenceType

import numpy as np
import numpy.typing as npt

from llm_pipeline.executors.cpu.engine.scheduler import ScheduledChunk

VOCABULARY = 97
CAPACITY = 128  # tokens


class HashModel:
    """Computes logits as a hash of all previous tokens in a paged cache: a wrong or overwritten block changes them."""

    def __init__(self, *, block_size: int = 4, capacity: int = CAPACITY) -> None:
        self.block_size = block_size
        self.draft_step_tokens = 15
        self.block_count = capacity // block_size
        self._cache = np.full((self.block_count, block_size), -1)
        self.poison: int | None = None  # a history that contains this token gives NaN logits
        self.runs = 0

    def run(self, chunks: SequenceType[ScheduledChunk]) -> npt.NDArray[np.float32]:
        """Writes the chunks' tokens to the cache and returns their logits, f32 [logits, vocab_size]."""
        self.runs += 1
        for chunk in chunks:
            for position, token in enumerate(chunk.tokens, chunk.start):
                block = chunk.sequence.blocks[position // self.block_size]
                self._cache[block, position % self.block_size] = token
        rows = [
            self._logits(chunk, end)
            for chunk in chunks
            for end in range(chunk.computed_end - chunk.logits_count + 1, chunk.computed_end + 1)
        ]
        return np.array(rows, dtype=np.float32).reshape(-1, VOCABULARY)

    def _logits(self, chunk: ScheduledChunk, end: int) -> npt.NDArray[np.float64]:
        history = self._cache[chunk.sequence.blocks].reshape(-1)[:end]
        if self.poison is not None and self.poison in history:
            return np.full(VOCABULARY, np.nan)
        return self.logits_after(history)

    @staticmethod
    def logits_after(history: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Returns the logits, f64 [vocab_size], of the token after `history`."""
        return np.random.default_rng(zlib.crc32(np.asarray(history, dtype=np.int64).tobytes())).normal(size=VOCABULARY)


class RepeatingModel(HashModel):
    """A HashModel that mostly goes on as it did when its last token occurred before, like a copied text."""

    @staticmethod
    def logits_after(history: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Returns the logits, f64 [vocab_size], of the token after `history`."""
        logits = HashModel.logits_after(history)
        tokens = np.asarray(history).tolist()
        for end in range(len(tokens) - 1, 0, -1):
            if tokens[end - 1] == tokens[-1]:
                logits[tokens[end]] += 5
                break
        return logits
