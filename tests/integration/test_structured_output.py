"""Structured output on a running stack: fifty schemas, and every request field for them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jsonschema
import pytest

from tests.support.guide_schemas import SCHEMAS, an_object
from tests.support.stack import MODEL, RunningStack

pytestmark = pytest.mark.triton

PERSON = an_object(
    {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 120}}
)


@pytest.fixture(scope="module")
def client(cpu_stack: RunningStack) -> Iterator[httpx.Client]:
    with cpu_stack.client(timeout_s=120) as client:
        yield client


def complete(client: httpx.Client, **fields: object) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": "A person as JSON:", "max_tokens": 200, "temperature": 0, **fields}
    response = client.post("/openai/v1/completions", json=body)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def test_fifty_schemas_at_once_parse_and_validate(client: httpx.Client) -> None:
    """Sampled, so that the output differs from the greedy text."""

    def one(schema: dict[str, Any]) -> dict[str, Any]:
        response_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        return complete(client, response_format=response_format, temperature=1, seed=7)

    with ThreadPoolExecutor(len(SCHEMAS)) as pool:
        choices = list(pool.map(one, SCHEMAS))
    for schema, choice in zip(SCHEMAS, choices, strict=True):
        assert choice["finish_reason"] == "stop", (schema, choice)
        jsonschema.validate(json.loads(choice["text"]), schema, format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}},
        {"structured_outputs": {"json": PERSON}},
        {"structured_outputs": {"json": json.dumps(PERSON)}},
        {"guided_json": PERSON},
    ],
    ids=["response_format", "structured_outputs", "schema as a string", "guided_json"],
)
def test_every_field_for_a_schema_has_the_same_effect(client: httpx.Client, field: dict[str, Any]) -> None:
    text = complete(client, **field)["text"]
    jsonschema.validate(json.loads(text), PERSON)
    assert text == complete(client, guided_json=PERSON)["text"]


def test_a_json_object_is_an_object(client: httpx.Client) -> None:
    choice = complete(client, response_format={"type": "json_object"}, stop=None)
    assert choice["finish_reason"] == "stop"
    assert isinstance(json.loads(choice["text"]), dict)


def test_expressions_choices_and_grammars(client: httpx.Client) -> None:
    assert re.fullmatch(r"\d{3}-[a-z]{2}", complete(client, guided_regex=r"\d{3}-[a-z]{2}")["text"])
    options = ["yes (really)", "no", "a|b"]
    assert complete(client, guided_choice=options)["text"] in options
    assert complete(client, structured_outputs={"grammar": 'root ::= "cat" | "dog"'})["text"] in {"cat", "dog"}


def test_a_guided_stream_adds_up_to_the_answer_without_streaming(client: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": "A person:", "max_tokens": 100, "temperature": 0, "guided_json": PERSON}
    with client.stream("POST", "/openai/v1/completions", json={**body, "stream": True}) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {")]
    pieces = [json.loads(event)["choices"][0]["text"] for event in events]
    whole = client.post("/openai/v1/completions", json=body).json()["choices"][0]["text"]
    assert "".join(pieces) == whole


def test_a_guided_request_does_not_change_others(client: httpx.Client) -> None:
    alone = complete(client, prompt="Once upon a time", max_tokens=16)["text"]
    with ThreadPoolExecutor(8) as pool:
        guided = [pool.submit(complete, client, guided_json=PERSON) for _ in range(4)]
        free = [pool.submit(complete, client, prompt="Once upon a time", max_tokens=16) for _ in range(4)]
    assert [each.result()["text"] for each in free] == [alone] * 4
    assert len({each.result()["text"] for each in guided}) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_json": {"type": "objec"}}, "guided_json"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
        ({"guided_regex": "(a"}, "guided_regex"),
        ({"guided_grammar": "no grammar"}, "guided_grammar"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a", 1]}, "guided_choice"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"yaml": "a"}}, "structured_outputs"),
        ({"guided_regex": "a", "guided_json": {}}, "guided_regex"),
        ({"guided_regex": "a+", "min_tokens": 3}, "min_tokens"),
        ({"guided_regex": "a+", "ignore_eos": True}, "ignore_eos"),
        ({"guided_regex": "a+", "bad_words": ["a"]}, "bad_words"),
    ],
)
def test_an_invalid_guide_is_a_400_that_names_the_field(
    client: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    response = client.post("/openai/v1/completions", json={"model": MODEL, "prompt": "x", "max_tokens": 8, **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_an_executor_without_guided_decoding_rejects_the_field_by_name(scripted_stack: RunningStack) -> None:
    response = scripted_stack.complete(prompt="x", max_tokens=8, guided_json={"type": "object"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "guided_json"
    assert response.json()["error"]["code"] == "unsupported_parameter"


def test_response_format_text_changes_nothing(client: httpx.Client) -> None:
    plain = complete(client, max_tokens=8)
    assert complete(client, max_tokens=8, response_format={"type": "text"}) == plain
