"""postprocess: chunks of tokens in, text out, one ending per request; and no state is left behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import FinishReason, TextChunk, TextOptions, TokenChunk
from llm_pipeline.stages import postprocess
from llm_pipeline.stages.postprocess import PostprocessStage
from llm_pipeline.text.tokenizer import Tokenizer

STREAM = TextOptions(stream=True, max_tokens=500, prompt_tokens=3)
ENGINE_DIED = PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine stopped.")


class Bench:
    """A stage, and what it told decode to stop."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.stopped: list[str] = []
        self.stage = PostprocessStage(tokenizer, self.stopped.append)

    def chunks(self, texts: Sequence[str], key: str = "key", options: TextOptions = STREAM) -> list[TokenChunk]:
        """One chunk per text, none of them final."""
        return [
            TokenChunk(key, index, tuple(self.tokenizer.encode(text)), text_options=None if index else options)
            for index, text in enumerate(texts)
        ]

    def ending(self, index: int, key: str = "key", **ending: Any) -> TokenChunk:
        return TokenChunk(key, index, (), **(ending or {"finish_reason": FinishReason.LENGTH}))

    def handle(self, *chunks: TokenChunk) -> list[TextChunk | None]:
        """None for what is silent."""
        pieces = [self.stage.handle(chunk) for chunk in chunks]
        return [None if piece.is_silent else piece for piece in pieces]


@pytest.fixture
def bench(byte_level: Tokenizer) -> Bench:
    return Bench(byte_level)


def text_of(pieces: Sequence[TextChunk | None]) -> str:
    return "".join(piece.text for piece in pieces if piece is not None)


def test_streamed_text_concatenates_to_what_was_generated(bench: Bench) -> None:
    pieces = bench.handle(*bench.chunks(["Hello", " wor", "ld"]), bench.ending(3))
    assert text_of(pieces) == "Hello world"
    assert [piece.finish_reason for piece in pieces if piece] == [None, None, None, FinishReason.LENGTH]


def test_without_streaming_there_is_one_chunk_with_everything(bench: Bench) -> None:
    options = replace(STREAM, stream=False)
    *early, last = bench.handle(*bench.chunks(["Hello", " wor", "ld"], options=options), bench.ending(3))
    assert early == [None, None, None]
    assert last is not None
    assert (last.text, last.finish_reason, last.prompt_tokens) == ("Hello world", FinishReason.LENGTH, 3)
    assert last.completion_tokens == sum(len(bench.tokenizer.encode(text)) for text in ("Hello", " wor", "ld"))


def test_a_stop_match_ends_the_request_and_swallows_the_rest(bench: Bench) -> None:
    chunks = bench.chunks(["Hello", " world", " again", " and"], options=replace(STREAM, stop=("wor",)))
    pieces = bench.handle(*chunks, bench.ending(4, finish_reason=FinishReason.CANCELLED))
    assert text_of(pieces) == "Hello "
    assert [piece.finish_reason for piece in pieces if piece] == [None, FinishReason.STOP]
    assert pieces[2:] == [None, None, None]


def test_a_stop_match_tells_decode_exactly_once(bench: Bench) -> None:
    chunks = bench.chunks(["Hello", " world", " world", " world"], options=replace(STREAM, stop=("wor",)))
    bench.handle(*chunks)
    assert bench.stopped == ["key"]


def test_what_comes_after_a_stop_match_is_not_even_checked(bench: Bench) -> None:
    bench.handle(*bench.chunks(["Hello world"], options=replace(STREAM, stop=("wor",))))
    assert bench.handle(TokenChunk("key", 7, (5,)), bench.ending(9)) == [None, None]
    assert bench.stopped == ["key"]


def test_a_stop_match_in_the_last_chunk_tells_decode_nothing(bench: Bench) -> None:
    (only,) = bench.chunks(["Hello world"], options=replace(STREAM, stop=("wor",)))
    (piece,) = bench.handle(replace(only, finish_reason=FinishReason.LENGTH))
    assert piece is not None
    assert (piece.text, piece.finish_reason) == ("Hello ", FinishReason.STOP)
    assert bench.stopped == []


def test_state_is_freed_at_the_end(bench: Bench) -> None:
    bench.handle(*bench.chunks(["Hello"]))
    assert bench.stage.live_count == 1
    bench.handle(bench.ending(1))
    assert bench.stage.live_count == 0


def test_state_stays_until_decode_has_confirmed_a_stop(bench: Bench) -> None:
    bench.handle(*bench.chunks(["Hello world"], options=replace(STREAM, stop=("wor",))))
    assert bench.stage.live_count == 1
    bench.handle(bench.ending(1, finish_reason=FinishReason.CANCELLED))
    assert bench.stage.live_count == 0


def test_requests_do_not_mix(bench: Bench) -> None:
    first, second = bench.chunks(["Hello", " world"], "first"), bench.chunks(["The quick", " fox"], "second")
    mixed = [first[0], second[0], second[1], first[1]]
    pieces = bench.handle(*mixed)
    assert text_of([pieces[0], pieces[3]]) == "Hello world"
    assert text_of(pieces[1:3]) == "The quick fox"


# --- Errors ----------------------------------------------------------------------------------------------------------


