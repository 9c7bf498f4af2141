"""Headers of every response: nothing is stored by caches, and no type is guessed."""

from __future__ import annotations

import pytest

from tests.support.app import Running, real_server


@pytest.mark.parametrize(
    ("method", "path", "fields"),
    [
        ("POST", "/v1/completions", {"model": "tiny", "prompt": "Hi"}),
        ("POST", "/v1/completions", {"model": "tiny", "prompt": "Hi", "stream": True}),
        ("POST", "/v1/completions", {"model": "other", "prompt": "Hi"}),
        ("GET", "/v1/models", None),
        ("GET", "/health/ready", None),
        ("GET", "/metrics", None),
        ("GET", "/docs", None),
        ("GET", "/openai/openapi.json", None),
        ("GET", "/nothing", None),
    ],
)
async def test_no_response_is_stored_or_guessed_at(running: Running, method: str, path: str, fields: object) -> None:
    response = await running.client.request(method, path, json=fields)
    names = [name.lower() for name, _ in response.headers.raw]
    assert "no-store" in response.headers["cache-control"].split(", ")
    assert response.headers["x-content-type-options"] == "nosniff"
    for name in (b"cache-control", b"x-content-type-options", b"x-request-id"):
        assert names.count(name) == 1


async def test_headers_of_unauthorized_requests(running: Running) -> None:
    response = await running.client.get("/v1/models", headers={"authorization": ""})
    assert (response.status_code, response.headers["cache-control"]) == (401, "no-store")


async def test_headers_reach_the_wire() -> None:
    async with real_server() as app:
        response = await app.complete(stream=True)
        assert response.headers["cache-control"] == "no-cache, no-store"
        assert response.headers["x-content-type-options"] == "nosniff"
