"""postprocess: bursts in, the text of all their requests out, the same as for chunks of each request alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pipeline.protocol.channel import StreamEnd, StreamLogprobs, StreamStart, TextBurst, TokenBurst
from llm_pipeline.protocol.channel_json import (
    join_text_parts,
    text_burst_from_json,
    token_burst_from_json,
    token_burst_to_json,
)
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import FinishReason, PromptLogprobs, TextChunk, TextOptions, TokenChunk
from llm_pipeline.stages.postprocess import PostprocessStage
from llm_pipeline.text.tokenizer import Tokenizer

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)
STREAM = TextOptions(stream=True, max_tokens=500, prompt_tokens=3)
ENGINE_DIED = PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine stopped.")
LENGTH, CANCELLED = FinishReason.LENGTH, FinishReason.CANCELLED


class DrivenBursts:
    """A PostprocessStage that gets bursts as JSON, and the keys that it has cancelled in decode."""

    def __init__(self, tokenizer: Tokenizer, *, max_live: int = 1000) -> None:
        self.tokenizer = tokenizer
        self.cancelled: list[str] = []
        self.stage = PostprocessStage(tokenizer, self.cancelled.append, max_live=max_live)

    def send(
        self,
        texts: dict[int, str] | None = None,
        *,
        starts: Sequence[StreamStart] = (),
        ends: Sequence[StreamEnd] = (),
        client: str = "client",
        **others: Any,
    ) -> TextBurst:
        """Sends one burst with a text for each slot."""
        ids = {slot: self.tokenizer.encode(text) for slot, text in (texts or {}).items()}
        flat = [token_id for tokens in ids.values() for token_id in tokens]
        counts = [len(tokens) for tokens in ids.values()]
        return self.handle(TokenBurst(client, 7, list(ids), counts, flat, starts=starts, ends=ends, **others))

    def handle(self, burst: TokenBurst) -> TextBurst:
        columns = self.stage.handle_burst(token_burst_from_json(token_burst_to_json(burst)))
        return text_burst_from_json(join_text_parts(burst.serial, [columns.to_json()]))


@pytest.fixture
def post(byte_level: Tokenizer) -> DrivenBursts:
    return DrivenBursts(byte_level)


def start(slot: int, options: TextOptions = STREAM) -> StreamStart:
    return StreamStart(slot, f"key {slot}", options)


def text_of(slot: int, *bursts: TextBurst) -> str:
    return "".join(chunk.text for burst in bursts for owner, chunk in burst.chunks if owner == slot)


def ends_of(*bursts: TextBurst) -> list[tuple[int, str | None]]:
    """The slots that have ended, with the message of their error."""
    return [(slot, None if error is None else error.message) for burst in bursts for slot, error in burst.ends]


def assert_state_is_freed(post: DrivenBursts, slot: int) -> None:
    """Without state, tokens are those of an unknown request."""
    assert ends_of(post.send({slot: "x"})) == [(slot, internal_error().message)]


# --- The same as chunks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Script:
    """One request: options, and groups of tokens with their logprobs, of which the last one has the finish reason."""

    options: TextOptions
    groups: tuple[tuple[int, ...], ...]
    reason: FinishReason
    first_burst: int

    def chunk(self, number: int, index: int) -> TokenChunk:
        ids = self.groups[index]
        has_logprobs = self.options.num_logprobs is not None or self.options.return_logprob_values
        prompt = PromptLogprobs((-0.5,) * (len(self.options.echo_ids or ()) - 1)) if self.options.echo_ids else None
        return TokenChunk(
            f"key {number}",
            index,
            ids,
            text_options=None if index else self.options,
            finish_reason=self.reason if index == len(self.groups) - 1 else None,
            logprobs=tuple(-token_id / 64 for token_id in ids) if has_logprobs else (),
            top_logprobs=tuple(((1, 2), (-0.25, -3.0)) for _ in ids) if has_logprobs else (),
            prompt_logprobs=prompt if has_logprobs and not index else None,
        )


options_of_all_kinds = st.builds(
    TextOptions,
    stop=st.lists(st.sampled_from(["l", "好", "\n", "the"]), max_size=1).map(tuple),
    include_stop_str_in_output=st.booleans(),
    skip_special_tokens=st.booleans(),
    return_token_ids=st.booleans(),
    stream=st.booleans(),
    max_tokens=st.sampled_from([4, 12, 1000]),
    prompt_tokens=st.just(3),
    context_ids=st.lists(st.integers(0, 420), max_size=3).map(tuple),
    is_text_start=st.booleans(),
    num_logprobs=st.none() | st.just(2),
    return_logprob_values=st.booleans(),
    echo_ids=st.none() | st.lists(st.integers(0, 420), min_size=1, max_size=3).map(tuple),
)
plain_options = st.just(STREAM) | st.just(replace(STREAM, stream=False))
scripts = st.builds(
    Script,
    options=plain_options | options_of_all_kinds,
    groups=st.lists(st.lists(st.integers(0, 420), max_size=4).map(tuple), min_size=1, max_size=8).map(tuple),
    reason=st.sampled_from(FinishReason),
    first_burst=st.integers(0, 4),
)


def burst_of(chunks: dict[int, TokenChunk], serial: int) -> TokenBurst:
    """The burst with one chunk of each slot."""
    return TokenBurst(
        "client",
        serial,
        [slot for slot, chunk in chunks.items() if chunk.token_ids],
        [len(chunk.token_ids) for chunk in chunks.values() if chunk.token_ids],
        [token_id for chunk in chunks.values() for token_id in chunk.token_ids],
        starts=[
            StreamStart(slot, chunk.key, chunk.text_options) for slot, chunk in chunks.items() if chunk.text_options
        ],
        ends=[StreamEnd(slot, chunk.finish_reason) for slot, chunk in chunks.items() if chunk.is_final],
        logprobs=[
            StreamLogprobs(slot, chunk.logprobs, chunk.top_logprobs, chunk.prompt_logprobs)
            for slot, chunk in chunks.items()
            if chunk.logprobs or chunk.prompt_logprobs
        ],
    )


def merged(chunks: Sequence[TextChunk]) -> tuple[Any, ...]:
    """What a client gets in all chunks together."""
    return (
        "".join(chunk.text for chunk in chunks),
        [token_id for chunk in chunks for token_id in chunk.token_ids or ()],
        [value for chunk in chunks for value in chunk.token_logprobs or ()],
        chunks[-1].completion_tokens,
        chunks[0].prompt_tokens,
        chunks[-1].prompt_tokens,
        [chunk.finish_reason for chunk in chunks if chunk.finish_reason],
    )


@given(st.lists(scripts, min_size=1, max_size=6), st.booleans())
@PROPERTY
def test_each_request_gets_what_chunks_of_its_own_give(
    byte_level: Tokenizer, sentencepiece: Tokenizer, requests: list[Script], is_byte_level: bool
) -> None:
    tokenizer = byte_level if is_byte_level else sentencepiece
    post = DrivenBursts(tokenizer)
    got: dict[int, list[TextChunk]] = {slot: [] for slot in range(len(requests))}
    ended: list[int] = []
    for serial in range(max(script.first_burst + len(script.groups) for script in requests)):
        chunks = {
            slot: script.chunk(slot, serial - script.first_burst)
            for slot, script in enumerate(requests)
            if 0 <= serial - script.first_burst < len(script.groups)
        }
        burst = post.handle(burst_of(chunks, serial))
        assert burst.serial == serial
        for slot, chunk in burst.chunks:
            assert slot not in ended
            got[slot].append(chunk)
        assert all(error is None for _, error in burst.ends)
        assert [slot for slot, _ in burst.ends] == [slot for slot, chunk in chunks.items() if chunk.is_final]
        ended += [slot for slot, _ in burst.ends]
    assert sorted(ended) == list(range(len(requests)))

    alone_cancelled: list[str] = []
    alone = PostprocessStage(tokenizer, alone_cancelled.append)
    for slot, script in enumerate(requests):
        expected = [alone.handle(script.chunk(slot, index)) for index in range(len(script.groups))]
        assert merged(got[slot]) == merged([chunk for chunk in expected if not chunk.is_silent])
        assert len([chunk for chunk in got[slot] if chunk.is_silent]) == 0
    assert sorted(post.cancelled) == sorted(alone_cancelled)


def test_a_burst_has_the_text_of_each_request(post: DrivenBursts) -> None:
    first = post.send({3: "Hello", 8: "The quick"}, starts=[start(3), start(8)])
    second = post.send({8: " fox", 3: " world"}, ends=[StreamEnd(8, LENGTH)])
    assert text_of(3, first, second) == "Hello world"
    assert text_of(8, first, second) == "The quick fox"
    assert ends_of(first, second) == [(8, None)]
    assert second.chunks[0][1].finish_reason is LENGTH
    assert_state_is_freed(post, 8)


def test_clients_with_the_same_slots_do_not_mix(post: DrivenBursts) -> None:
    bursts = {
        client: [
            post.send({1: text}, starts=[start(1)], client=client),
        ]
        for client, text in (("one", "Hello"), ("two", "The quick"))
    }
    for client, text in (("one", " world"), ("two", " fox")):
        bursts[client].append(post.send({1: text}, ends=[StreamEnd(1, LENGTH)], client=client))
    assert text_of(1, *bursts["one"]) == "Hello world"
    assert text_of(1, *bursts["two"]) == "The quick fox"


def test_tokens_without_text_are_not_in_the_burst(post: DrivenBursts) -> None:
    first, *_ = post.tokenizer.encode("𝔘")
    post.send(starts=[start(1), start(2, replace(STREAM, stream=False))])
    assert post.handle(TokenBurst("client", 1, [1, 2], [1, 1], [first, 70])).chunks == []


def test_logprobs_of_a_prompt_may_come_before_the_first_token(post: DrivenBursts) -> None:
    options = replace(STREAM, num_logprobs=1, echo_ids=tuple(post.tokenizer.encode("Hello world")))
    prompt = PromptLogprobs((-0.5,) * (len(options.echo_ids or ()) - 1))
    first = post.send(starts=[start(1, options)], logprobs=[StreamLogprobs(1, prompt_logprobs=prompt)])
    second = post.send(ends=[StreamEnd(1, LENGTH)])
    assert text_of(1, first, second) == "Hello world"
    assert b"-0.5" in (first.chunks[0][1].logprobs_json or b"")


# --- Stop strings ----------------------------------------------------------------------------------------------------


def test_a_stop_match_cancels_in_decode_and_the_end_waits_for_decode(post: DrivenBursts) -> None:
    first = post.send({1: "Hello world"}, starts=[start(1, replace(STREAM, stop=("wor",)))])
    assert (text_of(1, first), first.chunks[-1][1].finish_reason) == ("Hello ", FinishReason.STOP)
    assert (ends_of(first), post.cancelled) == ([], ["key 1"])
    assert post.send({1: " more"}).chunks == []
    last = post.send({1: " more"}, ends=[StreamEnd(1, CANCELLED)])
    assert (last.chunks, ends_of(last), post.cancelled) == ([], [(1, None)], ["key 1"])
    assert_state_is_freed(post, 1)


def test_a_stop_match_in_the_last_tokens_cancels_nothing(post: DrivenBursts) -> None:
    options = replace(STREAM, stop=("wor",))
    burst = post.send({1: "Hello world"}, starts=[start(1, options)], ends=[StreamEnd(1, LENGTH)])
    assert [chunk.finish_reason for _, chunk in burst.chunks] == [FinishReason.STOP]
    assert (ends_of(burst), post.cancelled) == ([(1, None)], [])


def test_a_stop_match_of_a_request_that_does_not_stream_ends_its_generation_early(post: DrivenBursts) -> None:
    options = replace(STREAM, stream=False, stop=("wor",))
    bursts = [post.send({1: "Hello"}, starts=[start(1, options)]), post.send({1: " world"})]
    assert [chunk.text for burst in bursts for _, chunk in burst.chunks] == ["Hello "]
    assert post.cancelled == ["key 1"]


def test_an_error_after_the_stop_match_is_not_sent(post: DrivenBursts) -> None:
    """The client has its finish reason; a request ends once."""
    post.send({1: "Hello world"}, starts=[start(1, replace(STREAM, stop=("wor",)))])
    assert ends_of(post.send(ends=[StreamEnd(1, error=ENGINE_DIED)])) == [(1, None)]


# --- Endings and errors ----------------------------------------------------------------------------------------------


def test_a_cancelled_request_ends_with_its_finish_reason(post: DrivenBursts) -> None:
    post.send({1: "Hello"}, starts=[start(1)])
    burst = post.send(ends=[StreamEnd(1, CANCELLED)])
    assert ([chunk.finish_reason for _, chunk in burst.chunks], ends_of(burst)) == ([CANCELLED], [(1, None)])


def test_a_request_that_is_cancelled_before_its_start_ends_with_its_finish_reason(post: DrivenBursts) -> None:
    burst = post.send(ends=[StreamEnd(1, CANCELLED)])
    assert ([chunk.finish_reason for _, chunk in burst.chunks], ends_of(burst)) == ([CANCELLED], [(1, None)])


def test_a_refused_request_has_only_an_error(post: DrivenBursts) -> None:
    burst = post.send(ends=[StreamEnd(1, error=ENGINE_DIED)])
    assert (burst.chunks, ends_of(burst)) == ([], [(1, ENGINE_DIED.message)])


def test_an_error_of_decode_ends_its_request_after_its_tokens(post: DrivenBursts) -> None:
    post.send({1: "Hello", 2: "The"}, starts=[start(1), start(2)])
    burst = post.send({1: " world", 2: " fox"}, ends=[StreamEnd(1, error=ENGINE_DIED)])
    assert (text_of(1, burst), text_of(2, burst)) == (" world", " fox")
    assert ends_of(burst) == [(1, ENGINE_DIED.message)]
    assert all(chunk.finish_reason is None for _, chunk in burst.chunks)
    assert_state_is_freed(post, 1)


def test_tokens_of_an_unknown_request_end_it_once_with_an_error(post: DrivenBursts) -> None:
    """This process was restarted. The key of the request is unknown, so the client cancels it."""
    first = post.send({1: "Hello", 2: "Hello"}, starts=[start(2)])
    assert (text_of(2, first), ends_of(first)) == ("Hello", [(1, internal_error().message)])
    later = [post.send({1: " world"}), post.send({1: "!"}, ends=[StreamEnd(1, LENGTH)])]
    assert [burst.chunks for burst in later] == [[], []]
    assert (ends_of(*later), post.cancelled) == ([], [])


def test_the_end_of_an_unknown_request_is_an_error(post: DrivenBursts) -> None:
    """It had tokens before this process was restarted."""
    assert ends_of(post.send(ends=[StreamEnd(1, LENGTH)])) == [(1, internal_error().message)]


class BrokenTokenizer(Tokenizer):
    """Its table fails at token 13, and at a request whose prompt ends with token 13."""

    plain_texts: ClassVar[dict[int, str | None]] = {1: "x", 13: None}

    @property
    def token_table(self) -> Any:
        return self

    def start(self, *, context_ids: Sequence[int], **_options: Any) -> Any:
        if 13 in context_ids:
            raise ValueError("token 13")
        return self

    def feed(self, token_ids: Sequence[int]) -> list[str]:
        if 13 in token_ids:
            raise ValueError("token 13")
        return ["x" for _ in token_ids]

    def finish(self) -> str:
        return ""


@pytest.mark.parametrize("is_first", [True, False], ids=["at-the-start", "later"])
def test_a_bug_in_the_tokenizer_ends_only_its_own_request(
    byte_level_library: tokenizers.Tokenizer, is_first: bool
) -> None:
    post = DrivenBursts(BrokenTokenizer(byte_level_library))
    options = replace(STREAM, context_ids=(13,)) if is_first else STREAM
    first = post.handle(TokenBurst("client", 0, [1, 2], [1, 1], [1, 1], starts=[start(1), start(2, options)]))
    assert (text_of(1, first), text_of(2, first)) == ("x", "" if is_first else "x")
    later = [
        post.handle(TokenBurst("client", serial, [1, 2], [1, 1], [1, 13 if serial == 1 else 1])) for serial in (1, 2)
    ]
    assert (text_of(1, *later), text_of(2, *later), ends_of(first, *later)) == ("xx", "", [])
    assert post.cancelled == ["key 2"]
    last = post.handle(TokenBurst("client", 3, ends=[StreamEnd(1, LENGTH), StreamEnd(2, CANCELLED)]))
    assert ends_of(last) == [(1, None), (2, internal_error().message)]
    assert post.cancelled == ["key 2"]


def test_the_state_of_requests_that_never_end_is_bounded(post: DrivenBursts) -> None:
    """The oldest requests of the client that has been silent for longest are dropped."""
    post = DrivenBursts(post.tokenizer, max_live=3)
    post.send({1: "Hello", 2: "Hello"}, starts=[start(1), start(2)], client="dead")
    post.send({1: "Hello", 2: "Hello"}, starts=[start(1), start(2)])
    assert text_of(1, post.send({1: " world"})) == " world"
    assert text_of(2, post.send({2: " world"}, client="dead")) == " world"
    assert ends_of(post.send({1: " world"}, client="dead")) == [(1, internal_error().message)]


def test_clients_without_live_requests_leave_no_state(post: DrivenBursts) -> None:
    post = DrivenBursts(post.tokenizer, max_live=1)
    for number in range(5):
        post.send({1: "Hello"}, starts=[start(1)], ends=[StreamEnd(1, LENGTH)], client=f"client {number}")
    post.send({1: "Hello"}, starts=[start(1)])
    assert text_of(1, post.send({1: " world"})) == " world"
