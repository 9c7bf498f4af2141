"""Feeds token ids to a detokenizer in chunks, as a stream does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import tokenizers

from llm_pipeline.text.detokenizer import TokenTable


def split(token_ids: Sequence[int], chunk_sizes: list[int]) -> Iterator[Sequence[int]]:
    """The ids in chunks of these sizes, repeated as needed."""
    position = 0
    for size in itertools.cycle(chunk_sizes):
        if position >= len(token_ids):
            return
        yield token_ids[position : position + size]
        position += size


def stream(
    table: TokenTable,
    token_ids: Sequence[int],
    chunk_sizes: list[int],
    *,
    skip_special_tokens: bool = True,
    context_ids: Sequence[int] = (),
    is_text_start: bool = False,
) -> str:
    """The text of a detokenizer that gets the ids in chunks of these sizes."""
    detokenizer = table.start(
        skip_special_tokens=skip_special_tokens, context_ids=context_ids, is_text_start=is_text_start
    )
    pieces: list[str] = []
    for chunk in split(token_ids, chunk_sizes):
        new = detokenizer.feed(chunk)
        assert len(new) == len(chunk)
        pieces += new
    return "".join([*pieces, detokenizer.finish()])


def id_of(library: tokenizers.Tokenizer, token: str) -> int:
    token_id = library.token_to_id(token)
    assert token_id is not None, token
    return token_id
