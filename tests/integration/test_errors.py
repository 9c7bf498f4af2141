"""Every row of the error table over HTTP on a running stack; after each error a valid request works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from llm_pipeline.protocol.errors import ERRORS, ErrorCode
from tests.support.stack import MODEL, RunningStack, running_stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

GOOD: dict[str, Any] = {"model": MODEL, "prompt": "Hello", "max_tokens": 2}


def check_error(response: httpx.Response, code: ErrorCode, param: str | None = None) -> dict[str, Any]:
    """Checks the status, the four error keys, the flat keys, the schema and the headers; returns the body."""
    kind = ERRORS[code]
    body: dict[str, Any] = response.json()
    assert response.status_code == kind.status, body
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["type"], body["error"]["code"]) == (kind.type, kind.client_code or code.value)
    if param is not None:
        assert body["error"]["param"] == param
    assert body["status"] == kind.status
    assert body["title"] == kind.title
    assert body["detail"] == body["error"]["message"]
    assert body["errors"][0]["message"]
    assert "location" in body["errors"][0]
    assert response.headers["x-request-id"]
    assert response.headers["content-type"] == "application/json"
    assert 'rel="describedBy"' in response.headers["link"]
    jsonschema.validate(body, httpx.get(body["$schema"], trust_env=False).json())
    for secret in ("Traceback", "/home", "site-packages", "Hello there secret"):
        assert secret not in response.text
    return body


def post(stack: RunningStack, body: object, **options: Any) -> httpx.Response:
    headers = {**stack.headers, "Content-Type": "application/json", **options.pop("headers", {})}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    path = options.pop("path", "/openai/v1/completions")
    return httpx.post(f"{stack.base_url}{path}", content=content, headers=headers, timeout=30, trust_env=False)


@pytest.fixture(autouse=True)
def _next_good_request_works(scripted_stack: RunningStack) -> Iterator[None]:
    yield
    assert post(scripted_stack, GOOD).status_code == 200


BAD_BODIES: list[tuple[str, object, ErrorCode, str | None]] = [
    ("malformed", b"{", ErrorCode.INVALID_JSON, None),
    ("empty", b"", ErrorCode.INVALID_JSON, None),
    ("not an object", b"[1]", ErrorCode.INVALID_JSON, None),
    ("bad utf-8", b'{"model": "\xff"}', ErrorCode.INVALID_JSON, None),
    ("nan", b'{"model": "m", "prompt": "x", "temperature": NaN}', ErrorCode.INVALID_JSON, None),
    ("deep", b'{"a":' + b"[" * 70 + b"]" * 70 + b"}", ErrorCode.INVALID_JSON, None),
    ("no model", {"prompt": "x"}, ErrorCode.MISSING_REQUIRED_PARAMETER, "model"),
    ("no prompt", {"model": MODEL}, ErrorCode.MISSING_REQUIRED_PARAMETER, "prompt"),
    ("prompt a number", {**GOOD, "prompt": 5}, ErrorCode.INVALID_TYPE, "prompt"),
    ("string for a number", {**GOOD, "max_tokens": "16"}, ErrorCode.INVALID_TYPE, "max_tokens"),
    ("boolean for a number", {**GOOD, "temperature": True}, ErrorCode.INVALID_TYPE, "temperature"),
    ("temperature", {**GOOD, "temperature": 2.5}, ErrorCode.VALUE_OUT_OF_RANGE, "temperature"),
    ("top_p", {**GOOD, "top_p": 1.5}, ErrorCode.VALUE_OUT_OF_RANGE, "top_p"),
    ("min_p", {**GOOD, "min_p": -0.1}, ErrorCode.VALUE_OUT_OF_RANGE, "min_p"),
    ("top_k", {**GOOD, "top_k": -2}, ErrorCode.VALUE_OUT_OF_RANGE, "top_k"),
    ("max_tokens 0", {**GOOD, "max_tokens": 0}, ErrorCode.VALUE_OUT_OF_RANGE, "max_tokens"),
    ("max_tokens over the context", {**GOOD, "max_tokens": 9000}, ErrorCode.VALUE_OUT_OF_RANGE, "max_tokens"),
    ("empty prompt", {**GOOD, "prompt": ""}, ErrorCode.VALUE_OUT_OF_RANGE, "prompt"),
    ("id outside the vocabulary", {**GOOD, "prompt": [1, 10**6]}, ErrorCode.VALUE_OUT_OF_RANGE, "prompt"),
    ("empty stop", {**GOOD, "stop": ""}, ErrorCode.VALUE_OUT_OF_RANGE, "stop"),
    ("17 stops", {**GOOD, "stop": ["a"] * 17}, ErrorCode.VALUE_OUT_OF_RANGE, "stop"),
    ("long stop", {**GOOD, "stop": "a" * 1025}, ErrorCode.VALUE_OUT_OF_RANGE, "stop"),
    ("not implemented", {**GOOD, "use_beam_search": True}, ErrorCode.UNSUPPORTED_PARAMETER, "use_beam_search"),
    ("not in the executor", {**GOOD, "logit_bias": {"5": 1}}, ErrorCode.UNSUPPORTED_PARAMETER, "logit_bias"),
    ("logprobs not in the executor", {**GOOD, "logprobs": 0}, ErrorCode.UNSUPPORTED_PARAMETER, "logprobs"),
    ("not in the tokenizer", {**GOOD, "suffix": "x"}, ErrorCode.UNSUPPORTED_PARAMETER, "suffix"),
    ("bias outside the vocabulary", {**GOOD, "logit_bias": {"99999": 1}}, ErrorCode.VALUE_OUT_OF_RANGE, "logit_bias"),
    ("end outside the vocabulary", {**GOOD, "stop_token_ids": [10**6]}, ErrorCode.VALUE_OUT_OF_RANGE, "stop_token_ids"),
    ("context", {**GOOD, "prompt": [5] * 8192}, ErrorCode.CONTEXT_LENGTH_EXCEEDED, "prompt"),
    ("context by text", {**GOOD, "prompt": "Hello there secret " * 9000}, ErrorCode.CONTEXT_LENGTH_EXCEEDED, "prompt"),
    ("unknown model", {**GOOD, "model": "gpt-9"}, ErrorCode.MODEL_NOT_FOUND, "model"),
]


@pytest.mark.parametrize(
    ("body", "code", "param"), [case[1:] for case in BAD_BODIES], ids=[case[0] for case in BAD_BODIES]
)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_invalid_bodies_are_rejected(
    scripted_stack: RunningStack, body: object, code: ErrorCode, param: str | None, stream: bool
) -> None:
    if isinstance(body, dict):
        body = {**body, "stream": stream}
    check_error(post(scripted_stack, body), code, param)


def test_the_context_error_names_both_numbers(scripted_stack: RunningStack) -> None:
    message = post(scripted_stack, {**GOOD, "prompt": [5] * 8200}).json()["error"]["message"]
    assert "8192" in message
    assert "8200" in message


@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", "Basic abc", "Bearer", ""], ids=["none", "wrong", "scheme", "bare", "empty"]
)
@pytest.mark.parametrize("path", ["/openai/v1/completions", "/v1/completions", "/openai/v1/models", "/nowhere"])
def test_a_request_without_a_valid_key_is_401(
    scripted_stack: RunningStack, authorization: str | None, path: str
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    response = httpx.get(f"{scripted_stack.base_url}{path}", headers=headers, trust_env=False)
    check_error(response, ErrorCode.INVALID_API_KEY)
    assert response.headers["www-authenticate"].startswith("Bearer")


def test_unknown_paths_and_wrong_methods(scripted_stack: RunningStack) -> None:
    with scripted_stack.client() as client:
        check_error(client.get("/openai/v1/nothing"), ErrorCode.NOT_FOUND)
        response = client.get("/openai/v1/completions")
        check_error(response, ErrorCode.METHOD_NOT_ALLOWED)
        assert response.headers["allow"] == "POST"


def test_size_and_content_type(scripted_stack: RunningStack) -> None:
    check_error(post(scripted_stack, {**GOOD, "prompt": "x" * (5 * 2**20)}), ErrorCode.REQUEST_TOO_LARGE)
    wrong = {"headers": {"Content-Type": "text/plain"}}
    check_error(post(scripted_stack, GOOD, **wrong), ErrorCode.UNSUPPORTED_MEDIA_TYPE)


def test_problem_json_on_request(scripted_stack: RunningStack) -> None:
    response = post(scripted_stack, b"{", headers={"Accept": "application/problem+json"})
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"


def test_a_passed_deadline_is_a_504(scripted_stack: RunningStack) -> None:
    # 4,000 tokens at 200 a second take 20 s.
    response = post(scripted_stack, {**GOOD, "max_tokens": 4000}, headers={"x-request-timeout-s": "0.3"})
    check_error(response, ErrorCode.DEADLINE_EXCEEDED)


def test_a_deadline_within_a_stream_is_an_error_event(scripted_stack: RunningStack) -> None:
    response = post(
        scripted_stack, {**GOOD, "max_tokens": 4000, "stream": True}, headers={"x-request-timeout-s": "0.3"}
    )
    assert response.status_code == 200
    *_, error, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"


@pytest.fixture(scope="module")
def strict_stack(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Keys in a file (one that may fill the server, one without this model, one with a rate limit), and failures."""
    folder = tmp_path_factory.mktemp("strict")
    keys = [
        {"name": "all", "sha256": sha256(b"sk-integration-tests-only").hexdigest(), "max_in_flight": 3},
        {"name": "other-model", "sha256": sha256(b"sk-other").hexdigest(), "models": ["another"]},
        {"name": "slow", "sha256": sha256(b"sk-slow").hexdigest(), "requests_per_minute": 2},
    ]
    (folder / "keys.json").write_text(json.dumps(keys))
    scripts = [
        {"prompt_ids": [7, 7], "error": "the engine's own words, not for clients"},
        {"prompt_ids": [7, 8], "token_ids": [28, 28, 28], "error": "the engine's own words, not for clients"},
        {"prompt_ids": [9], "stall": True},
    ]
    (folder / "scripts.json").write_text(json.dumps(scripts))
    environment = {
        "EXECUTOR": "scripted",
        "API_KEYS_FILE": str(folder / "keys.json"),
        "SCRIPTED_FILE": str(folder / "scripts.json"),
        "MAX_IN_FLIGHT": "2",
    }
    with running_stack(folder, engine_dir, **environment) as stack:
        yield stack


