"""postprocess: token chunks in, text chunks out, one ending per request, and no state left afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import tokenizers

from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import FinishReason, TextChunk, TextOptions, TokenChunk
from llm_pipeline.stages.postprocess import PostprocessStage
from llm_pipeline.text.tokenizer import Tokenizer

STREAM = TextOptions(stream=True, max_tokens=500, prompt_tokens=3)
ENGINE_DIED = PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine stopped.")


class DrivenPostprocess:
    """A PostprocessStage, and the keys that it has cancelled in decode."""

    def __init__(self, tokenizer: Tokenizer, *, max_live: int = 100) -> None:
        self.tokenizer = tokenizer
        self.cancelled: list[str] = []
        self.stage = PostprocessStage(tokenizer, self.cancelled.append, max_live=max_live)

    def chunks(self, texts: Sequence[str], key: str = "key", options: TextOptions = STREAM) -> list[TokenChunk]:
        """One chunk per text, none of them final."""
        return [
            TokenChunk(key, index, tuple(self.tokenizer.encode(text)), text_options=None if index else options)
            for index, text in enumerate(texts)
        ]

    def ending(self, index: int, key: str = "key", **ending: Any) -> TokenChunk:
        return TokenChunk(key, index, (), **(ending or {"finish_reason": FinishReason.LENGTH}))

    def handle(self, *chunks: TokenChunk) -> list[TextChunk | None]:
        """Returns the text chunks, None for silent ones."""
        pieces = [self.stage.handle(chunk) for chunk in chunks]
        return [None if piece.is_silent else piece for piece in pieces]


@pytest.fixture
def post(byte_level: Tokenizer) -> DrivenPostprocess:
    return DrivenPostprocess(byte_level)


def assert_state_is_freed(post: DrivenPostprocess, key: str = "key") -> None:
    """Without state, a chunk that is not the first of its request is an internal error."""
    with pytest.raises(PipelineError, match="The server failed"):
        post.handle(post.ending(1, key))


def text_of(pieces: Sequence[TextChunk | None]) -> str:
    return "".join(piece.text for piece in pieces if piece is not None)


def test_streamed_text_concatenates_to_what_was_generated(post: DrivenPostprocess) -> None:
    pieces = post.handle(*post.chunks(["Hello", " wor", "ld"]), post.ending(3))
    assert text_of(pieces) == "Hello world"
    assert [piece.finish_reason for piece in pieces if piece] == [None, None, None, FinishReason.LENGTH]


def test_without_streaming_there_is_one_chunk_with_everything(post: DrivenPostprocess) -> None:
    options = replace(STREAM, stream=False)
    *early, last = post.handle(*post.chunks(["Hello", " wor", "ld"], options=options), post.ending(3))
    assert early == [None, None, None]
    assert last is not None
    assert (last.text, last.finish_reason, last.prompt_tokens) == ("Hello world", FinishReason.LENGTH, 3)
    assert last.completion_tokens == sum(len(post.tokenizer.encode(text)) for text in ("Hello", " wor", "ld"))


def test_a_stop_match_ends_the_request_and_later_chunks_are_dropped(post: DrivenPostprocess) -> None:
    chunks = post.chunks(["Hello", " world", " again", " and"], options=replace(STREAM, stop=("wor",)))
    pieces = post.handle(*chunks, post.ending(4, finish_reason=FinishReason.CANCELLED))
    assert text_of(pieces) == "Hello "
    assert [piece.finish_reason for piece in pieces if piece] == [None, FinishReason.STOP]
    assert pieces[2:] == [None, None, None]


def test_a_stop_match_cancels_the_request_in_decode_exactly_once(post: DrivenPostprocess) -> None:
    chunks = post.chunks(["Hello", " world", " world", " world"], options=replace(STREAM, stop=("wor",)))
    post.handle(*chunks)
    assert post.cancelled == ["key"]


def test_chunks_after_a_stop_match_are_not_even_checked(post: DrivenPostprocess) -> None:
    post.handle(*post.chunks(["Hello world"], options=replace(STREAM, stop=("wor",))))
    assert post.handle(TokenChunk("key", 7, (5,)), post.ending(9)) == [None, None]
    assert post.cancelled == ["key"]


def test_a_stop_match_in_the_final_chunk_cancels_nothing(post: DrivenPostprocess) -> None:
    (only,) = post.chunks(["Hello world"], options=replace(STREAM, stop=("wor",)))
    (piece,) = post.handle(replace(only, finish_reason=FinishReason.LENGTH))
    assert piece is not None
    assert (piece.text, piece.finish_reason) == ("Hello ", FinishReason.STOP)
    assert post.cancelled == []


def test_state_is_freed_at_the_end(post: DrivenPostprocess) -> None:
    post.handle(*post.chunks(["Hello"]))
    post.handle(post.ending(1))
    assert_state_is_freed(post)


def test_state_stays_until_decode_has_ended_a_request_with_a_stop_match(post: DrivenPostprocess) -> None:
    post.handle(*post.chunks(["Hello world"], options=replace(STREAM, stop=("wor",))))
    assert post.handle(post.ending(1, finish_reason=FinishReason.CANCELLED)) == [None]
    assert_state_is_freed(post)


def test_requests_do_not_mix(post: DrivenPostprocess) -> None:
    first, second = post.chunks(["Hello", " world"], "first"), post.chunks(["The quick", " fox"], "second")
    mixed = [first[0], second[0], second[1], first[1]]
    pieces = post.handle(*mixed)
    assert text_of([pieces[0], pieces[3]]) == "Hello world"
    assert text_of(pieces[1:3]) == "The quick fox"


# --- Errors ----------------------------------------------------------------------------------------------------------


def test_an_error_of_decode_is_raised_and_frees_the_state(post: DrivenPostprocess) -> None:
    post.handle(*post.chunks(["Hello"]))
    with pytest.raises(PipelineError) as caught:
        post.handle(post.ending(1, error=ENGINE_DIED))
    assert caught.value is ENGINE_DIED
    assert_state_is_freed(post)


def test_a_request_that_decode_refused_has_only_an_error(post: DrivenPostprocess) -> None:
    with pytest.raises(PipelineError) as caught:
        post.handle(TokenChunk("key", 0, (), text_options=STREAM, error=ENGINE_DIED))
    assert caught.value is ENGINE_DIED
    assert_state_is_freed(post)


def test_an_error_after_the_stop_match_is_not_sent(post: DrivenPostprocess) -> None:
    """The client has its finish reason; a request ends once."""
    post.handle(*post.chunks(["Hello world"], options=replace(STREAM, stop=("wor",))))
    assert post.handle(post.ending(1, error=ENGINE_DIED)) == [None]
    assert_state_is_freed(post)


def test_a_refused_second_request_with_a_live_key_leaves_the_first_one_alone(post: DrivenPostprocess) -> None:
    first = post.chunks(["Hello", " world"])
    pieces = post.handle(first[0])
    with pytest.raises(PipelineError) as caught:
        post.handle(TokenChunk("key", 0, (), text_options=STREAM, error=ENGINE_DIED))
    assert caught.value is ENGINE_DIED
    assert text_of(pieces + post.handle(first[1], post.ending(2))) == "Hello world"


def wrong_order(post: DrivenPostprocess) -> list[TokenChunk]:
    first, second, third = post.chunks(["Hello", " world", " again"])
    return [first, third, second]


def first_one_missing(post: DrivenPostprocess) -> list[TokenChunk]:
    return post.chunks(["Hello", " world", " again"])[1:]


def one_missing(post: DrivenPostprocess) -> list[TokenChunk]:
    first, _, third = post.chunks(["Hello", " world", " again"])
    return [first, third]


def one_twice(post: DrivenPostprocess) -> list[TokenChunk]:
    first, second, _ = post.chunks(["Hello", " world", " again"])
    return [first, second, second]


def first_one_twice(post: DrivenPostprocess) -> list[TokenChunk]:
    first, *_ = post.chunks(["Hello"])
    return [first, first]


SCRAMBLES = [wrong_order, first_one_missing, one_missing, one_twice, first_one_twice]


@pytest.mark.parametrize("scramble", SCRAMBLES)
def test_chunks_out_of_order_give_an_internal_error_and_no_wrong_text(post: DrivenPostprocess, scramble: Any) -> None:
    pieces = post.handle(*scramble(post))
    assert "Hello world again".startswith(text_of(pieces))
    with pytest.raises(PipelineError) as caught:
        post.handle(post.ending(3))
    assert caught.value.code is ErrorCode.INTERNAL_ERROR
    assert_state_is_freed(post)


@pytest.mark.parametrize("scramble", SCRAMBLES)
def test_an_internal_error_cancels_the_request_in_decode_once(post: DrivenPostprocess, scramble: Any) -> None:
    post.handle(*scramble(post))
    assert post.cancelled == ["key"]


def test_an_internal_error_in_the_final_chunk_is_raised_at_once_and_cancels_nothing(post: DrivenPostprocess) -> None:
    with pytest.raises(PipelineError, match="The server failed"):
        post.handle(TokenChunk("key", 3, (5,), finish_reason=FinishReason.LENGTH))
    assert post.cancelled == []


def test_an_internal_error_is_raised_when_decode_has_ended_the_request(post: DrivenPostprocess) -> None:
    """An ensemble that responds with an error while decode still sends prevents Triton from shutting down."""
    first, second, third = post.chunks(["Hello", " world", " again"])
    assert post.handle(first, third, second)[1:] == [None, None]
    with pytest.raises(PipelineError):
        post.handle(post.ending(3))


class BrokenTokenizer(Tokenizer):
    """Its table fails at token 13."""

    plain_texts = None

    @property
    def token_table(self) -> Any:
        return self

    def start(self, **_options: Any) -> Any:
        return self

    def feed(self, token_ids: Sequence[int]) -> list[str]:
        if 13 in token_ids:
            raise ValueError("token 13")
        return ["x" for _ in token_ids]

    def finish(self) -> str:
        return ""


def test_a_bug_in_the_tokenizer_ends_only_its_own_request(byte_level_library: tokenizers.Tokenizer) -> None:
    post = DrivenPostprocess(BrokenTokenizer(byte_level_library))
    post.handle(TokenChunk("good", 0, (1,), text_options=STREAM), TokenChunk("bad", 0, (13,), text_options=STREAM))
    assert post.cancelled == ["bad"]
    good, _ = post.handle(TokenChunk("good", 1, (1,)), TokenChunk("bad", 1, (1,)))
    assert good is not None
    with pytest.raises(PipelineError) as caught:
        post.handle(post.ending(2, "bad"))
    assert caught.value.message == internal_error().message


def test_the_state_of_requests_that_never_end_is_bounded(byte_level: Tokenizer) -> None:
    post = DrivenPostprocess(byte_level, max_live=3)
    for number in range(3):
        post.handle(*post.chunks(["Hello"], f"request {number}"))
    post.handle(TokenChunk("request 0", 1, (5,)))  # used last, so it stays
    post.handle(*post.chunks(["Hello"], "request 3"))
    assert post.handle(post.ending(2, "request 0"))[0] is not None
    for number in (2, 3):
        assert post.handle(post.ending(1, f"request {number}"))[0] is not None
    assert_state_is_freed(post, "request 1")
