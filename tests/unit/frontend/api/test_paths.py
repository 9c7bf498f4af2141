"""Paths that do not exist name the one that was probably meant; HEAD and OPTIONS work on every path that does."""

from __future__ import annotations

import pytest

from tests.support.app import Running, in_process, real_server
from tests.support.raw_http import connect

COMPLETIONS, OPENAI_COMPLETIONS = "/v1/completions", "/openai/v1/completions"
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("//completions", COMPLETIONS),
        ("/completions", COMPLETIONS),
        ("/completions/", COMPLETIONS),
        ("/v1/completions/", COMPLETIONS),
        ("//v1//completions", COMPLETIONS),
        ("/v1/v1/completions", COMPLETIONS),
        ("/V1/Completions", COMPLETIONS),
        ("/v1/completion", COMPLETIONS),
        ("/completion", COMPLETIONS),
        ("/openai/completions", OPENAI_COMPLETIONS),
        ("/openai/v1/v1/completions", OPENAI_COMPLETIONS),
        ("/openai/deployments/tiny/completions", OPENAI_COMPLETIONS),
        ("/v1/engines/tiny/completions", COMPLETIONS),
        ("/api/v1/completions", COMPLETIONS),
        ("/llm/v1/completions", COMPLETIONS),
        ("/generate", COMPLETIONS),
        ("/chat/completions", CHAT),
        ("/v1/chat", CHAT),
        ("/openai/deployments/tiny/chat/completions", "/openai/v1/chat/completions"),
        ("/api/chat", CHAT),
        ("/models", "/v1/models"),
        ("/openai/models", "/openai/v1/models"),
        ("/v1/v1/models/tiny", "/v1/models/{model}"),
        ("/healthz", "/health/ready"),
        ("/v1/health", "/health/ready"),
        ("/metrics/", "/metrics"),
        ("/redoc", "/docs"),
        ("/openapi.json", "/openai/openapi.json"),
        ("/playground", "/"),
    ],
)
async def test_path_that_was_probably_meant_is_named(running: Running, path: str, meant: str) -> None:
    request = running.client.build_request("POST", "http://localhost", json={"model": "tiny", "prompt": "Hi"})
    request.url = request.url.copy_with(raw_path=path.encode())
    response = await running.client.send(request)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"
    assert response.json()["detail"] == f"This path does not exist. Did you mean {meant}?"


@pytest.mark.parametrize(
    ("path", "api"),
    [
        ("/v1/responses", "the Responses API"),
        ("/openai/v1/responses", "the Responses API"),
        ("/v1/messages", "the Messages API"),
        ("/v1/embeddings", "embeddings"),
        ("/tokenize", "tokenization"),
    ],
)
async def test_apis_that_this_server_does_not_have_are_named(running: Running, path: str, api: str) -> None:
    detail = (await running.client.post(path, json={})).json()["detail"]
    root = "/openai" if "openai" in path else ""
    places = f"Send a prompt to {root}{COMPLETIONS} or messages to {root}{CHAT}."
    assert detail == f"This server does completions and chat, not {api}. {places}"


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/openai", "/v1/secret-word/x"])
async def test_other_paths_refer_to_the_document(running: Running, path: str) -> None:
    detail = (await running.client.get(path)).json()["detail"]
    assert detail == "This path does not exist. See /openai/openapi.json."


async def test_unknown_paths_reveal_nothing_without_a_key(running: Running) -> None:
    running.client.headers.clear()
    assert (await running.client.post("/completions", json={})).status_code == 401


def served_paths(app: Running) -> dict[str, set[str]]:
    """Every path in the OpenAPI document, with an example of its parameter, and its methods."""
    examples = {"{model}": "tiny", "{model_id}": "tiny", "{name}.json": "Error.json", "{name}": "main.js"}
    paths: dict[str, set[str]] = {}
    for path, operations in app.app.openapi()["paths"].items():
        for parameter, example in examples.items():
            path = path.replace(parameter, example)
        paths[path] = {method.upper() for method in operations} | ({"HEAD"} if "get" in operations else set())
    return paths


