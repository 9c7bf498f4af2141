"""The tokens that the fake generates."""

from __future__ import annotations

import json
from pathlib import Path

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
