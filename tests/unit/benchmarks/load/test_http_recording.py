"""Recorded responses are parsed the same wherever the network cuts them into pieces."""

from __future__ import annotations

from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.http_recording import CompletionsEndpoint, ResponseEndDetector, read_response, with_known_tokens

WORDS = [" one", " two", 'a "quoted" \n\n word', " 0\r\n\r\n", "data: x", "é", "a\u2028b\u0085c"]


def event(text: str | None, reason: str | None = None, usage: dict[str, int] | None = None) -> bytes:
    choices = [] if text is None else [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}]
    return b"data: " + orjson.dumps({"id": "cmpl-1", "choices": choices, "usage": usage})


def usage(completion_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 7, "completion_tokens": completion_tokens, "total_tokens": 7 + completion_tokens}


def chunked(parts: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def streamed(line_end: bytes = b"\n", *, has_usage: bool = True) -> bytes:
    events = [event(word) for word in WORDS] + [event("", "length")]
    if has_usage:
        events.append(event(None, usage=usage(len(WORDS) + 1)))
    parts = [each + 2 * line_end for each in [*events, b": a comment", b"data: [DONE]"]]
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n" + chunked(parts)


def whole(status: str = "200 OK") -> bytes:
    choices = [{"index": 0, "text": " all of it", "finish_reason": "stop"}]
    body = orjson.dumps({"choices": choices, "usage": usage(3)})
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n" % (status.encode(), len(body)) + body


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % len(data) for place in places} - {0}), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def received(pieces: list[bytes]) -> list[tuple[float, bytes]]:
    return [(1.0 + number, piece) for number, piece in enumerate(pieces)]


places = st.lists(st.integers(min_value=0, max_value=10_000), max_size=30)


@given(places, st.sampled_from([b"\n", b"\r\n"]))
def test_stream_is_parsed_the_same_however_it_is_cut(places: list[int], line_end: bytes) -> None:
    timeline = read_response(0.5, received(cut(streamed(line_end), places)), is_streamed=True)
    assert timeline.failure is None
    assert (timeline.events, timeline.completion_tokens, timeline.prompt_tokens) == (len(WORDS), len(WORDS) + 1, 7)
    assert timeline.finish_reason == "length"
    assert timeline.is_count_exact


@given(places, st.sampled_from([streamed(), streamed(b"\r\n"), whole()]))
def test_end_is_detected_with_the_last_piece(places: list[int], data: bytes) -> None:
    detector, pieces = ResponseEndDetector(), cut(data, places)
    assert [detector.is_end(piece) for piece in pieces] == [*[False] * (len(pieces) - 1), True]


def test_stream_is_parsed_byte_by_byte() -> None:
    data = streamed()
    pieces = [data[place : place + 1] for place in range(len(data))]
    detector = ResponseEndDetector()
    assert [detector.is_end(piece) for piece in pieces].index(True) == len(pieces) - 1
    assert read_response(0.0, received(pieces), is_streamed=True).events == len(WORDS)


@given(st.lists(st.integers(min_value=1, max_value=10_000), max_size=30), places)
def test_stream_is_parsed_the_same_however_the_server_chunks_it(edges: list[int], places: list[int]) -> None:
    events = b"".join(event(word) + b"\n\n" for word in WORDS) + event("", "length") + b"\n\ndata: [DONE]\n\n"
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(cut(events, edges))
    timeline = read_response(0.5, received(cut(data, places)), is_streamed=True)
    assert (timeline.events, timeline.finish_reason, timeline.failure) == (len(WORDS), "length", None)


def test_event_has_the_time_of_the_piece_that_completed_it() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    first, second = event(" a") + b"\n\n", event(" b", "length") + b"\n\n"
    body = chunked([first, second])
    half = len(head) + 8
    timeline = read_response(0.0, [(1.0, (head + body)[:half]), (2.5, (head + body)[half:])], is_streamed=True)
    assert timeline.arrivals_s == [2.5]  # both came with the second piece: one arrival
    assert timeline.events == 2


def test_events_are_counted_as_tokens_without_usage() -> None:
    timeline = read_response(0.0, received([streamed(has_usage=False)]), is_streamed=True)
    assert (timeline.completion_tokens, timeline.is_count_exact) == (len(WORDS), False)


def test_tokens_of_an_engine_that_generates_a_fixed_number_replace_the_usage() -> None:
    timeline = with_known_tokens(read_response(0.0, received([streamed()]), is_streamed=True), 99)
    assert (timeline.completion_tokens, timeline.is_count_exact) == (99, True)
    failed = read_response(0.0, received([streamed()[:300]]), is_streamed=True)
    assert with_known_tokens(failed, 99) == failed


def test_malformed_chunk_is_a_failure() -> None:
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n"
    assert "malformed response" in str(read_response(0.0, received([data]), is_streamed=True).failure)


def test_whole_response_is_parsed() -> None:
    timeline = read_response(0.0, received([whole()]), is_streamed=False)
    assert (timeline.completion_tokens, timeline.finish_reason, timeline.failure) == (3, "stop", None)


@pytest.mark.parametrize(
    ("pieces", "failure"),
    [
        pytest.param([], "no response", id="nothing"),
        pytest.param([b"HTTP/1.1 200 OK\r\n"], "incomplete response", id="half a head"),
        pytest.param([whole("429 Too Many Requests")], "status 429", id="rejected"),
        pytest.param([streamed()[:300]], "no finish reason", id="cut off"),
        pytest.param([whole()[:-5]], "malformed response", id="half a body"),
        pytest.param(
            [b'HTTP/1.1 200 OK\r\n\r\ndata: {"error": {"message": "no"}}\n\n'], "error event", id="error event"
        ),
    ],
)
def test_failed_response_has_a_failure(pieces: list[bytes], failure: str) -> None:
    is_streamed = not any(b"content-length" in piece for piece in pieces)
    assert failure in str(read_response(0.0, received(pieces), is_streamed=is_streamed).failure)


def test_request_is_valid_http() -> None:
    request = CompletionsEndpoint("http://example.org:81/v1/", "m", "sk-1").request("Hello", 5, is_streamed=True)
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/completions HTTP/1.1\r\nHost: example.org:81\r\nAuthorization: Bearer sk-1\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert orjson.loads(body)["stream_options"] == {"include_usage": True}


def test_base_url_with_tls_is_rejected() -> None:
    with pytest.raises(ValueError, match="Invalid base URL"):
        _ = CompletionsEndpoint("https://example.org/v1", "m").address
