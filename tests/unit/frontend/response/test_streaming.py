"""Streaming responses: events, errors, keep-alive comments."""

from __future__ import annotations

import asyncio
import json
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import httpx
import orjson
import pytest

from frontend.backends.fake import FakeGenerator, ScriptStep, chunks, forever
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk
from tests.support.app import MODEL, Running, in_process, real_server
from tests.support.sse_events import events


def text_of(events: list[Any], index: int = 0) -> str:
    return "".join(c["text"] for event in events for c in event["choices"] if c["index"] == index)


async def test_stream_of_events(running: Running) -> None:
    response = await running.complete(max_tokens=3, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache, no-store"
    assert response.headers["x-accel-buffering"] == "no"
    sent_events = events(response.text)
    assert len({(event["id"], event["created"], event["model"], event["object"]) for event in sent_events}) == 1
    assert all(set(event) == {"id", "object", "created", "model", "choices"} for event in sent_events)
    assert [event["choices"][0] for event in sent_events] == [
        {"index": 0, "text": " Paris", "logprobs": None, "finish_reason": None},
        {"index": 0, "text": ",", "logprobs": None, "finish_reason": None},
        {"index": 0, "text": " the", "logprobs": None, "finish_reason": "length"},
    ]


async def test_streamed_text_equals_the_text_without_streaming(running: Running) -> None:
    pieces = (" \U0001f600", "é\n\n", "data: [DONE]", '"', "\u2028", " \x00x")
    running.generator.script = lambda _: chunks(*pieces)
    whole = (await running.complete()).json()["choices"][0]["text"]
    assert text_of(events((await running.complete(stream=True)).text)) == whole == "".join(pieces)


@pytest.mark.parametrize("fields", [{}, {"logprobs": 0}, {"return_token_ids": True}], ids=["text", "logprobs", "ids"])
async def test_each_event_is_one_line_for_clients_that_split_at_every_unicode_line_end(
    running: Running, fields: dict[str, Any]
) -> None:
    """`str.splitlines` and httpx's `iter_lines` end lines at U+0085, U+2028 and U+2029 too, unlike the SSE standard."""
    text = "a\u0085b\u2028c\u2029d\u2019\v\f\x1c\x1d\x1e"
    logprobs = {"tokens": [text], "token_logprobs": [-1.0], "top_logprobs": [{text: -1.0}], "text_offset": [0]}
    first, last = chunks(text, text)
    if "logprobs" in fields:
        first = replace(first, logprobs_json=orjson.dumps(logprobs))
    running.generator.script = lambda _: [replace(first, token_ids=(1,)), replace(last, token_ids=(1,))]
    response = await running.complete(stream=True, **fields)
    *lines, done = (line.removeprefix("data: ") for line in response.text.splitlines() if line)
    choices = [json.loads(line)["choices"][0] for line in lines]
    assert [choice["text"] for choice in choices] == [text, text]
    assert done == "[DONE]"
    if "logprobs" in fields:
        assert choices[0]["logprobs"] == logprobs


async def test_usage_chunk(running: Running) -> None:
    response = await running.complete(max_tokens=2, stream=True, stream_options={"include_usage": True})
    *first, last = events(response.text)
    assert [event["usage"] for event in first] == [None, None]
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


async def test_continuous_usage(running: Running) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    sent_events = events((await running.complete(max_tokens=2, stream=True, stream_options=options)).text)
    assert [event["usage"]["total_tokens"] for event in sent_events] == [6, 7, 7]


async def test_continuous_usage_needs_include_usage_as_in_vllm(running: Running) -> None:
    options = {"continuous_usage_stats": True}
    sent_events = events((await running.complete(max_tokens=2, stream=True, stream_options=options)).text)
    assert len(sent_events) == 2
    assert all("usage" not in event for event in sent_events)


async def test_tokens_as_ids(running: Running) -> None:
    sent_events = events((await running.complete(max_tokens=2, stream=True, return_tokens_as_token_ids=True)).text)
    assert [event["choices"][0]["token_ids"] for event in sent_events] == [[101], [102]]
    assert text_of(sent_events) == "token_id:101token_id:102"


async def test_token_ids_with_the_text(running: Running) -> None:
    sent_events = events((await running.complete(max_tokens=2, stream=True, return_token_ids=True)).text)
    assert [event["choices"][0]["token_ids"] for event in sent_events] == [[101], [102]]
    prompts = [event["choices"][0].get("prompt_token_ids") for event in sent_events]
    assert prompts == [[1, 2, 3, 4, 5], None]  # on the first chunk alone, as in vLLM
    assert text_of(sent_events) == " Paris,"


async def test_echoed_token_ids_are_in_the_text_and_not_among_those_of_the_completion(running: Running) -> None:
    fields = {"return_tokens_as_token_ids": True, "echo": True, "return_token_ids": True, "stream": True}
    sent_events = events((await running.complete(max_tokens=2, **fields)).text)
    assert [event["choices"][0]["token_ids"] for event in sent_events] == [[101], [102]]
    assert sent_events[0]["choices"][0]["prompt_token_ids"] == [1, 2, 3, 4, 5]
    assert text_of(sent_events) == "".join(f"token_id:{number}" for number in (1, 2, 3, 4, 5, 101, 102))


async def test_echoed_ids_that_replace_the_text_are_listed_with_it(running: Running) -> None:
    fields = {"return_tokens_as_token_ids": True, "echo": True, "stream": True}
    sent_events = events((await running.complete(max_tokens=2, **fields)).text)
    assert [event["choices"][0]["token_ids"] for event in sent_events] == [[1, 2, 3, 4, 5, 101], [102]]
    assert all("prompt_token_ids" not in event["choices"][0] for event in sent_events)


async def test_choices_interleave_with_their_index() -> None:
    async with in_process() as app:
        sent_events = events((await app.complete(prompt=["a", "b"], n=2, max_tokens=3, stream=True)).text)
    for index in range(4):
        own = [event["choices"][0] for event in sent_events if event["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in own) == " Paris, the"
        assert [choice["finish_reason"] for choice in own] == [None, None, "length"]


async def test_chunks_without_text_are_not_sent(running: Running) -> None:
    running.generator.script = lambda _: chunks("", "a", "", "b")
    sent_events = events((await running.complete(stream=True)).text)
    assert [event["choices"][0]["text"] for event in sent_events] == ["a", "b"]


async def test_chunks_after_the_finish_reason_are_not_sent(running: Running) -> None:
    late = TextChunk("late", 9)
    running.generator.script = lambda _: [*chunks("a", reason=FinishReason.STOP), late]
    assert text_of(events((await running.complete(stream=True)).text)) == "a"


async def test_error_before_the_first_token_has_its_http_status(running: Running) -> None:
    running.generator.script = lambda _: [PipelineError(ErrorCode.QUEUE_FULL, "full")]
    response = await running.complete(stream=True)
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "queue_full"


async def test_error_after_the_first_token_is_an_event() -> None:
    gate = asyncio.Event()
    failure = PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "gone")
    generator = FakeGenerator(lambda _: [chunks("a", "b")[0], gate, failure])
    async with real_server(generator) as app, _stream(app) as response:
        lines = response.aiter_lines()
        first = await anext(lines)
        gate.set()
        rest = [line async for line in lines if line]
    assert '"text":"a"' in first
    assert json.loads(rest[0].removeprefix("data: ")) == {
        "error": {"message": "gone", "type": "overloaded_error", "param": None, "code": "engine_unavailable"}
    }
    assert rest[1:] == ["data: [DONE]"]


async def test_failing_choice_cancels_the_others() -> None:
    gate = asyncio.Event()

    def script(parameters: CompletionParameters) -> list[ScriptStep]:
        if parameters.prompt_text == "bad":
            return [gate, PipelineError(ErrorCode.INTERNAL_ERROR, "no")]
        return list(forever()(parameters))

    async with real_server(FakeGenerator(script)) as app:
        async with _stream(app, prompt=["good", "bad"]) as response:
            lines = response.aiter_lines()
            await anext(lines)
            gate.set()
            rest = [line async for line in lines if line]
        await app.generator.until_cancelled()
    assert '"code":"internal_error"' in rest[0]
    assert rest[-1] == "data: [DONE]"


async def test_deadline_ends_a_stream_with_an_event() -> None:
    async with real_server(FakeGenerator(forever())) as app:
        response = await app.client.post("/v1/completions", json=_streaming(), headers={"x-request-timeout-s": "0.2"})
        await app.generator.until_cancelled()
    assert response.status_code == 200
    assert '"code":"deadline_exceeded"' in response.text
    assert response.text.endswith("data: [DONE]\n\n")


async def test_idle_stream_gets_keep_alive_comments() -> None:
    gate = asyncio.Event()
    generator = FakeGenerator(lambda _: [gate, *chunks("a")])
    async with real_server(generator, keepalive_s=0.05) as app, _stream(app) as response:
        lines = response.aiter_lines()
        first = await anext(lines)
        gate.set()
        rest = [line async for line in lines if line.startswith("data: ")]
    assert response.status_code == 200
    assert first == ": keep-alive"
    assert len(rest) == 2


async def test_each_token_is_sent_before_the_next_is_generated() -> None:
    """No chunk waits for the next one."""
    gates = [asyncio.Event() for _ in range(3)]
    steps: list[ScriptStep] = []
    for gate, chunk in zip(gates, chunks("a", "b", "c"), strict=True):
        steps += [gate, chunk]
    async with real_server(FakeGenerator(lambda _: steps)) as app:
        gates[0].set()
        async with _stream(app) as response:
            lines = (line async for line in response.aiter_lines() if line)
            for number, text in enumerate("abc"):
                gates[number].set()
                assert f'"text":"{text}"' in await asyncio.wait_for(anext(lines), 5)


def _streaming(**fields: object) -> dict[str, object]:
    return {"model": MODEL, "prompt": "Hi", "stream": True, **fields}


def _stream(app: Running, **fields: object) -> AbstractAsyncContextManager[httpx.Response]:
    return app.client.stream("POST", "/v1/completions", json=_streaming(**fields))
