"""Reads the vocabulary of a tokenizer.json without loading the tokenizer."""

from __future__ import annotations

import json


def read_vocabulary(tokenizer_json: str) -> list[str]:
    """Returns the tokens of a tokenizer.json in the order of their ids; an empty string for unused ids."""
    document = json.loads(tokenizer_json)
    vocab = document["model"]["vocab"]
    # BPE and WordPiece map pieces to ids; Unigram lists pieces with their scores.
    by_id = {index: piece for piece, index in vocab.items()} if isinstance(vocab, dict) else {}
    if isinstance(vocab, list):
        by_id = {index: piece for index, (piece, _score) in enumerate(vocab)}
    by_id |= {token["id"]: token["content"] for token in document.get("added_tokens", [])}
    return [by_id.get(index, "") for index in range(max(by_id, default=-1) + 1)]
