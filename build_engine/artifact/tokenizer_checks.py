"""Loads the tokenizer of an engine directory or a model, checks it, and encodes texts with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from build_engine.artifact.checks import Check

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAMPLES = (
    "Hello",
    " two  spaces, a tab\tand\nnew lines\n\n",
    "In 2024 there were 1,234 of 56789.",
    "Grüße aus Köln, Привет, 你好, مرحبا",
    "def f(x):\n    return x ** 2  # 🙂",
)


def load_tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer  # here, so that a plan needs no tokenizer library

    return Tokenizer.from_file(str(path))


def check_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> Iterator[Check]:
    """Checks that every token id has a row among the `vocab_size` rows of the logits, and that texts round-trip."""
    size = tokenizer.get_vocab_size()
    yield Check.of("tokenizer size", size <= vocab_size, f"{size} tokens, {vocab_size} rows in the output matrix")
    changed = [text for text in SAMPLES if _round_trip(tokenizer, text) != text]
    detail = f"{len(SAMPLES)} texts"
    if changed:
        detail = f"{changed[0]!r} is decoded as {_round_trip(tokenizer, changed[0])!r}"
    yield Check.of("tokenizer round trip", not changed, detail)


def added_token_ids(path: Path) -> list[int]:
    """Ids that the tokenizer adds to every text by itself, such as a beginning-of-text token."""
    return list(load_tokenizer(path).encode("").ids)


def encode_texts(path: Path, texts: Sequence[str]) -> list[list[int]]:
    """Prompt token ids of each text, including the ids that the tokenizer adds."""
    return [list(encoding.ids) for encoding in load_tokenizer(path).encode_batch(list(texts))]


def _round_trip(tokenizer: Tokenizer, text: str) -> str:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return str(tokenizer.decode(ids, skip_special_tokens=False))
