"""Prepares the tokenizer.json of a model directory for an engine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from build_engine.artifact.model_directory import read_json_object
from build_engine.errors import EngineRefusedError
from llm_pipeline.engine_files.manifest import TOKENIZER_NAME


@dataclass(frozen=True)
class EngineTokenizer:
    json: str
    token_count: int  # the highest token id plus 1


def read_tokenizer(model_dir: Path, vocab_size: int) -> EngineTokenizer:
    """The tokenizer without truncation and padding, which would change prompts, and without ids that have no logits.

    Gemma 3 1B has such an id: its tokenizer is that of the models with images. Raises EngineRefusedError if the file is
    missing or invalid.
    """
    path = model_dir / TOKENIZER_NAME
    if not path.is_file():
        raise EngineRefusedError(
            f"{model_dir} has no {TOKENIZER_NAME}. Save the tokenizer with transformers' AutoTokenizer first."
        )
    values = read_json_object(path)
    added = values.get("added_tokens") or []
    try:
        kept = [token for token in added if token["id"] < vocab_size]
        if len(kept) != len(added) or values.get("truncation") or values.get("padding"):
            values |= {"added_tokens": kept, "truncation": None, "padding": None}
            text = json.dumps(values, ensure_ascii=False)
        else:
            text = path.read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:
        raise EngineRefusedError(f"{path} is not a valid tokenizer: {error}. Download it again.") from error
    return EngineTokenizer(text, max(tokenizer.get_vocab().values(), default=-1) + 1)