async def test_head_is_get_without_a_body_on_every_path() -> None:
    async with in_process() as app:
        paths = served_paths(app)
        assert "{" not in "".join(paths)
        assert len(paths) > 10
        for path, methods in paths.items():
            head = await app.client.head(path)
            if "GET" in methods:
                get = await app.client.get(path)
                assert (head.status_code, head.headers["content-type"]) == (200, get.headers["content-type"]), path
            else:
                assert (head.status_code, head.headers["allow"]) == (405, "POST"), path


async def test_head_has_no_body_on_the_wire() -> None:
    async with real_server() as app:
        for path in ["/", "/health/live", "/v1/completions", "/nothing", "/docs"]:
            async with connect(app) as connection:
                connection.write(b"HEAD %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode())
                head, _, body = (await connection.until_closed()).partition(b"\r\n\r\n")
                assert (head[:9], body) == (b"HTTP/1.1 ", b""), path


async def test_options_lists_the_methods_of_every_path() -> None:
    async with in_process() as app:
        for path, methods in served_paths(app).items():
            response = await app.client.options(path)
            assert (response.status_code, response.content) == (204, b""), path
            allowed = {name.strip() for name in response.headers["allow"].split(",")}
            assert allowed == methods | {"OPTIONS"}, path


async def test_options_of_the_whole_server_is_answered() -> None:
    async with real_server() as app, connect(app) as connection:
        connection.write(b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await connection.until_closed()).startswith(b"HTTP/1.1 204 ")


# --- Path prefixes ---


@pytest.mark.parametrize(
    ("trusted", "prefix", "expected"),
    [
        ("127.0.0.1", "/llm", "/llm"),
        ("127.0.0.1", "/llm/", "/llm"),
        ("127.0.0.1", "/a/b-c.d~e", "/a/b-c.d~e"),
        ("127.0.0.1", "/", ""),
        ("127.0.0.1", "llm", ""),
        ("127.0.0.1", "//evil.example", ""),
        ("127.0.0.1", "/a/../b", ""),
        ("127.0.0.1", '/"><script>', ""),
        ("127.0.0.1", "/" + "a" * 1000, ""),
        ("10.0.0.0/8", "/llm", ""),
        ("", "/llm", ""),
    ],
)
async def test_prefix_of_a_trusted_proxy_is_in_links(trusted: str, prefix: str, expected: str) -> None:
    async with real_server(trusted_proxies=trusted) as app:
        headers = {"x-forwarded-prefix": prefix, "x-forwarded-for": "192.0.2.1", "host": "localhost"}
        completion = await app.client.post("/v1/completions", json={"model": "tiny", "prompt": "Hi"}, headers=headers)
        error = await app.client.get("/nothing", headers=headers)
        openapi = await app.client.get("/openai/openapi.json", headers=headers)
    base = f"http://localhost{expected}"
    assert completion.json()["$schema"] == f"{base}/openai/schemas/Completion.json"
    assert error.json()["$schema"] == f"{base}/openai/schemas/Error.json"
    assert openapi.json()["servers"] == [{"url": base}]


async def test_public_url_with_a_path_is_in_links() -> None:
    async with real_server(public_url="https://example.com/llm/", trusted_proxies="*") as app:
        headers = {"host": "localhost", "x-forwarded-prefix": "/other"}
        body = (await app.client.get("/nothing", headers=headers)).json()
        async with connect(app) as connection:
            connection.write(b"\x00\r\n\r\n")
            below_the_app = await connection.response()
    assert body["$schema"] == "https://example.com/llm/openai/schemas/Error.json"
    assert b"https://example.com/llm/openai/schemas/Error.json" in below_the_app.body


async def test_links_of_pages_are_relative(running: Running) -> None:
    """So that they work behind any prefix, also of a proxy that sends no header."""
    for path in ("/", "/docs"):
        page = (await running.client.get(path)).text
        assert 'href="' in page
        assert not [part for part in page.split("href=") + page.split("src=") if part.startswith('"/')]
