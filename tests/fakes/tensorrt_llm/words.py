"""The tokens that the fake generates."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

_WORDS = 997


def words_of(engine_dir: Path, vocab_size: int) -> list[int]:
    """Returns ids of tokens that are words with a leading space."""
    path = engine_dir / "tokenizer.json"
    if not path.exists():
        return list(range(10, vocab_size))
    vocab = json.loads(path.read_bytes())["model"]["vocab"]
    words = [
        index
        for piece, index in vocab.items()
        if piece[:1] in ("Ġ", "▁") and piece[1:].isascii() and piece[1:].isalpha()
    ]
    return sorted(words)[:_WORDS]


def pick(words: Sequence[int], history: Sequence[int], randomness: Any, banned: Collection[int]) -> int:
    """Returns the next token: a hash of all tokens so far and of the parameters that make a request random."""
    start = zlib.crc32(repr((list(history), randomness)).encode())
    for offset in range(len(words)):
        word = words[(start + offset) % len(words)]
        if word not in banned:
            return int(word)
    raise AssertionError("every word is banned")
