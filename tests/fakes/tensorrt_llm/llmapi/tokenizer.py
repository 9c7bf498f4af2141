"""Tokenizer of a model directory, as far as the LLM needs one: ids of text, text of ids, and the end token."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer


class LlmTokenizer:
    def __init__(self, folder: Path) -> None:
        if not (folder / "tokenizer.json").is_file():
            raise OSError(f"Can't load tokenizer for '{folder}'.")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        eos_ids = read_eos_ids(folder)
        self.eos_token_id = eos_ids[0] if eos_ids else None
        self.pad_token_id = None

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))


def load_tokenizer(folder: Path) -> LlmTokenizer:
    return LlmTokenizer(folder)


def read_eos_ids(folder: Path) -> list[int]:
    """Returns the end tokens of generation_config.json, or of config.json."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            found = json.loads((folder / name).read_bytes()).get("eos_token_id")
            if found is not None:
                return [found] if isinstance(found, int) else list(found)
    return []
