"""Kinds of faults that users of other servers reported: docs/compatibility.md has the reports. On the real model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontend.request.schemas import CompletionRequest
from tests.support.stack import MODEL, RunningStack, running_stack

pytestmark = pytest.mark.triton

PROMPT = "The capital of France is"
LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


@pytest.fixture(scope="module")
def client(cpu_stack: RunningStack) -> Iterator[httpx.Client]:
    with cpu_stack.client() as client:
        yield client


def complete(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/completions", json={"model": MODEL, "prompt": PROMPT, "temperature": 0, **fields})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def events(client: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, read as many clients read them: with httpx's lines, which also end at U+2028."""
    body = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "stream": True, **fields}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert answer.status_code == 200
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def texts(sent: list[dict[str, Any]]) -> dict[int, str]:
    joined: dict[int, str] = {}
    for choice in (choice for event in sent for choice in event["choices"]):
        joined[choice["index"]] = joined.get(choice["index"], "") + choice["text"]
    return joined


def refusal(client: httpx.Client, **fields: Any) -> tuple[int, str | None]:
    answer = client.post("/v1/completions", json={"model": MODEL, "prompt": PROMPT, "max_tokens": 1, **fields})
    return answer.status_code, answer.json()["error"]["param"]


def test_a_stream_with_unicode_line_ends_is_read_by_lines(client: httpx.Client) -> None:
    prompt = "a\u2028b\u2029c\u0085d"
    sent = events(client, prompt=prompt, max_tokens=2, echo=True, logprobs=1)
    assert texts(sent)[0].startswith(prompt)


@pytest.mark.parametrize("fields", [{"max_tokens": 6}, {"max_tokens": 0}], ids=["generate", "score"])
def test_echo_and_logprobs_of_a_stream_of_two_prompts_add_up_to_the_whole(
    client: httpx.Client, fields: dict[str, int]
) -> None:
    body: dict[str, Any] = {"prompt": [PROMPT, "Hi 你 there"], "echo": True, "logprobs": 2, **fields}
    whole, sent = complete(client, **body), events(client, **body)
    for choice in whole["choices"]:
        index = choice["index"]
        pieces = [piece for event in sent for piece in event["choices"] if piece["index"] == index]
        assert texts(sent)[index] == choice["text"]
        for name in LISTS:
            pieces_of_list = (piece["logprobs"][name] for piece in pieces if piece["logprobs"])
            assert [*chain.from_iterable(pieces_of_list)] == choice["logprobs"][name]
        assert [piece["finish_reason"] for piece in pieces if piece["finish_reason"]] == ["length"]


def test_usage_of_several_prompts_and_choices_counts_each_prompt_once(client: httpx.Client) -> None:
    body: dict[str, Any] = {"prompt": [PROMPT, "Once upon"], "n": 2, "max_tokens": 3}
    usage = complete(client, **body)["usage"]
    assert usage == {"prompt_tokens": 7, "completion_tokens": 12, "total_tokens": 19}
    sent = events(client, **body, stream_options={"include_usage": True})
    assert (sent[-1]["choices"], sent[-1]["usage"]) == ([], usage)
    ends = [choice["index"] for event in sent for choice in event["choices"] if choice["finish_reason"]]
    assert sorted(ends) == [0, 1, 2, 3]


def test_no_part_of_a_stop_string_is_sent(client: httpx.Client) -> None:
    text: str = complete(client, max_tokens=12)["choices"][0]["text"]
    for begin in range(1, len(text) - 3):
        stop = text[begin : begin + 3]
        sent = events(client, max_tokens=12, stop=[stop, text[begin] + "\u2603"])
        assert texts(sent)[0] == text[: text.index(stop)]
        assert sent[-1]["choices"][0]["finish_reason"] == "stop"


