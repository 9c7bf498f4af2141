"""Pages of the origins in CORS_ORIGINS may use the API from a browser. Chromium itself is in integration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from frontend.backends.fake import FakeGenerator
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from tests.support.app import MODEL, in_process, make_settings, real_server
from tests.support.keys import bearer, write_keys
from tests.support.raw_http import connect

ORIGIN = "https://app.example.com"
OTHER = "https://evil.example"
ASKS = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-lang"}
ALLOW = "access-control-allow-origin"


@pytest.mark.parametrize("path", ["/v1/completions", "/openai/v1/completions", "/v1/models", "/health/ready", "/none"])
@pytest.mark.parametrize(("setting", "allowed"), [(ORIGIN, ORIGIN), (f"http://a, {ORIGIN}", ORIGIN), ("*", "*")])
async def test_preflight_needs_no_key(setting: str, allowed: str, path: str) -> None:
    async with in_process(cors_origins=setting) as app:
        app.client.headers.clear()
        response = await app.client.options(path, headers={"origin": ORIGIN, **ASKS})
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers[ALLOW] == allowed
    assert "POST" in response.headers["access-control-allow-methods"]
    listed = {name.strip().lower() for name in response.headers["access-control-allow-headers"].split(",")}
    assert {"authorization", "content-type", "*"} <= listed
    assert int(response.headers["access-control-max-age"]) > 0
    assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize("setting", ["", ORIGIN])
async def test_preflight_of_another_origin_is_refused_with_the_setting_to_change(setting: str) -> None:
    async with in_process(cors_origins=setting) as app:
        response = await app.client.options("/v1/completions", headers={"origin": OTHER, **ASKS})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "origin_not_allowed"
    assert "CORS_ORIGINS" in response.json()["detail"]
    assert ALLOW not in response.headers


async def test_preflights_are_not_counted_as_completions() -> None:
    async with in_process(cors_origins=ORIGIN) as app:
        await app.client.options("/v1/completions", headers={"origin": ORIGIN, **ASKS})
        assert await app.metric("completions_requests_total") == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_completions_and_streams_have_the_headers(stream: bool) -> None:
    async with in_process(cors_origins=ORIGIN) as app:
        app.client.headers["origin"] = ORIGIN
        response = await app.complete(stream=stream)
    assert (response.status_code, response.headers[ALLOW]) == (200, ORIGIN)
    exposed = response.headers["access-control-expose-headers"]
    assert {"x-request-id", "retry-after"} <= {name.strip() for name in exposed.split(",")}
    assert response.headers["vary"] == "Origin"


ERRORS: dict[str, tuple[int, dict[str, Any]]] = {
    "no key": (401, {"headers": {"authorization": ""}}),
    "unknown path": (404, {"path": "/nothing"}),
    "wrong method": (405, {"method": "PUT"}),
    "invalid field": (400, {"json": {"model": MODEL, "prompt": ""}}),
    "unknown model": (404, {"json": {"model": "none", "prompt": "Hi"}}),
    "too large": (413, {"content": b"a" * 5000}),
    "media type": (415, {"content": b"{}", "headers": {"content-type": "text/plain"}}),
    "engine": (429, {}),
}


@pytest.mark.parametrize("case", ERRORS)
async def test_errors_have_the_headers(case: str) -> None:
    status, request = ERRORS[case]
    full = PipelineError(ErrorCode.QUEUE_FULL, "The queue is full.", retry_after_s=1)
    generator = FakeGenerator(lambda _: [full])
    async with real_server(generator, cors_origins=ORIGIN, max_body_bytes=1024) as app:
        sent: dict[str, Any] = {
            "method": "POST",
            "path": "/v1/completions",
            "json": {"model": MODEL, "prompt": "Hi"},
            **request,
        }
        if "content" in sent:
            del sent["json"]
        headers = {"content-type": "application/json", "origin": ORIGIN, **sent.pop("headers", {})}
        response = await app.client.request(sent.pop("method"), sent.pop("path"), headers=headers, **sent)
    assert response.status_code == status
    assert response.headers[ALLOW] == ORIGIN


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nOrigin: %s\r\nX-A: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nOrigin: %s\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nOrigin: %s\r\nX-A: b", 408),
    ],
)
async def test_errors_below_the_app_have_the_headers(request_bytes: bytes, status: int) -> None:
    async with real_server(cors_origins=ORIGIN, head_timeout_s=0.3) as app, connect(app) as connection:
        connection.write(request_bytes % ORIGIN.encode())
        response = await connection.response()
    assert (response.status, response.headers[ALLOW]) == (status, ORIGIN)


async def test_rate_limit_of_a_key_has_the_headers(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.json", {"name": "a", "requests_per_minute": 1})
    async with in_process(api_keys_file=keys, cors_origins="*") as app:
        app.client.headers.update({**bearer("a"), "origin": ORIGIN})
        responses = [await app.complete() for _ in range(2)]
    assert [response.status_code for response in responses] == [200, 429]
    assert [response.headers[ALLOW] for response in responses] == ["*", "*"]


async def test_responses_to_other_origins_have_no_such_headers() -> None:
    async with in_process(cors_origins=ORIGIN) as app:
        response = await app.client.get("/v1/models", headers={"origin": OTHER})
        assert response.status_code == 200
        assert ALLOW not in response.headers
        assert response.headers["vary"] == "Origin"  # a cache must not give it to the other page
    async with in_process() as app:
        response = await app.client.get("/v1/models", headers={"origin": ORIGIN})
        assert ALLOW not in response.headers
        assert "vary" not in response.headers


async def test_preflight_for_another_host_name_is_refused() -> None:
    """A page whose name was made to resolve to this machine."""
    async with in_process(cors_origins="*") as app:
        headers = {"origin": ORIGIN, "host": "evil.example", **ASKS}
        assert (await app.client.options("/v1/completions", headers=headers)).status_code == 421


@pytest.mark.parametrize(
    ("sent", "origins"),
    [
        ("https://a.example", ("https://a.example",)),
        ("HTTPS://A.example:443, http://b:80", ("https://a.example", "http://b")),
        ("http://localhost:3000", ("http://localhost:3000",)),
        ("http://[::1]:5173", ("http://[::1]:5173",)),
        ("chrome-extension://abcdef, tauri://localhost", ("chrome-extension://abcdef", "tauri://localhost")),
        ("*", ("*",)),
        ("", ()),
    ],
)
def test_origins_are_read_as_browsers_send_them(sent: str, origins: tuple[str, ...]) -> None:
    assert make_settings(cors_origins=sent).cors_origins == origins


@pytest.mark.parametrize(
    "sent", ["a.example", "https://a.example/", "https://a.example/path", "null", "https://*.a.example", "https://u@a"]
)
def test_anything_but_an_origin_prevents_the_start(sent: str) -> None:
    with pytest.raises(ValidationError, match="is not an origin"):
        make_settings(cors_origins=sent)
