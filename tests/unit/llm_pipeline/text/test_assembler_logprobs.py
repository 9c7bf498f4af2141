"""Logprobs and echoed prompts: consistent with the text, for every way of splitting the tokens into chunks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pipeline.protocol.messages import FinishReason, PromptLogprobs, TextChunk, TextOptions, TokenChunk
from llm_pipeline.text.assembler import TextAssembler
from llm_pipeline.text.tokenizer import Tokenizer

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)
LOGPROBS = TextOptions(stream=True, max_tokens=1000, prompt_tokens=7, num_logprobs=2, return_logprob_values=True)
LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")

FRAGMENTS = ["Hello", " world", "\n\n", "<|im_start|>", "你好", "世界", "😀", "END", "E", "."]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=10).map("".join)
stop_lists = st.lists(st.sampled_from(["END", "好世", "\n", "😀", "ND.", "world", "l"]), max_size=2).map(tuple)
sizes = st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any)


def value_of(position: int) -> float:
    return -0.5 - position / 64  # exact in FP32


def push_all(
    tokenizer: Tokenizer,
    options: TextOptions,
    token_ids: Sequence[int],
    chunk_sizes: Sequence[int] = (1,),
    reason: FinishReason = FinishReason.LENGTH,
) -> list[TextChunk]:
    """Pushes the tokens in chunks of these sizes and returns the text chunks. Token 1 is always the most likely."""
    groups: list[list[int]] = []
    positions = iter(range(len(token_ids)))
    for size in itertools.cycle(chunk_sizes):
        if sum(map(len, groups)) >= len(token_ids):
            break
        groups.append(list(itertools.islice(positions, size)))
    groups = groups or [[]]
    prompt = None
    if options.echo_ids is not None and options.num_logprobs is not None:
        others = range(1, len(options.echo_ids))
        prompt = PromptLogprobs(tuple(map(value_of, others)), tuple(((1, 2), (-0.1, -3.0)) for _ in others))
    assembler = TextAssembler(tokenizer.token_table, options, tokenizer.token_strings)
    pushed = [
        assembler.push(
            TokenChunk(
                "key",
                index,
                tuple(token_ids[position] for position in group),
                finish_reason=reason if index == len(groups) - 1 else None,
                logprobs=tuple(map(value_of, group)),
                top_logprobs=tuple(((1, 2), (-0.1, -3.0)) for _ in group),
                prompt_logprobs=prompt if index == 0 else None,
            )
        )
        for index, group in enumerate(groups)
    ]
    return [chunk for chunk in pushed if chunk is not None]


def listed(chunks: Sequence[TextChunk]) -> dict[str, list[Any]]:
    """Joins the lists of all chunks."""
    parts = [json.loads(chunk.logprobs_json or b"{}") for chunk in chunks]
    found = {name: [item for part in parts for item in part.get(name, [])] for name in LISTS}
    assert len({len(items) for items in found.values()}) == 1
    return found


def text_of(chunks: Sequence[TextChunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


options_of_all_kinds = st.builds(
    replace,
    st.just(LOGPROBS),
    stop=stop_lists,
    include_stop_str_in_output=st.booleans(),
    skip_special_tokens=st.booleans(),
    max_tokens=st.sampled_from([1000, 3, 1]),
    min_tokens=st.integers(0, 3),
    echo_ids=st.none() | st.lists(st.integers(0, 300), min_size=1, max_size=8).map(tuple),
)
id_options = st.sampled_from([(False, False), (True, False), (True, True)])
options_of_all_kinds = st.builds(
    lambda options, ids: replace(
        options,
        return_token_ids=ids[0],
        return_tokens_as_token_ids=ids[1],
        prompt_token_ids=(1, 2) if ids[0] else None,
    ),
    options_of_all_kinds,
    id_options,
)


@given(options_of_all_kinds, texts, sizes, st.sampled_from([FinishReason.LENGTH, FinishReason.STOP]))
@PROPERTY
def test_pieces_of_a_stream_add_up_to_the_whole(
    byte_level: Tokenizer, options: TextOptions, text: str, chunk_sizes: list[int], reason: FinishReason
) -> None:
    ids = byte_level.encode(text)
    if options.max_tokens < len(ids):
        ids, reason = ids[: options.max_tokens], FinishReason.LENGTH
    streamed = push_all(byte_level, options, ids, chunk_sizes, reason)
    (whole,) = push_all(byte_level, replace(options, stream=False), ids, [len(ids) or 1], reason)
    assert text_of(streamed) == whole.text
    assert listed(streamed) == listed([whole])
    assert [i for chunk in streamed for i in chunk.token_ids or ()] == list(whole.token_ids or ())
    for chunks in (streamed, [whole]):
        first, *others = (chunk.prompt_token_ids for chunk in chunks)
        assert (first, set(others) - {None}) == (options.prompt_token_ids, set())
        assert len([i for chunk in chunks for i in chunk.token_ids or ()]) in (0, whole.completion_tokens)
    assert [v for chunk in streamed for v in chunk.token_logprobs or ()] == list(whole.token_logprobs or ())
    assert streamed[-1].cumulative_logprob == whole.cumulative_logprob == pytest.approx(sum(whole.token_logprobs or ()))
    assert len(whole.token_logprobs or ()) == whole.completion_tokens


@given(options_of_all_kinds, texts, sizes)
@PROPERTY
def test_each_listed_token_begins_where_its_text_does(
    byte_level: Tokenizer, options: TextOptions, text: str, chunk_sizes: list[int]
) -> None:
    options = replace(options, return_tokens_as_token_ids=False, skip_special_tokens=False)
    chunks = push_all(byte_level, options, byte_level.encode(text), chunk_sizes)
    full, found = text_of(chunks), listed(chunks)
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        assert offset <= len(full)
        if not token.startswith("bytes:") and "\ufffd" not in full:
            assert full[offset:].startswith(token) or token.startswith(full[offset:])  # the last one may be cut


@given(st.sampled_from(["Hello END world", "你好END世界", "ENDEND"]), sizes, st.booleans())
@PROPERTY
def test_no_token_is_listed_after_a_stop_string(
    byte_level: Tokenizer, text: str, chunk_sizes: list[int], includes: bool
) -> None:
    options = replace(LOGPROBS, stop=("END",), include_stop_str_in_output=includes)
    chunks = push_all(byte_level, options, byte_level.encode(text), chunk_sizes)
    shown = text[: text.index("END") + (3 if includes else 0)]
    assert text_of(chunks) == shown
    assert all(offset < len(shown) for offset in listed(chunks)["text_offset"])
    assert "world" not in "".join(listed(chunks)["tokens"])


def test_a_part_of_a_character_is_listed_as_its_bytes(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("🐍")
    assert len(ids) > 1
    found = listed(push_all(byte_level, replace(LOGPROBS, num_logprobs=0), ids))
    written = b"".join(
        bytes(int(part, 16) for part in token.removeprefix("bytes:").split("\\x")[1:]) for token in found["tokens"]
    )
    assert written.decode() == "🐍"
    assert found["text_offset"] == [0] * len(ids)


def test_the_end_token_is_listed_although_it_has_no_text(byte_level: Tokenizer) -> None:
    (end,) = byte_level.encode("<|endoftext|>")
    chunks = push_all(byte_level, LOGPROBS, [*byte_level.encode("Hello"), end], reason=FinishReason.STOP)
    assert text_of(chunks) == "Hello"
    assert (listed(chunks)["tokens"][-1], listed(chunks)["text_offset"][-1]) == ("<|endoftext|>", 5)


def test_the_top_logprobs_include_the_token_itself(byte_level: Tokenizer) -> None:
    names = byte_level.token_strings
    found = listed(push_all(byte_level, LOGPROBS, [1, 30]))["top_logprobs"]
    assert found == [{names[1]: -0.1, names[2]: -3.0}, {names[1]: -0.1, names[2]: -3.0, names[30]: value_of(1)}]


def test_tokens_as_ids_are_listed_by_id(byte_level: Tokenizer) -> None:
    options = replace(LOGPROBS, return_token_ids=True, return_tokens_as_token_ids=True, echo_ids=(7, 8))
    found = listed(push_all(byte_level, options, [30, 1], [2]))
    assert found["tokens"] == ["token_id:7", "token_id:8", "token_id:30", "token_id:1"]
    assert found["text_offset"] == [0, 10, 20, 31]  # in the text of ids
    assert set(found["top_logprobs"][2]) == {"token_id:1", "token_id:2", "token_id:30"}


# --- Echo ------------------------------------------------------------------------------------------------------------


def test_the_first_token_of_a_prompt_has_no_logprob(byte_level: Tokenizer) -> None:
    prompt = byte_level.encode("Hello world")
    chunks = push_all(byte_level, replace(LOGPROBS, echo_ids=tuple(prompt)), byte_level.encode("."))
    found = listed(chunks)
    assert text_of(chunks) == "Hello world."
    assert found["token_logprobs"] == [None, *(value_of(position) for position in range(1, len(prompt))), value_of(0)]
    assert found["top_logprobs"][0] is None
    assert found["text_offset"][-1] == len("Hello world")


def test_an_echoed_prompt_is_in_the_first_chunk_even_without_a_token(byte_level: Tokenizer) -> None:
    options = replace(LOGPROBS, echo_ids=tuple(byte_level.encode("Hello")), max_tokens=0)
    (only,) = push_all(byte_level, options, [])
    assert (only.text, only.completion_tokens, only.finish_reason) == ("Hello", 0, FinishReason.LENGTH)
    assert "".join(listed([only])["tokens"]) == "Hello"


@pytest.mark.parametrize("text", ["Hello world", " Hello", "<|im_start|>Hello", "你好🐍"])
def test_a_text_prompt_is_echoed_as_it_was_sent(byte_level: Tokenizer, sentencepiece: Tokenizer, text: str) -> None:
    for tokenizer in (byte_level, sentencepiece):
        options = replace(LOGPROBS, echo_ids=tuple(tokenizer.encode(text)), echo_text=text)
        (only,) = push_all(tokenizer, replace(options, max_tokens=0), [])
        assert only.text == text
        assert max(listed([only])["text_offset"]) <= len(text)


def test_a_bos_is_not_in_the_echoed_text_and_moves_no_offset(sentencepiece: Tokenizer) -> None:
    (bos,) = sentencepiece.encode("<s>", add_special_tokens=False)[-1:]
    ids = (bos, *sentencepiece.encode("Hello dog"))
    (only,) = push_all(sentencepiece, replace(LOGPROBS, echo_ids=ids, echo_text="Hello dog", max_tokens=0), [])
    assert only.text == "Hello dog"
    assert listed([only])["text_offset"][:2] == [0, 0]


def test_a_prompt_that_ends_inside_a_character_is_completed_by_the_completion(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("Hi 🐍!")
    cut = len(byte_level.encode("Hi ")) + 1
    options = replace(LOGPROBS, echo_ids=tuple(ids[:cut]), context_ids=tuple(ids[:cut][-4:]))
    assert text_of(push_all(byte_level, options, ids[cut:])) == "Hi 🐍!"


def test_stop_strings_match_only_after_min_tokens(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("END END END")
    for count in range(len(ids) + 1):
        chunks = push_all(byte_level, replace(LOGPROBS, stop=("END",), min_tokens=count), ids, [3])
        free = byte_level.token_table.start(skip_special_tokens=True).feed(ids[:count])
        rest = "END END END"[len("".join(free)) :]
        assert text_of(chunks) == "".join(free) + rest.split("END")[0]


def test_a_stop_token_is_shown_like_a_stop_string(byte_level: Tokenizer) -> None:
    (end,) = byte_level.encode(".")
    for shown, text in (((), "Hello"), ((end,), "Hello.")):
        options = replace(LOGPROBS, visible_stop_token_ids=shown, include_stop_str_in_output=bool(shown))
        chunks = push_all(byte_level, options, [*byte_level.encode("Hello"), end], reason=FinishReason.STOP)
        assert text_of(chunks) == text
