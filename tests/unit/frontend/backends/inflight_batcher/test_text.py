"""Chunks from responses of NVIDIA's ensemble follow the API's rules, for any split of the text into responses."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from frontend.backends.inflight_batcher.text import CompletionText
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk

PIECES = st.lists(st.text(alphabet="ab \n", min_size=1, max_size=4), min_size=1, max_size=12)


def completion(
    max_tokens: int,
    *,
    stop: tuple[str, ...] = (),
    stream: bool = True,
    include: bool = False,
    context_length: int | None = None,
    is_cumulative: bool = False,
) -> CompletionText:
    parameters = CompletionParameters(
        "key", "id", prompt_text="x", stop=stop, stream=stream, include_stop_str_in_output=include
    )
    return CompletionText(parameters, max_tokens=max_tokens, context_length=context_length, is_cumulative=is_cumulative)


def play(text: CompletionText, pieces: list[str], prompt_tokens: int | None = 5) -> list[TextChunk]:
    chunks = [text.push(piece, 1, prompt_tokens) for piece in pieces]
    return [chunk for chunk in [*chunks, text.end()] if chunk is not None]


def joined(chunks: list[TextChunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@given(PIECES, st.integers(0, 3), st.booleans())
def test_chunks_add_up_to_text_finish_reason_and_count(pieces: list[str], spare: int, stream: bool) -> None:
    chunks = play(completion(len(pieces) + spare, stream=stream), pieces)
    reasons = [chunk.finish_reason for chunk in chunks]
    assert joined(chunks) == "".join(pieces)
    assert reasons[:-1] == [None] * (len(chunks) - 1)
    assert reasons[-1] is (FinishReason.LENGTH if spare == 0 else FinishReason.STOP)
    assert chunks[-1].completion_tokens == len(pieces) + (spare > 0)
    assert chunks[0].prompt_tokens == chunks[-1].prompt_tokens == 5
    if spare == 0:
        assert chunks[-1].text
    assert stream or len(chunks) == 1


@given(PIECES, st.sampled_from(["ab", "b a", "\n\n", "aaa"]), st.booleans())
def test_stop_string_ends_the_text_where_it_first_matches(pieces: list[str], stop: str, include: bool) -> None:
    whole = "".join(pieces)
    chunks = play(completion(100, stop=(stop,), include=include), pieces)
    start = whole.find(stop)
    end = len(whole) if start < 0 else start + (len(stop) if include else 0)
    assert joined(chunks) == whole[:end]
    assert chunks[-1].finish_reason is FinishReason.STOP
    if start >= 0:
        read = ""
        needed = next(count for count, piece in enumerate(pieces, 1) if stop in (read := read + piece))
        assert chunks[-1].completion_tokens == needed


@given(st.text(min_size=1, max_size=12).filter(lambda text: "\ufffd" not in text and "\ud800" not in text))
def test_cumulative_text_has_no_broken_characters(whole: str) -> None:
    """tensorrt_llm_bls with accumulate_tokens decodes all bytes so far, including part of a character."""
    raw = whole.encode("utf-8", errors="replace")
    responses = [raw[:count].decode(errors="replace") for count in range(1, len(raw) + 1)]
    chunks = play(completion(len(raw) + 1, is_cumulative=True), responses)
    assert joined(chunks) == raw.decode()


def test_text_is_sent_with_each_response_until_the_last_few_tokens() -> None:
    text = completion(20)
    assert [text.push("x", 1, 5) is not None for _ in range(16)] == [True] * 16


def test_full_context_finishes_with_length() -> None:
    chunks = play(completion(50, context_length=8), ["a", "b", "c", "d"])
    assert (joined(chunks), chunks[-1].finish_reason) == ("abc", FinishReason.LENGTH)


@pytest.mark.parametrize("stop", [(), ("never",)])
def test_cancelled_request_finishes_with_cancelled(stop: tuple[str, ...]) -> None:
    text = completion(50, stop=stop)
    text.push("abc", 3, 5)
    text.is_cancelled = True
    ending = text.end()
    assert ending is not None
    assert ending.finish_reason is FinishReason.CANCELLED


def test_no_chunks_after_the_finish_reason() -> None:
    text = completion(50, stop=("b",))
    assert play(text, ["a", "b", "c"])[-1].finish_reason is FinishReason.STOP
    assert text.push("d", 1, None) is None
    assert text.end() is None


def test_part_of_a_character_at_the_length_limit_is_dropped() -> None:
    assert joined(play(completion(2), ["a", "\ufffd"])) == "a"