def test_decodes_error_is_raised_and_frees_the_state(bench: Bench) -> None:
    bench.handle(*bench.chunks(["Hello"]))
    with pytest.raises(PipelineError) as caught:
        bench.handle(bench.ending(1, error=ENGINE_DIED))
    assert caught.value is ENGINE_DIED
    assert bench.stage.live_count == 0


def test_a_request_that_decode_refused_has_only_an_error(bench: Bench) -> None:
    with pytest.raises(PipelineError) as caught:
        bench.handle(TokenChunk("key", 0, (), text_options=STREAM, error=ENGINE_DIED))
    assert caught.value is ENGINE_DIED
    assert bench.stage.live_count == 0


def test_an_error_after_the_stop_match_is_not_told(bench: Bench) -> None:
    """The client has its finish reason; a request ends once."""
    bench.handle(*bench.chunks(["Hello world"], options=replace(STREAM, stop=("wor",))))
    assert bench.handle(bench.ending(1, error=ENGINE_DIED)) == [None]
    assert bench.stage.live_count == 0


def test_a_refused_double_of_a_live_key_leaves_the_first_request_alone(bench: Bench) -> None:
    first = bench.chunks(["Hello", " world"])
    pieces = bench.handle(first[0])
    with pytest.raises(PipelineError) as caught:
        bench.handle(TokenChunk("key", 0, (), text_options=STREAM, error=ENGINE_DIED))
    assert caught.value is ENGINE_DIED
    assert text_of(pieces + bench.handle(first[1], bench.ending(2))) == "Hello world"


def wrong_order(bench: Bench) -> list[TokenChunk]:
    first, second, third = bench.chunks(["Hello", " world", " again"])
    return [first, third, second]


def first_one_missing(bench: Bench) -> list[TokenChunk]:
    return bench.chunks(["Hello", " world", " again"])[1:]


def one_missing(bench: Bench) -> list[TokenChunk]:
    first, _, third = bench.chunks(["Hello", " world", " again"])
    return [first, third]


def one_twice(bench: Bench) -> list[TokenChunk]:
    first, second, _ = bench.chunks(["Hello", " world", " again"])
    return [first, second, second]


def first_one_twice(bench: Bench) -> list[TokenChunk]:
    first, *_ = bench.chunks(["Hello"])
    return [first, first]


SCRAMBLES = [wrong_order, first_one_missing, one_missing, one_twice, first_one_twice]


@pytest.mark.parametrize("scramble", SCRAMBLES)
def test_chunks_out_of_order_give_an_internal_error_and_no_wrong_text(bench: Bench, scramble: Any) -> None:
    pieces = bench.handle(*scramble(bench))
    assert "Hello world again".startswith(text_of(pieces))
    with pytest.raises(PipelineError) as caught:
        bench.handle(bench.ending(3))
    assert caught.value.code is ErrorCode.INTERNAL_ERROR
    assert bench.stage.live_count == 0


@pytest.mark.parametrize("scramble", SCRAMBLES)
def test_a_fault_stops_decode_once(bench: Bench, scramble: Any) -> None:
    bench.handle(*scramble(bench))
    assert bench.stopped == ["key"]


def test_a_fault_in_the_last_chunk_is_told_at_once_and_stops_nothing(bench: Bench) -> None:
    with pytest.raises(PipelineError, match="The server failed"):
        bench.handle(TokenChunk("key", 3, (5,), finish_reason=FinishReason.LENGTH))
    assert bench.stopped == []


def test_our_own_error_waits_for_decodes_end(bench: Bench) -> None:
    """An ensemble that answers with an error while decode still sends keeps Triton from shutting down."""
    first, second, third = bench.chunks(["Hello", " world", " again"])
    assert bench.handle(first, third, second)[1:] == [None, None]
    with pytest.raises(PipelineError):
        bench.handle(bench.ending(3))


class Broken(Tokenizer):
    """Its table fails at the second token."""

    @property
    def token_table(self) -> Any:  # type: ignore[override]
        return self

    def start(self, **_options: Any) -> Any:
        return self

    def feed(self, token_ids: Sequence[int]) -> list[str]:
        if 13 in token_ids:
            raise ValueError("token 13")
        return ["x" for _ in token_ids]

    def finish(self) -> str:
        return ""


def test_a_bug_in_the_text_ends_only_its_own_request(bench: Bench, byte_level: Tokenizer) -> None:
    bench.stage = PostprocessStage(Broken(byte_level._tokenizer), bench.stopped.append)
    bench.handle(TokenChunk("good", 0, (1,), text_options=STREAM), TokenChunk("bad", 0, (13,), text_options=STREAM))
    assert bench.stopped == ["bad"]
    good, _ = bench.handle(TokenChunk("good", 1, (1,)), TokenChunk("bad", 1, (1,)))
    assert good is not None
    with pytest.raises(PipelineError) as caught:
        bench.handle(bench.ending(2, "bad"))
    assert caught.value.message == internal_error().message


def test_states_of_requests_that_never_end_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postprocess, "_MAX_LIVE", 3)
    for number in range(3):
        bench.handle(*bench.chunks(["Hello"], f"request {number}"))
    bench.handle(TokenChunk("request 0", 1, (5,)))  # used last, so it stays
    bench.handle(*bench.chunks(["Hello"], "request 3"))
    assert bench.stage.live_count == 3
    assert bench.handle(bench.ending(2, "request 0"))[0] is not None
    with pytest.raises(PipelineError, match="The server failed"):
        bench.handle(bench.ending(1, "request 1"))