def test_a_key_for_another_model_is_forbidden(strict_stack: RunningStack) -> None:
    response = post(strict_stack, GOOD, headers={"Authorization": "Bearer sk-other"})
    check_error(response, ErrorCode.MODEL_NOT_ALLOWED)


def test_a_key_over_its_rate_limit_gets_retry_after(strict_stack: RunningStack) -> None:
    headers = {"Authorization": "Bearer sk-slow"}
    statuses = [post(strict_stack, GOOD, headers=headers).status_code for _ in range(2)]
    assert statuses == [200, 200]
    response = post(strict_stack, GOOD, headers=headers)
    check_error(response, ErrorCode.REQUEST_RATE_EXCEEDED)
    assert 0 < int(response.headers["retry-after"]) <= 120


def test_more_than_the_limit_in_flight_is_queue_full(strict_stack: RunningStack) -> None:
    stalled = {**GOOD, "prompt": [[9], [9]], "max_tokens": 9, "stream": True}
    with (
        strict_stack.client() as client,
        ThreadPoolExecutor() as pool,
    ):
        waiting = pool.submit(client.post, "/openai/v1/completions", json=stalled, headers={"x-request-timeout-s": "3"})
        wait_until(
            lambda: 'completions_in_flight_requests{model="smollm2-135m-instruct"} 2.0' in client.get("/metrics").text,
            limit_s=10,
            what="both stalled prompts are in flight",
        )
        response = post(strict_stack, GOOD)
        check_error(response, ErrorCode.QUEUE_FULL)
        assert 0 < int(response.headers["retry-after"]) <= 120
        assert waiting.result(timeout=30).status_code == 504
    wait_until(lambda: post(strict_stack, GOOD).status_code == 200, limit_s=10, what="there is room again")


def test_an_engine_failure_is_a_500_without_internal_details(strict_stack: RunningStack) -> None:
    response = post(strict_stack, {**GOOD, "prompt": [7, 7]})
    check_error(response, ErrorCode.INTERNAL_ERROR)
    assert "own words" not in response.text


def test_an_engine_failure_within_a_stream_is_an_error_event(strict_stack: RunningStack) -> None:
    response = post(strict_stack, {**GOOD, "prompt": [7, 8], "max_tokens": 9, "stream": True})
    assert response.status_code == 200
    *_, error, done, _rest = response.text.split("\n\n")
    assert done == "data: [DONE]"
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "internal_error"
    assert "own words" not in response.text


def test_a_stalled_engine_ends_at_the_deadline(strict_stack: RunningStack) -> None:
    response = post(strict_stack, {**GOOD, "prompt": [9]}, headers={"x-request-timeout-s": "0.5"})
    check_error(response, ErrorCode.DEADLINE_EXCEEDED)
