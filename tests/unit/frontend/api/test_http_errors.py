"""Error responses: status, body and headers, and the request id on each of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from frontend.api.schema_documents import schema_document
from frontend.dependencies import get_dependencies
from frontend.response.errors import error_body
from llm_pipeline.protocol.errors import ERRORS, ErrorCode, PipelineError
from tests.support.app import MODEL, Running, in_process

BODY = {"model": MODEL, "prompt": "Hi"}


def check_body(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    assert response.status_code == body["status"] == status
    assert set(body) == {"error", "title", "status", "detail", "errors", "$schema"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == code
    assert body["error"]["message"] == body["detail"]
    assert response.headers["link"] == f'<{body["$schema"]}>; rel="describedBy"'
    assert response.headers["x-request-id"]
    Draft202012Validator(schema_document("Error", "http://test")).validate(body)
    return body


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_has_a_body(code: ErrorCode) -> None:
    body = error_body(PipelineError(code, "why"), "http://x/Error.json")
    Draft202012Validator(schema_document("Error", "http://test")).validate(body)
    assert body["status"] == ERRORS[code].status


async def test_unknown_path(running: Running) -> None:
    check_body(await running.client.get("/v1/nothing"), 404, "not_found")


async def test_trailing_slash_is_not_found(running: Running) -> None:
    check_body(await running.client.post("/v1/completions/", json=BODY), 404, "not_found")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "FOO"])
async def test_wrong_method(running: Running, method: str) -> None:
    response = await running.client.request(method, "/v1/completions")
    check_body(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


async def test_unknown_model(running: Running) -> None:
    body = check_body(await running.complete(model="other"), 404, "model_not_found")
    assert body["error"]["param"] == "model"


async def test_unknown_model_in_path(running: Running) -> None:
    check_body(await running.client.get("/v1/models/a/b"), 404, "model_not_found")


@pytest.mark.parametrize("accept", ["application/problem+json", "text/html, Application/Problem+JSON;q=0.5"])
async def test_problem_json_if_accepted(running: Running, accept: str) -> None:
    response = await running.client.get("/nothing", headers={"accept": accept})
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/problem+json;q=0"])
async def test_json_unless_problem_json_is_accepted(running: Running, accept: str) -> None:
    response = await running.client.get("/nothing", headers={"accept": accept})
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/problem+json"]
)
async def test_unsupported_content_type(running: Running, content_type: str) -> None:
    response = await running.client.post("/v1/completions", content=b"{}", headers={"content-type": content_type})
    check_body(response, 415, "unsupported_media_type")


async def test_body_without_a_type_needs_a_key() -> None:
    """A web page of any site can send one to a server on loopback, but it does not have the key."""
    async with in_process(api_key=None, auth="off") as app:
        response = await app.client.post("/v1/completions", content=json.dumps(BODY).encode())
        check_body(response, 415, "unsupported_media_type")
        assert response.json()["errors"][0]["location"] == "header.content-type"
        assert (await app.client.post("/v1/completions", json=BODY)).status_code == 200


@pytest.mark.parametrize("content_type", [None, "application/json", "Application/JSON; charset=utf-8"])
async def test_supported_content_type(running: Running, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    response = await running.client.post("/v1/completions", content=json.dumps(BODY).encode(), headers=headers)
    assert response.status_code == 200


async def test_compressed_body_is_rejected(running: Running) -> None:
    response = await running.client.post("/v1/completions", content=b"x", headers={"content-encoding": "gzip"})
    check_body(response, 415, "unsupported_media_type")


async def test_body_too_large_by_content_length() -> None:
    async with in_process(max_body_bytes=1024) as app:
        check_body(await app.complete(prompt="x" * 1024), 413, "request_too_large")


async def test_body_too_large_without_content_length() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100:
            sent += 1
            yield b"x" * 512

    async with in_process(max_body_bytes=1024) as app:
        response = await app.client.post("/v1/completions", content=endless())
        check_body(response, 413, "request_too_large")
    assert sent < 10


async def test_every_invalid_field_is_listed(running: Running) -> None:
    body = check_body(await running.complete(temperature=3, top_p=2), 400, "value_out_of_range")
    assert [detail["location"] for detail in body["errors"]] == ["body.temperature", "body.top_p"]


async def test_client_request_id_is_kept(running: Running) -> None:
    response = await running.client.get("/nothing", headers={"x-request-id": "a-1.~!"})
    assert response.headers["x-request-id"] == "a-1.~!"


@pytest.mark.parametrize("sent", [b"x" * 129, b"two words", b"caf\xe9", b""])
async def test_invalid_request_ids_are_replaced(running: Running, sent: bytes) -> None:
    response = await running.client.get("/health", headers={b"x-request-id": sent})
    assert len(response.headers["x-request-id"]) == 32


async def test_invalid_host_header_is_not_reflected(running: Running) -> None:
    response = await running.client.get("/nothing", headers={"host": 'a"><script>'})
    assert "script" not in response.text


async def test_invalid_host_header_is_not_reflected_where_every_host_is_allowed() -> None:
    async with in_process(allowed_hosts="*") as app:
        response = await app.client.get("/nothing", headers={"host": 'a"><script>'})
        assert response.status_code == 404
        assert "script" not in response.text


async def test_public_url_overrides_the_host_header() -> None:
    async with in_process(public_url="https://api.example.com/") as app:
        body = (await app.complete()).json()
    assert body["$schema"] == "https://api.example.com/openai/schemas/Completion.json"


READ_PATHS = (
    *("/health", "/health/live", "/metrics", "/openai/openapi.json", "/docs", "/openai/schemas/Error.json"),
    *("/v1/models", f"/v1/models/{MODEL}", "/", "/playground/main.js"),
)


@pytest.mark.parametrize("path", READ_PATHS)
async def test_head_is_supported_wherever_get_is(running: Running, path: str) -> None:
    assert (await running.client.head(path)).status_code == 200
    response = await running.client.post(path)
    check_body(response, 405, "method_not_allowed")
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}


async def test_unexpected_exception_is_a_500_without_details(running: Running) -> None:
    async def fail() -> None:
        raise RuntimeError("secret detail")

    running.app.dependency_overrides[get_dependencies] = fail
    response = await running.client.get("/v1/models")
    check_body(response, 500, "internal_error")
    assert "secret" not in response.text
    assert response.headers["x-should-retry"] == "false"
