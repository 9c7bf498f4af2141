"""Chunks made of NVIDIA's responses keep our contract, however the text was cut into responses."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from frontend.backends.inflight_batcher.text import CompletionText
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk

PIECES = st.lists(st.text(alphabet="ab \n", min_size=1, max_size=4), min_size=1, max_size=12)


def completion(
    most_tokens: int, *, stop: tuple[str, ...] = (), stream: bool = True, **options: object
) -> CompletionText:
    include = bool(options.pop("include", False))
    parameters = CompletionParameters(
        "key", "id", prompt_text="x", stop=stop, stream=stream, include_stop_str_in_output=include
    )
    return CompletionText(
        parameters,
        most_tokens=most_tokens,
        context=options.get("context"),  # type: ignore[arg-type]
        is_cumulative=bool(options.get("is_cumulative", False)),
    )


def play(text: CompletionText, pieces: list[str], prompt_tokens: int | None = 5) -> list[TextChunk]:
    chunks = [text.push(piece, 1, prompt_tokens) for piece in pieces]
    return [chunk for chunk in [*chunks, text.end()] if chunk is not None]


def joined(chunks: list[TextChunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@given(PIECES, st.integers(0, 3), st.booleans())
def test_text_reason_and_count_are_those_of_the_whole(pieces: list[str], spare: int, stream: bool) -> None:
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
def test_a_stop_string_cuts_where_it_stands_in_the_whole_text(pieces: list[str], stop: str, include: bool) -> None:
    whole = "".join(pieces)
    chunks = play(completion(100, stop=(stop,), include=include), pieces)
    place = whole.find(stop)
    end = len(whole) if place < 0 else place + (len(stop) if include else 0)
    assert joined(chunks) == whole[:end]
    assert chunks[-1].finish_reason is FinishReason.STOP
    if place >= 0:
        read = ""
        needed = next(count for count, piece in enumerate(pieces, 1) if stop in (read := read + piece))
        assert chunks[-1].completion_tokens == needed


@given(st.text(min_size=1, max_size=12).filter(lambda text: "\ufffd" not in text and "\ud800" not in text))
def test_cumulative_text_has_no_broken_characters(whole: str) -> None:
    """tensorrt_llm_bls with accumulate_tokens decodes all bytes so far, half a character included."""
    raw = whole.encode("utf-8", errors="replace")
    responses = [raw[:count].decode(errors="replace") for count in range(1, len(raw) + 1)]
    chunks = play(completion(len(raw) + 1, is_cumulative=True), responses)
    assert joined(chunks) == raw.decode()


def test_the_responses_tokens_come_one_by_one_until_the_last_few() -> None:
    text = completion(20)
    assert [text.push("x", 1, 5) is not None for _ in range(16)] == [True] * 16


def test_a_full_context_is_a_length_stop() -> None:
    chunks = play(completion(50, context=8), ["a", "b", "c", "d"])
    assert (joined(chunks), chunks[-1].finish_reason) == ("abc", FinishReason.LENGTH)


@pytest.mark.parametrize("stop", [(), ("never",)])
def test_a_request_that_was_stopped_is_cancelled(stop: tuple[str, ...]) -> None:
    text = completion(50, stop=stop)
    text.push("abc", 3, 5)
    text.is_cancelled = True
    ending = text.end()
    assert ending is not None
    assert ending.finish_reason is FinishReason.CANCELLED


def test_after_the_end_nothing_is_told() -> None:
    text = completion(50, stop=("b",))
    assert play(text, ["a", "b", "c"])[-1].finish_reason is FinishReason.STOP
    assert text.push("d", 1, None) is None
    assert text.end() is None


def test_half_a_character_at_the_length_limit_is_dropped() -> None:
    assert joined(play(completion(2), ["a", "\ufffd"])) == "a"
