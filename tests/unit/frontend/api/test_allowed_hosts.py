"""Which names in a Host header a server answers to, and which proxies may change its links."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.app import KEY, in_process, real_server
from tests.support.keys import bearer

OWN = ("localhost", "localhost:9000", "LOCALHOST", "localhost.", "127.0.0.1:9000", "[::1]", "[::1]:9000")
OTHER = (
    "evil.example",
    "evil.example:9000",
    "localhost.evil.example",
    "127.0.0.1.nip.io",
    "10.0.0.1",
    "",
    "[::2]",
    "::",
)


@pytest.mark.parametrize("host", OWN)
async def test_loopback_server_answers_to_its_own_names(host: str) -> None:
    async with in_process() as app:
        assert (await app.client.get("/v1/models", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/", "/docs", "/metrics", "/openai/openapi.json", "/nothing"])
@pytest.mark.parametrize("host", OTHER)
async def test_loopback_server_refuses_other_names(host: str, path: str) -> None:
    """They come from a page whose name was made to resolve to this machine (DNS rebinding)."""
    async with in_process(api_key=None, auth="off") as app:
        response = await app.client.get(path, headers={"host": host})
        assert response.status_code == 421
        body = response.json()
        assert body["error"]["code"] == "host_not_allowed"
        assert body["errors"][0]["location"] == "header.host"
        assert "evil" not in response.text + response.headers["link"]


async def test_refused_completion_does_not_run() -> None:
    async with in_process(api_key=None, auth="off") as app:
        body = {"model": "tiny", "prompt": "Hi"}
        response = await app.client.post("/v1/completions", json=body, headers={"host": "evil.example"})
        assert response.status_code == 421
        assert app.generator.requests == []


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/openai/health"])
async def test_health_checks_may_use_any_name(path: str) -> None:
    async with in_process() as app:
        assert (await app.client.get(path, headers={"host": "10.1.2.3:9000"})).status_code == 200


@pytest.mark.parametrize(
    ("values", "host", "status"),
    [
        ({"host": "0.0.0.0"}, "anything.example", 200),
        ({"host": "0.0.0.0", "allowed_hosts": "api.example.com, other"}, "api.example.com:443", 200),
        ({"host": "0.0.0.0", "allowed_hosts": "api.example.com, other"}, "OTHER", 200),
        ({"host": "0.0.0.0", "allowed_hosts": "api.example.com"}, "localhost", 421),
        (
            {"host": "0.0.0.0", "allowed_hosts": "a.example", "public_url": "https://b.example/x"},
            "b.example",
            200,
        ),
        ({"public_url": "https://api.example.com"}, "api.example.com", 200),
        ({"public_url": "https://api.example.com"}, "localhost:9000", 200),
        ({"public_url": "https://api.example.com"}, "other.example.com", 421),
        ({"host": "127.0.0.2"}, "127.0.0.2:9000", 200),
        ({"host": "::1", "allowed_hosts": "[::1]"}, "[::1]:9000", 200),
        ({"allowed_hosts": "*"}, "anything.example", 200),
    ],
)
async def test_allowed_hosts(values: dict[str, Any], host: str, status: int) -> None:
    async with in_process(**values) as app:
        assert (await app.client.get("/v1/models", headers={"host": host})).status_code == status


@pytest.mark.parametrize(
    ("proxies", "scheme"), [("", "http"), ("127.0.0.1", "https"), ("127.0.0.0/8", "https"), ("10.0.0.1", "http")]
)
async def test_forwarded_scheme_is_believed_from_trusted_proxies_alone(proxies: str, scheme: str) -> None:
    async with real_server(trusted_proxies=proxies) as app:
        headers = {**bearer(KEY), "x-forwarded-proto": "https", "x-forwarded-host": "evil.example"}
        url = (await app.client.get("/v1/models", headers=headers)).json()["$schema"]
        assert url == f"{scheme}://{app.client.base_url.netloc.decode()}/openai/schemas/ModelList.json"