def test_null_equals_omitting_for_every_optional_field(client: httpx.Client) -> None:
    given_fields = {"model", "prompt", "temperature", "max_tokens"}
    nulls = dict.fromkeys(set(CompletionRequest.model_fields) - given_fields)
    assert complete(client, max_tokens=4, **nulls)["choices"] == complete(client, max_tokens=4)["choices"]
    assert complete(client, max_tokens=None)["usage"]["completion_tokens"] == 16


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.integers(0, 49151), min_size=1, max_size=12))
def test_any_token_ids_make_valid_text(client: httpx.Client, ids: list[int]) -> None:
    """Also tokens that are parts of characters, with nothing that completes them."""
    body: dict[str, Any] = {"prompt": ids, "max_tokens": 2, "echo": True, "logprobs": 1}
    (whole,) = complete(client, **body)["choices"]
    assert texts(events(client, **body))[0] == whole["text"]
    assert len(whole["logprobs"]["tokens"]) == len(whole["logprobs"]["text_offset"]) >= len(ids)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-10])
def test_the_smallest_temperatures_are_greedy(client: httpx.Client, temperature: float) -> None:
    greedy = complete(client, max_tokens=4)["choices"][0]["text"]
    assert complete(client, max_tokens=4, temperature=temperature)["choices"][0]["text"] == greedy


def test_a_seed_fixes_each_of_n_texts_and_they_differ(client: httpx.Client) -> None:
    body: dict[str, Any] = {"max_tokens": 8, "temperature": 1.5, "seed": 5}
    found = [choice["text"] for choice in complete(client, **body, n=3)["choices"]]
    assert len(set(found)) == 3
    assert complete(client, **body)["choices"][0]["text"] == found[0]
    unseeded = {complete(client, max_tokens=8, temperature=1.5)["choices"][0]["text"] for _ in range(4)}
    assert len(unseeded) > 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": [""]}, "prompt[0]"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [49152]}, "prompt"),
        ({"prompt": [5279552648203111001]}, "prompt"),
        ({"logit_bias": {"49152": 1}}, "logit_bias"),
        ({"stop": list("abcdefghijklmnopq")}, "stop"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"regex": "[0-9]+"}, "regex"),
        ({"grammar": 'root ::= "a"'}, "grammar"),
        ({"json_schema": {"type": "object"}}, "json_schema"),
    ],
    ids=str,
)
def test_what_stops_or_misleads_other_servers_is_refused_by_name(
    client: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    assert refusal(client, **fields) == (400, param)


def test_an_error_does_not_grow_with_the_input(client: httpx.Client) -> None:
    bodies: list[dict[str, Any]] = [
        {"logit_bias": {f"key {number}": "x" for number in range(1000)}, "stop": [1] * 16},
        {"prompt": [["x" * 1000]] * 100},
        {"prompt": ["x" * 100_000, 1], "user": {"x": "x" * 100_000}},
    ]
    for body in bodies:
        answer = client.post("/v1/completions", json={"model": MODEL, "prompt": PROMPT, **body})
        assert answer.status_code == 400
        assert len(answer.content) < 2000


def test_probabilities_are_numbers_in_json(client: httpx.Client) -> None:
    logprobs = complete(client, max_tokens=8, logprobs=20)["choices"][0]["logprobs"]
    assert all(math.isfinite(value) for value in logprobs["token_logprobs"])
    assert all(len(top) >= 18 for top in logprobs["top_logprobs"])  # tokens of equal text are listed once


def test_a_model_whose_name_has_slashes_is_found_encoded_or_not(engine_dir: Path, tmp_path: Path) -> None:
    name = "my-org/model.v1:tag"
    with running_stack(tmp_path, engine_dir, EXECUTOR="scripted", MODEL_NAME=name) as stack, stack.client() as client:
        for path in (name, quote(name, safe=""), quote(name, safe=":")):
            assert client.get(f"/v1/models/{path}").json()["id"] == name
        answer = client.post("/v1/completions", json={"model": name, "prompt": "x", "max_tokens": 2})
        assert answer.json()["model"] == name
