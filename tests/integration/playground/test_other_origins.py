"""Pages of other origins in a real Chromium: what CORS_ORIGINS allows, and that nothing else works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.support.front_end_process import KEY, MODEL, Address, running_front_end
from tests.support.http_server import LOOPBACK, QuietLog, serving
from tests.support.keys import write_keys

FETCH = """async ([url, options]) => {
  try {
    const response = await fetch(url, options);
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let text = "";
    for (let part = await reader.read(); !part.done; part = await reader.read()) text += decoder.decode(part.value);
    return {status: response.status, text, id: response.headers.get("x-request-id"),
            retry: response.headers.get("retry-after")};
  } catch (error) {
    return {failure: error.name};
  }
}"""


class PageHandler(QuietLog, BaseHTTPRequestHandler):
    """Serves one page."""

    def do_GET(self) -> None:
        page = b"<!doctype html><title>A page of another origin</title><link rel=icon href='data:,'>"
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)


@pytest.fixture
def origin() -> Iterator[str]:
    """A web server on another port: another origin."""
    with serving(ThreadingHTTPServer(LOOPBACK, PageHandler)) as address:
        yield address


@pytest.fixture
def page(browser: Browser, origin: str) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    page.goto(origin)
    yield page
    context.close()


def fetched(page: Page, server: Address, *, key: str = KEY, method: str = "POST", **fields: object) -> dict[str, Any]:
    """The outcome of a fetch by the page."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "x-stainless-lang": "js"}
    body = {"model": MODEL, "prompt": "Hi", "max_tokens": 3, **fields}
    options = {"method": method, "headers": headers, "body": json.dumps(body)}
    outcome: dict[str, Any] = page.evaluate(FETCH, [f"{server.base_url}/v1/completions", options])
    return outcome


def test_page_of_an_allowed_origin_completes_streams_and_reads_errors(page: Page, origin: str, tmp_path: Path) -> None:
    with running_front_end(tmp_path, CORS_ORIGINS=origin, MAX_BODY_BYTES="2048") as server:
        whole = fetched(page, server)
        assert (whole["status"], '" Paris, the"' in whole["text"]) == (200, True)
        assert whole["id"]
        stream = fetched(page, server, stream=True)
        assert (stream["status"], stream["text"].endswith("data: [DONE]\n\n")) == (200, True)
        statuses = [
            fetched(page, server, prompt="").get("status"),
            fetched(page, server, key="wrong").get("status"),
            fetched(page, server, model="none").get("status"),
            fetched(page, server, prompt="a" * 4000).get("status"),
            fetched(page, server, method="PUT").get("status"),
        ]
        # PUT is not among the methods that a preflight allows: the browser does not send it.
        assert statuses == [400, 401, 404, 413, None]


def test_page_reads_when_to_retry(page: Page, origin: str, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.json", {"name": "a", "requests_per_minute": 1})
    with running_front_end(tmp_path, CORS_ORIGINS=origin, API_KEYS_FILE=str(keys)) as server:
        outcomes = [fetched(page, server, key="a") for _ in range(2)]
    assert [outcome["status"] for outcome in outcomes] == [200, 429]
    assert int(outcomes[1]["retry"]) >= 1


def test_any_page_may_use_the_server_if_any_is_allowed(page: Page, tmp_path: Path) -> None:
    with running_front_end(tmp_path, CORS_ORIGINS="*") as server:
        assert fetched(page, server)["status"] == 200


@pytest.mark.parametrize("setting", ["", "http://127.0.0.1:1"])
def test_page_of_another_origin_can_neither_send_nor_read(page: Page, tmp_path: Path, setting: str) -> None:
    with running_front_end(tmp_path, CORS_ORIGINS=setting) as server:
        assert fetched(page, server) == {"failure": "TypeError"}
        simple = page.evaluate(FETCH, [f"{server.base_url}/health/live", {"method": "GET"}])
        assert simple == {"failure": "TypeError"}
