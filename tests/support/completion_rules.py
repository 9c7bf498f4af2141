"""The promises of the API as tests of a running stack with any executor.

A test module subclasses the rules and defines the fixture `stack`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from openai._models import validate_type  # what the strict client applies to each chunk

from tests.support.raw_requests import open_request
from tests.support.sse_events import events
from tests.support.stack import MODEL, RunningStack
from tests.support.waiting import wait_until

# The request of the API page, its host, key and model replaced, and stream left out, as the page's answer is JSON.
PAGE_EXAMPLE = {
    "model": MODEL,
    "prompt": "<string>",
    "include_stop_str_in_output": True,
    "max_completion_tokens": 123,
    "max_tokens": 123,
    "min_p": 0.5,
    "return_tokens_as_token_ids": True,
    "seed": 123,
    "skip_special_tokens": True,
    "stop": ["<string>"],
    "temperature": 1,
    "top_k": 123,
    "top_p": 0,
}
# Cancellation takes less than 300 ms on a quiet machine. The limit here only tells a freed slot from one in use.
CANCEL_LIMIT_S = 3.0


def page_example_for_the_official_client() -> dict[str, Any]:
    fields = {name: value for name, value in PAGE_EXAMPLE.items() if name != "return_tokens_as_token_ids"}
    known = ("model", "prompt", "max_tokens", "seed", "stop", "temperature", "top_p")
    extra = {name: value for name, value in fields.items() if name not in known}
    return {**{name: fields[name] for name in known}, "extra_body": extra}


def stream_events(stack: RunningStack, **body: object) -> list[dict[str, Any]]:
    """All events of a stream; checks its headers and its framing."""
    with (
        stack.client() as client,
        client.stream("POST", "/openai/v1/completions", json={"model": MODEL, "stream": True, **body}) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache, no-store"
        assert response.headers["x-accel-buffering"] == "no"
        text = response.read().decode()
    return events(text)


class TextRules:
    """Text, streams and stop strings. These need an executor with the default model's tokenizer."""

    @pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
    def test_the_curl_example_of_the_api_page_returns_a_valid_completion(self, stack: RunningStack) -> None:
        command = ["curl", "--silent", "--show-error", "--max-time", "60", "--request", "POST"]
        command += ["--url", stack.completions_url, "--header", f"Authorization: Bearer {stack.api_key}"]
        command += ["--header", "Content-Type: application/json", "--data", json.dumps(PAGE_EXAMPLE)]
        command += ["--write-out", "\n%{http_code}"]
        output = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout
        text, status = output.rsplit("\n", 1)
        assert status == "200"
        body = json.loads(text)
        schema = httpx.get(body["$schema"], trust_env=False).raise_for_status().json()
        jsonschema.validate(body, schema)
        assert body["object"] == "text_completion"
        assert body["usage"]["completion_tokens"] == len(body["choices"][0]["token_ids"])

    @pytest.mark.parametrize("strict", [False, True], ids=["loose", "strict"])
    def test_the_example_of_the_api_page_completes_by_the_official_client(
        self, stack: RunningStack, strict: bool
    ) -> None:
        client = stack.openai(_strict_response_validation=strict)
        answer = client.completions.create(**page_example_for_the_official_client())
        assert answer.choices[0].text
        assert answer.usage.completion_tokens > 0

    def test_the_example_of_the_api_page_streams_to_the_official_client(self, stack: RunningStack) -> None:
        stream = stack.openai().completions.create(
            **page_example_for_the_official_client(), stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert len({chunk.id for chunk in chunks}) == 1
        *with_choice, last = chunks
        assert last.choices == []
        assert last.usage.completion_tokens > 0
        reasons = [chunk.choices[0].finish_reason for chunk in with_choice]
        assert reasons[-1] in ("stop", "length")
        assert set(reasons[:-1]) <= {None}

    def test_the_strict_client_accepts_all_of_a_stream_but_null_finish_reasons(self, stack: RunningStack) -> None:
        """openai-python types finish_reason as never null, also in streams, where OpenAI's own service sends null.

        So its strict mode refuses every stream of more than one chunk, from any server. The promise here: a stream of
        one chunk passes as it is, and every chunk of a longer one passes but for that null.
        """
        client = stack.openai(_strict_response_validation=True)
        request = {**page_example_for_the_official_client(), "stop": None}
        stream = client.completions.create(**{**request, "max_tokens": 1, "extra_body": {}}, stream=True)
        assert [chunk.choices[0].finish_reason for chunk in stream] == ["length"]

        extra = {**request.pop("extra_body"), "max_completion_tokens": 20}
        events = stream_events(stack, **request, **extra, stream_options={"include_usage": True})
        assert len(events) > 10
        for event in events:
            for choice in event["choices"]:
                choice["finish_reason"] = choice["finish_reason"] or "stop"
            validate_type(type_=openai.types.Completion, value=event)

    @pytest.mark.parametrize(
        "body",
        [
            {"prompt": "Once upon a time", "max_tokens": 24},
            {"prompt": "Write emoji: 🎉🎉 日本語", "max_tokens": 24, "temperature": 1.2, "seed": 11},
            {"prompt": "1 2 3 4 5", "max_tokens": 24, "stop": [" 9", "zebra"]},
            {"prompt": "1 2 3 4 5", "max_tokens": 24, "stop": [" 9"], "include_stop_str_in_output": True},
            {"prompt": "Once", "max_tokens": 8, "return_tokens_as_token_ids": True},
            {"prompt": ["One", "Two"], "max_tokens": 6, "n": 2, "seed": 5, "temperature": 0.8},
        ],
        ids=["plain", "sampled unicode", "stop", "stop included", "ids", "lists and n"],
    )
    def test_the_stream_adds_up_to_the_whole_completion(self, stack: RunningStack, body: dict[str, Any]) -> None:
        body = {"temperature": 0, **body}
        answer = stack.complete(**body).json()
        events = stream_events(stack, **body, stream_options={"include_usage": True})
        for choice in answer["choices"]:
            mine = [item for event in events for item in event["choices"] if item["index"] == choice["index"]]
            assert "".join(item["text"] for item in mine) == choice["text"]
            assert [item["finish_reason"] for item in mine if item["finish_reason"]] == [choice["finish_reason"]]
            assert mine[-1]["finish_reason"]
            if choice["finish_reason"] == "length":
                assert mine[-1]["text"]
        assert events[-1]["usage"] == answer["usage"]

    def test_a_stop_string_is_removed_or_kept_and_its_tokens_count(self, stack: RunningStack) -> None:
        body = {"prompt": "1 2 3 4 5", "max_tokens": 30, "temperature": 0}
        free = stack.complete(**body).json()["choices"][0]["text"]
        word = free[8:11]  # from inside the text, regardless of token borders
        end = free.index(word) + len(word)
        without = stack.complete(**body, stop=[word]).json()
        with_it = stack.complete(**body, stop=[word], include_stop_str_in_output=True).json()
        assert without["choices"][0]["text"] == free[: end - len(word)]
        assert with_it["choices"][0]["text"] == free[:end]
        assert without["choices"][0]["finish_reason"] == with_it["choices"][0]["finish_reason"] == "stop"
        assert without["usage"] == with_it["usage"]
        assert without["usage"]["completion_tokens"] < 30

    def test_greedy_by_temperature_top_p_top_k_and_min_p_is_the_same(self, stack: RunningStack) -> None:
        ways = [{"temperature": 0}, {"top_p": 0}, {"top_k": 1}, {"min_p": 1}]
        texts = {
            stack.complete(prompt="The capital of France", max_tokens=10, **way).json()["choices"][0]["text"]
            for way in ways
        }
        assert len(texts) == 1

    def test_the_eos_token_counts_and_is_included_on_request(self, stack: RunningStack) -> None:
        prompt = "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n"
        body = {"prompt": prompt, "max_tokens": 60, "temperature": 0}
        plain = stack.complete(**body).json()
        shown = stack.complete(**body, skip_special_tokens=False, include_stop_str_in_output=True).json()
        ids = stack.complete(**body, return_tokens_as_token_ids=True).json()
        assert plain["choices"][0]["finish_reason"] == "stop"
        assert shown["choices"][0]["text"] == plain["choices"][0]["text"] + "<|im_end|>"
        assert plain["usage"]["completion_tokens"] == len(ids["choices"][0]["token_ids"])
        assert ids["choices"][0]["token_ids"][-1] == 2


class RequestRules:
    """Lengths, the models list, and Triton's own endpoint. Any tokens will do."""

    def test_max_tokens_is_clamped_to_the_context_length(self, stack: RunningStack) -> None:
        body = stack.complete(prompt=[1] * 8188, max_tokens=100).json()
        assert body["usage"] == {"prompt_tokens": 8188, "completion_tokens": 4, "total_tokens": 8192}
        assert body["choices"][0]["finish_reason"] == "length"

    def test_without_max_tokens_the_default_is_16(self, stack: RunningStack) -> None:
        assert stack.complete(prompt="x").json()["usage"]["completion_tokens"] == 16

    def test_max_completion_tokens_overrides_max_tokens(self, stack: RunningStack) -> None:
        answer = stack.complete(prompt="x", max_tokens=9, max_completion_tokens=5).json()
        assert answer["usage"]["completion_tokens"] == 5

    def test_models_are_listed_and_found(self, stack: RunningStack) -> None:
        client = stack.openai()
        assert MODEL in [model.id for model in client.models.list()]
        assert client.models.retrieve(MODEL).id == MODEL

    def test_tritons_own_generate_endpoint_gives_one_response(self, stack: RunningStack) -> None:
        """A client without our front end: stream is false, so the decoupled ensemble must answer exactly once."""
        answer = httpx.post(
            f"{stack.triton_http_url}/v2/models/ensemble/generate",
            json={"text_input": "hello", "max_tokens": 5, "stop_words": ["never"]},
            trust_env=False,
            timeout=30,
        )
        assert answer.status_code == 200
        assert answer.json()["num_output_tokens"] == 5
        assert answer.json()["finish_reason"] == "length"


class CancelRules:
    """Clients that disconnect."""

    @pytest.mark.parametrize("stream", [True, False], ids=["streaming", "not streaming"])
    def test_a_disconnect_frees_the_slot(self, stack: RunningStack, stream: bool) -> None:
        wait_until(lambda: stack.active_requests == 0, limit_s=30, what="the stack is idle")
        cancelled = stack.decode_metric("decode_cancelled_requests_total")
        connection = open_request(stack, stream=stream)
        wait_until(lambda: stack.active_requests == 1, limit_s=10, what="the request has a slot")
        if stream:
            assert b"200 OK" in connection.recv(4096)
        connection.close()
        took_s = wait_until(lambda: stack.active_requests == 0, limit_s=CANCEL_LIMIT_S, what="decode's slot is free")
        print(f"stream={stream}: slot free {took_s * 1000:.0f} ms after the disconnect")
        wait_until(
            lambda: stack.decode_metric("decode_cancelled_requests_total") == cancelled + 1,
            limit_s=CANCEL_LIMIT_S,
            what="the cancelled request is counted",
        )
        assert stack.complete(prompt="Hello", max_tokens=4).status_code == 200


class ManyCancelRules:
    """A hundred clients that disconnect at once: for stacks that can run most of them side by side."""

    def test_a_hundred_cancelled_requests_leak_nothing(self, stack: RunningStack) -> None:
        connections = [open_request(stack, stream=number % 2 == 0) for number in range(100)]
        wait_until(lambda: stack.active_requests >= 50, limit_s=30, what="most of them have slots")
        for connection in connections:
            connection.close()
        # decode publishes its gauges one after the other, so a scrape in between shows a new value beside an old one.
        wait_until(lambda: stack.active_requests == 0, limit_s=15, what="all slots are free")
        wait_until(lambda: stack.decode_metric("decode_queued_requests") == 0, limit_s=5, what="the queue is empty")
        with stack.client() as client:
            wait_until(
                lambda: (
                    'completions_in_flight_requests{model="smollm2-135m-instruct"} 0.0' in client.get("/metrics").text
                ),
                limit_s=15,
                what="the front end has none in flight",
            )
        assert stack.complete(prompt="Hello", max_tokens=4).status_code == 200


class PaceRules:
    """Streaming at the pace of the engine: for stacks whose engine makes 200 tokens a second."""

    TOKENS = 200
    STREAMS = 5

    def test_each_token_of_one_client_arrives_as_its_own_event(self, stack: RunningStack) -> None:
        """A slow machine may merge tokens at times; a design that batches would do so in every stream."""
        body = {"model": MODEL, "prompt": "Hello", "max_tokens": self.TOKENS, "stream": True}
        counts = []
        with stack.client() as client:
            client.post("/openai/v1/completions", json={**body, "stream": False, "max_tokens": 1})
            for _ in range(self.STREAMS):
                with client.stream("POST", "/openai/v1/completions", json=body) as response:
                    events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
                texts = [event["choices"][0]["text"] for event in events]
                assert all(texts)
                counts.append(len(texts))
        assert max(counts) >= 0.95 * self.TOKENS, counts
