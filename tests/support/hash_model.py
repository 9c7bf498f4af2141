"""A deterministic model for the CPU engine, in numpy, that shows every mistake with the KV cache."""

from __future__ import annotations

import zlib
from collections.abc import Sequence as SequenceType

import numpy as np
import numpy.typing as npt

from llm_pipeline.executors.cpu.engine.scheduler import ScheduledChunk

VOCABULARY = 97
CAPACITY = 128  # tokens


class HashModel:
    """Logits are a hash of all tokens before, as they stand in a paged cache: a wrong or shared block changes them."""

    def __init__(self, *, block_size: int = 4, capacity: int = CAPACITY) -> None:
        self.block_size = block_size
        self.block_count = capacity // block_size
        self._cache = np.full((self.block_count, block_size), -1)
        self.poison: int | None = None  # a history that holds this token gives NaN
        self.runs = 0

    def run(self, slices: SequenceType[ScheduledChunk]) -> npt.NDArray[np.float32]:
        self.runs += 1
        for piece in slices:
            for position in range(piece.start, piece.end):
                block = piece.sequence.blocks[position // self.block_size]
                self._cache[block, position % self.block_size] = piece.sequence.tokens[position]
        rows = [
            self._logits(piece, end)
            for piece in slices
            for end in range(piece.end - piece.logits_count + 1, piece.end + 1)
        ]
        return np.array(rows, dtype=np.float32).reshape(-1, VOCABULARY)

    def _logits(self, piece: ScheduledChunk, end: int) -> npt.NDArray[np.float64]:
        history = self._cache[piece.sequence.blocks].reshape(-1)[:end]
        if self.poison is not None and self.poison in history:
            return np.full(VOCABULARY, np.nan)
        return self.logits_after(history)

    @staticmethod
    def logits_after(history: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Of the token that comes after these."""
        return np.random.default_rng(zlib.crc32(np.asarray(history, dtype=np.int64).tobytes())).normal(size=VOCABULARY)
