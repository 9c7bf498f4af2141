"""The assembler: text, counts and endings, for every way of splitting the tokens into chunks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pipeline.protocol.messages import FinishReason, TextChunk, TextOptions, TokenChunk
from llm_pipeline.text.assembler import RESERVE_TOKENS, TextAssembler
from llm_pipeline.text.tokenizer import Tokenizer

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)
STREAM = TextOptions(stream=True, max_tokens=1000, prompt_tokens=7)
WHOLE = replace(STREAM, stream=False)

FRAGMENTS = ["Hello", " world", "\n\n", "<|im_start|>", "你好", "世界", "😀", "👩‍👩‍👧", "e\u0301", "END", "E", "."]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)
stop_lists = st.lists(st.sampled_from(["END", "好世", "\n", "😀", "ND.", "world", "l", "🐍", "\u200d"]), max_size=3)
sizes = st.lists(st.integers(0, 4), min_size=1, max_size=8).filter(any)
reasons = st.sampled_from([FinishReason.LENGTH, FinishReason.STOP, FinishReason.CANCELLED])


def push_all(
    tokenizer: Tokenizer,
    options: TextOptions,
    token_ids: Sequence[int],
    chunk_sizes: Sequence[int] = (1,),
    reason: FinishReason = FinishReason.LENGTH,
    *,
    has_empty_end: bool = False,
) -> list[TextChunk]:
    """Pushes the tokens in chunks of these sizes, of which the last ends the request. Returns the text chunks."""
    groups: list[tuple[int, ...]] = []
    position = 0
    for size in itertools.cycle(chunk_sizes):
        if position >= len(token_ids):
            break
        groups.append(tuple(token_ids[position : position + size]))
        position += size
    if has_empty_end or not groups:
        groups.append(())
    assembler = TextAssembler(tokenizer.token_table, options)
    pushed = [
        assembler.push(TokenChunk("key", index, ids, finish_reason=reason if index == len(groups) - 1 else None))
        for index, ids in enumerate(groups)
    ]
    assert assembler.is_finished
    return [chunk for chunk in pushed if chunk is not None]


def text_of(chunks: list[TextChunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def decoded(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    detokenizer = tokenizer.token_table.start(skip_special_tokens=True)
    return "".join([*detokenizer.feed(token_ids), detokenizer.finish()])


def first_match_end(text: str, stops: Sequence[str]) -> int | None:
    ends = (end for end in range(1, len(text) + 1) if any(text[:end].endswith(stop) for stop in stops))
    return next(ends, None)


# --- Streams and whole texts -----------------------------------------------------------------------------------------


@given(
    text=texts,
    stop=stop_lists,
    chunk_sizes=sizes,
    reason=reasons,
    max_tokens=st.integers(1, 40),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    has_empty_end=st.booleans(),
    is_byte_level=st.booleans(),
)
@PROPERTY
def test_streamed_text_adds_up_to_the_whole(
    byte_level: Tokenizer,
    sentencepiece: Tokenizer,
    text: str,
    stop: list[str],
    chunk_sizes: list[int],
    reason: FinishReason,
    max_tokens: int,
    flags: tuple[bool, bool, bool],
    has_empty_end: bool,
    is_byte_level: bool,
) -> None:
    tokenizer = byte_level if is_byte_level else sentencepiece
    include, skip, return_token_ids = flags
    options = TextOptions(
        stop=tuple(stop),
        include_stop_str_in_output=include,
        skip_special_tokens=skip,
        return_token_ids=return_token_ids,
        max_tokens=max_tokens,
        prompt_tokens=3,
    )
    token_ids = tokenizer.encode(text)[:max_tokens]
    if reason is FinishReason.STOP:
        token_ids[-1:] = [max(tokenizer.special_ids)]
        has_empty_end = False
    [whole] = push_all(tokenizer, options, token_ids, (len(token_ids) or 1,), reason)
    streamed = push_all(
        tokenizer, replace(options, stream=True), token_ids, chunk_sizes, reason, has_empty_end=has_empty_end
    )
    assert text_of(streamed) == whole.text
    assert "\ufffd" not in whole.text
    assert [chunk.finish_reason for chunk in streamed] == [None] * (len(streamed) - 1) + [whole.finish_reason]
    assert streamed[-1].completion_tokens == whole.completion_tokens
    assert streamed[0].prompt_tokens == streamed[-1].prompt_tokens == whole.prompt_tokens == 3
    assert all(chunk.prompt_tokens is None for chunk in streamed[1:-1])
    if return_token_ids:
        assert whole.token_ids == tuple(token_ids[: whole.completion_tokens])
        assert tuple(id_ for chunk in streamed for id_ in chunk.token_ids or ()) == whole.token_ids
    else:
        assert all(chunk.token_ids is None for chunk in [whole, *streamed])


@given(text=texts, stop=stop_lists, chunk_sizes=sizes, include=st.booleans())
@PROPERTY
def test_a_stop_string_ends_text_and_count_where_it_was_completed(
    byte_level: Tokenizer, text: str, stop: list[str], chunk_sizes: list[int], include: bool
) -> None:
    token_ids = byte_level.encode(text)
    whole = decoded(byte_level, token_ids)
    end = first_match_end(whole, stop)
    options = replace(STREAM, stop=tuple(stop), include_stop_str_in_output=include)
    chunks = push_all(byte_level, options, token_ids, chunk_sizes)
    if end is None:
        assert (text_of(chunks), chunks[-1].finish_reason) == (whole, FinishReason.LENGTH)
        assert chunks[-1].completion_tokens == len(token_ids)
        return
    needed = next(n for n in range(len(token_ids) + 1) if len(decoded(byte_level, token_ids[:n])) >= end)
    ended = next(string for string in stop if whole[:end].endswith(string))
    assert text_of(chunks) == whole[: end if include else end - len(ended)]
    assert (chunks[-1].finish_reason, chunks[-1].completion_tokens) == (FinishReason.STOP, needed)


# --- Chunks ----------------------------------------------------------------------------------------------------------


def test_a_stream_has_one_chunk_per_token(byte_level: Tokenizer) -> None:
    token_ids = byte_level.encode("The quick brown fox")
    chunks = push_all(byte_level, STREAM, token_ids)
    assert len(chunks) == len(token_ids)
    assert [chunk.completion_tokens for chunk in chunks] == list(range(1, len(token_ids) + 1))


def test_tokens_without_text_make_no_chunk(byte_level: Tokenizer) -> None:
    assembler = TextAssembler(byte_level.token_table, STREAM)
    first, *_ = byte_level.encode("𝔘")
    [special] = byte_level.encode("<|im_start|>")
    assert assembler.push(TokenChunk("key", 0, (first,))) is None
    assert assembler.push(TokenChunk("key", 1, (special,))) is None
    assert not assembler.is_finished


def test_a_whole_completion_is_one_chunk(byte_level: Tokenizer) -> None:
    token_ids = byte_level.encode("Hello world")
    assert push_all(byte_level, WHOLE, token_ids) == [
        TextChunk("Hello world", len(token_ids), None, 7, FinishReason.LENGTH)
    ]


def test_chunks_after_a_stop_string_are_ignored(byte_level: Tokenizer) -> None:
    assembler = TextAssembler(byte_level.token_table, replace(STREAM, stop=("!",)))
    last = assembler.push(TokenChunk("key", 0, tuple(byte_level.encode("Hi! More"))))
    assert last is not None
    assert (last.text, last.finish_reason) == ("Hi", FinishReason.STOP)
    assert assembler.is_finished
    late = TokenChunk("key", 1, tuple(byte_level.encode("more")), finish_reason=FinishReason.CANCELLED)
    assert assembler.push(late) is None


def test_a_held_prefix_is_flushed_at_the_end(byte_level: Tokenizer) -> None:
    chunks = push_all(byte_level, replace(STREAM, stop=("END.",)), byte_level.encode("The END"))
    assert text_of(chunks) == "The END"


@pytest.mark.parametrize("stream", [True, False])
def test_a_cancelled_request_ends_with_the_text_so_far(byte_level: Tokenizer, stream: bool) -> None:
    options = replace(STREAM, stream=stream, stop=("o!",))
    chunks = push_all(
        byte_level, options, byte_level.encode("Hello"), reason=FinishReason.CANCELLED, has_empty_end=True
    )
    assert (text_of(chunks), chunks[-1].finish_reason) == ("Hello", FinishReason.CANCELLED)


# --- The end-of-sequence token ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_separate", [True, False], ids=["own-chunk", "with-text"])
@pytest.mark.parametrize(
    ("skip", "include", "text"),
    [(True, True, "Hi"), (True, False, "Hi"), (False, False, "Hi"), (False, True, "Hi<|endoftext|>")],
)
def test_the_end_token_is_counted_and_shown_only_on_request(
    byte_level: Tokenizer, is_separate: bool, skip: bool, include: bool, text: str
) -> None:
    token_ids = byte_level.encode("Hi<|endoftext|>")
    options = replace(STREAM, skip_special_tokens=skip, include_stop_str_in_output=include, return_token_ids=True)
    chunks = push_all(byte_level, options, token_ids, [1 if is_separate else 10], FinishReason.STOP)
    assert text_of(chunks) == text
    assert chunks[-1].completion_tokens == len(token_ids)
    assert (chunks[-1].token_ids or ())[-1] == token_ids[-1]


def test_an_unfinished_character_before_the_end_token_is_dropped(byte_level: Tokenizer) -> None:
    token_ids = [*byte_level.encode("Hi𝔘")[:-1], *byte_level.encode("<|endoftext|>")]
    options = replace(STREAM, skip_special_tokens=False, include_stop_str_in_output=True)
    assert text_of(push_all(byte_level, options, token_ids, [3], FinishReason.STOP)) == "Hi<|endoftext|>"


def test_an_empty_final_chunk_with_stop_adds_no_text(byte_level: Tokenizer) -> None:
    options = replace(STREAM, skip_special_tokens=False, include_stop_str_in_output=True)
    token_ids = byte_level.encode("Hi")
    chunks = push_all(byte_level, options, token_ids, [10], FinishReason.STOP, has_empty_end=True)
    assert text_of(chunks) == "Hi"
    assert chunks[-1].completion_tokens == len(token_ids)


def test_stop_strings_do_not_match_the_text_of_the_end_token(byte_level: Tokenizer) -> None:
    options = replace(STREAM, skip_special_tokens=False, include_stop_str_in_output=True, stop=("<|", "i<"))
    token_ids = byte_level.encode("Hi<|endoftext|>")
    chunks = push_all(byte_level, options, token_ids, [10], FinishReason.STOP)
    assert (text_of(chunks), chunks[-1].completion_tokens) == ("Hi<|endoftext|>", len(token_ids))


def test_a_stop_string_wins_over_the_end_token_of_the_same_chunk(byte_level: Tokenizer) -> None:
    token_ids = byte_level.encode("H!?<|endoftext|>")
    chunks = push_all(byte_level, replace(WHOLE, stop=("!",)), token_ids, [10], FinishReason.STOP)
    assert chunks == [TextChunk("H", 2, None, 7, FinishReason.STOP)]


# --- The length limit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_empty_end", [False, True], ids=["token-end", "empty-end"])
@pytest.mark.parametrize(
    "tail",
    ["", "<|im_start|>", "<|im_start|>" * 3, "cut𝔘"],
    ids=["text", "special", "specials", "unfinished-character"],
)
def test_a_request_that_ends_at_max_tokens_has_text_in_its_last_chunk(
    byte_level: Tokenizer, tail: str, has_empty_end: bool
) -> None:
    token_ids = byte_level.encode("The quick brown fox" + tail)
    if tail.startswith("cut"):
        token_ids = token_ids[:-1]
    options = replace(STREAM, max_tokens=len(token_ids))
    chunks = push_all(byte_level, options, token_ids, has_empty_end=has_empty_end)
    assert chunks[-1].text
    assert chunks[-1].finish_reason is FinishReason.LENGTH
    assert text_of(chunks) == decoded(byte_level, token_ids)


def test_one_character_is_held_in_reserve_near_the_limit(byte_level: Tokenizer) -> None:
    token_ids = byte_level.encode("x" * (RESERVE_TOKENS + 4))
    assert len(token_ids) == RESERVE_TOKENS + 4
    options = replace(STREAM, max_tokens=len(token_ids))
    assembler = TextAssembler(byte_level.token_table, options)
    pushed = [assembler.push(TokenChunk("key", index, (id_,))) for index, id_ in enumerate(token_ids)]
    assert [chunk.text if chunk else None for chunk in pushed] == ["x"] * 4 + [None] + ["x"] * (RESERVE_TOKENS - 1)
    last = assembler.push(TokenChunk("key", len(pushed), (), finish_reason=FinishReason.LENGTH))
    assert last == TextChunk("x", len(token_ids), None, 7, FinishReason.LENGTH)


def test_ids_at_the_limit_wait_for_the_finish_reason(byte_level: Tokenizer) -> None:
    """The last chunk of a request that ends at max_tokens has an id, even if the engine ends with an empty step."""
    token_ids = byte_level.encode("xxxx")
    options = replace(STREAM, max_tokens=4, return_token_ids=True)
    chunks = push_all(byte_level, options, token_ids, has_empty_end=True)
    assert [chunk.token_ids for chunk in chunks] == [(token_id,) for token_id in token_ids]
    assert chunks[-1].finish_reason is FinishReason.LENGTH


# --- Token ids -------------------------------------------------------------------------------------------------------


def test_ids_without_text_are_sent_at_once(byte_level: Tokenizer) -> None:
    token_ids = byte_level.encode("𝔘 END")
    options = replace(STREAM, return_token_ids=True, stop=("END.",))
    chunks = push_all(byte_level, options, token_ids)
    assert [chunk.token_ids for chunk in chunks] == [(token_id,) for token_id in token_ids]
    assert chunks[0].text == ""


def test_ids_end_with_the_token_that_completed_the_match(byte_level: Tokenizer) -> None:
    token_ids = byte_level.encode("xEyzzz")
    options = replace(WHOLE, return_token_ids=True, stop=("y",))
    [chunk] = push_all(byte_level, options, token_ids, [10])
    assert (chunk.text, chunk.token_ids, chunk.completion_tokens) == ("xE", tuple(token_ids[:3]), 3)


# --- Where the text begins -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("is_text_start", "text"), [(False, " The"), (True, "The")])
def test_the_leading_space_is_dropped_only_at_the_start_of_all_text(
    sentencepiece: Tokenizer, is_text_start: bool, text: str
) -> None:
    options = replace(STREAM, is_text_start=is_text_start)
    assert text_of(push_all(sentencepiece, options, sentencepiece.encode("The"))) == text


def test_stop_strings_match_a_completed_character_of_the_prompt(byte_level: Tokenizer) -> None:
    *context_ids, last = byte_level.encode("𝔘")
    options = replace(STREAM, context_ids=tuple(context_ids), stop=("𝔘",))
    chunks = push_all(byte_level, options, [last, *byte_level.encode("x")], [5])
    assert chunks == [TextChunk("", 1, None, 7, FinishReason.STOP)]
