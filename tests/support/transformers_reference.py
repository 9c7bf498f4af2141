"""Logits and greedy tokens that transformers gives for tiny models; scripts/transformers_reference.py wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

# Longer than every sliding window of the models, and than a block of the KV cache.
PROMPT = tuple(3 + (number * number * 7 + number * 13) % 250 for number in range(40))
GREEDY_TOKENS = 64
# Of the prompt with its greedy tokens: positions whose logits are stored.
POSITIONS = (0, 15, 16, 19, 20, 31, 39, 63, 64, 103)
_DIRECTORY = Path(__file__).parents[1] / "data" / "transformers_reference"


@dataclass(frozen=True)
class Reference:
    greedy_ids: list[int]
    logits: npt.NDArray[np.float32]  # [len(POSITIONS), vocab_size]


def reference_path(name: str) -> Path:
    return _DIRECTORY / f"{name}.npz"


def load_reference(name: str) -> Reference:
    with np.load(reference_path(name)) as arrays:
        return Reference(arrays["greedy_ids"].tolist(), arrays["logits"])
