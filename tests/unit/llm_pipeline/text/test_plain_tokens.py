"""Plain tokens: the short way through the assembler returns what the long one does, whatever the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pipeline.protocol.messages import FinishReason, RequestLogprobs, TextChunk, TextOptions
from llm_pipeline.text.assembler import TextAssembler
from llm_pipeline.text.tokenizer import Tokenizer
from tests.support.token_streams import split

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)
STREAM = TextOptions(stream=True, max_tokens=1000, prompt_tokens=7)

FRAGMENTS = ["Hello", " world", "\n", "<|im_start|>", "<s>", "你好", "😀", "👩‍👩‍👧", "e\u0301", "END", "▁"]
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=12).map("".join)
random_ids = st.lists(st.integers(0, 460), max_size=40)
sizes = st.lists(st.integers(0, 4), min_size=1, max_size=8).filter(any)
plain_options = st.builds(
    TextOptions,
    stream=st.booleans(),
    max_tokens=st.integers(1, 20) | st.just(1000),
    prompt_tokens=st.just(3),
    is_text_start=st.booleans(),
)
all_options = st.builds(
    TextOptions,
    stop=st.lists(st.sampled_from(["END", "好", "l"]), max_size=1).map(tuple),
    skip_special_tokens=st.booleans(),
    return_token_ids=st.booleans(),
    stream=st.booleans(),
    max_tokens=st.integers(1, 40) | st.just(1000),
    prompt_tokens=st.just(3),
    context_ids=st.lists(st.integers(0, 460), max_size=4).map(tuple),
    is_text_start=st.booleans(),
    return_logprob_values=st.booleans(),
    echo_ids=st.none() | st.lists(st.integers(0, 460), max_size=4).map(tuple),
)


def pieces_of(
    tokenizer: Tokenizer, options: TextOptions, groups: Sequence[Sequence[int]], *, tries_plain: bool
) -> list[TextChunk]:
    """Pushes each group of tokens, the short way if that is possible, and then the end."""
    assembler = TextAssembler(tokenizer.token_table, options, tokenizer.token_strings)
    pieces: list[TextChunk | None] = []
    for group in groups:
        text = assembler.push_plain(group) if tries_plain else None
        if text is None:
            pieces.append(assembler.push_tokens(group))
        else:
            pieces.append(TextChunk(text, assembler.completion_tokens) if text else None)
    pieces.append(assembler.push_tokens((), FinishReason.LENGTH))
    return [piece for piece in pieces if piece is not None]


@given(
    text_or_ids=texts | random_ids,
    options=plain_options | all_options,
    chunk_sizes=sizes,
    kind=st.sampled_from(["byte_level", "sentencepiece", "metaspace", "word_piece", "unknown_byte"]),
)
@PROPERTY
def test_plain_tokens_give_the_same_chunks_as_any_others(
    byte_level_library: tokenizers.Tokenizer,
    sentencepiece_library: tokenizers.Tokenizer,
    metaspace_library: tokenizers.Tokenizer,
    word_piece_library: tokenizers.Tokenizer,
    unknown_byte_library: tokenizers.Tokenizer,
    text_or_ids: str | list[int],
    options: TextOptions,
    chunk_sizes: list[int],
    kind: str,
) -> None:
    libraries = {
        "byte_level": byte_level_library,
        "sentencepiece": sentencepiece_library,
        "metaspace": metaspace_library,
        "word_piece": word_piece_library,
        "unknown_byte": unknown_byte_library,
    }
    tokenizer = Tokenizer(libraries[kind])
    token_ids = tokenizer.encode(text_or_ids) if isinstance(text_or_ids, str) else text_or_ids
    groups = list(split(token_ids[: options.max_tokens], chunk_sizes))
    assert pieces_of(tokenizer, options, groups, tries_plain=True) == pieces_of(
        tokenizer, options, groups, tries_plain=False
    )


def test_most_tokens_of_a_stream_are_plain(byte_level: Tokenizer) -> None:
    assembler = TextAssembler(byte_level.token_table, STREAM)
    first, *others = byte_level.encode("The quick brown fox")
    assert assembler.push_plain([first]) is None  # its chunk has the number of prompt tokens
    assert assembler.push_tokens([first]) is not None
    assert "".join(assembler.push_plain([token_id]) or "" for token_id in others) == " quick brown fox"
    assert assembler.completion_tokens == 1 + len(others)


def test_all_tokens_of_a_request_that_does_not_stream_are_plain(byte_level: Tokenizer) -> None:
    assembler = TextAssembler(byte_level.token_table, replace(STREAM, stream=False))
    token_ids = byte_level.encode("The quick brown fox")
    assert [assembler.push_plain([token_id]) for token_id in token_ids] == [""] * len(token_ids)
    whole = assembler.push_tokens((), FinishReason.LENGTH)
    assert whole == TextChunk("The quick brown fox", len(token_ids), None, 7, FinishReason.LENGTH)


@pytest.mark.parametrize(
    "options",
    [
        replace(STREAM, stop=("END",)),
        replace(STREAM, return_token_ids=True),
        replace(STREAM, num_logprobs=0),
        replace(STREAM, return_logprob_values=True),
    ],
    ids=["stop", "ids", "logprobs", "logprob-values"],
)
def test_tokens_of_requests_that_need_more_than_text_are_not_plain(byte_level: Tokenizer, options: TextOptions) -> None:
    for stream in (True, False):
        assembler = TextAssembler(byte_level.token_table, replace(options, stream=stream), byte_level.token_strings)
        assembler.push_tokens([5], logprobs=RequestLogprobs((-0.5,)))
        assert assembler.push_plain([5]) is None
        assert assembler.completion_tokens == 1


def test_tokens_after_the_finish_reason_are_not_plain(byte_level: Tokenizer) -> None:
    assembler = TextAssembler(byte_level.token_table, STREAM)
    assembler.push_tokens([5], FinishReason.CANCELLED)
    assert assembler.push_plain([5]) is None
