"""The answers of the scripted executor to prompts without a script, computed independently of the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import orjson

from llm_pipeline.engine_files.manifest import TOKENIZER_NAME
from llm_pipeline.executors.scripted.scripts import synthetic_words

_CYCLE = 997


class SyntheticAnswers:
    """Token ids and texts by prompt. Prompts of different token ids below 997 have different answers."""

    def __init__(self, engine_dir: Path) -> None:
        self._words = synthetic_words(engine_dir)
        vocabulary = orjson.loads((engine_dir / TOKENIZER_NAME).read_bytes())["model"]["vocab"]
        pieces = {token_id: piece for piece, token_id in vocabulary.items()}
        self._texts = [" " + pieces[token_id][1:] for token_id in self._words]

    def token_ids(self, prompt_ids: Sequence[int], count: int) -> tuple[int, ...]:
        """The first `count` tokens of the answer."""
        return tuple(self._words[index] for index in self._indices(prompt_ids, count))

    def text(self, prompt_ids: Sequence[int], count: int) -> str:
        """The text of the first `count` tokens of the answer."""
        return "".join(self._texts[index] for index in self._indices(prompt_ids, count))

    def _indices(self, prompt_ids: Sequence[int], count: int) -> list[int]:
        first = sum(prompt_ids) % _CYCLE
        return [(first + offset) % len(self._words) for offset in range(count)]
