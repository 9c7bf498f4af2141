"""The playground, the docs and the links of a server behind a real nginx that serves it below /llm/."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from launcher.ports import free_ports
from tests.support.browser import OpenPage
from tests.support.front_end_process import KEY, MODEL, Address, running_front_end
from tests.support.nginx import running_nginx

# As in docs/deployment.md.
LOCATION = """
location /llm/ {{
    proxy_pass {server}/;
    proxy_http_version 1.1;
    proxy_buffering off;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-Prefix /llm;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-For $remote_addr;
}}
"""


@pytest.fixture(scope="module")
def behind_nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    folder = tmp_path_factory.mktemp("nginx")
    with (
        running_front_end(folder, TRUSTED_PROXIES="127.0.0.1") as server,
        running_nginx(folder, LOCATION.format(server=server.base_url)) as proxy,
    ):
        yield Address(f"{proxy.base_url}/llm")


def test_playground_completes_and_shows_code_for_its_own_address(behind_nginx: Address, open_page: OpenPage) -> None:
    playground = open_page(behind_nginx)
    playground.set("max_tokens", 3)
    playground.run()
    assert playground.text() == " Paris, the"
    assert f"{behind_nginx.base_url}/openai/v1/completions" in playground.code("curl")
    assert f"{behind_nginx.base_url}/openai/v1" in playground.code("python")


def test_docs_are_reached_from_the_playground_and_link_to_the_document(
    behind_nginx: Address, open_page: OpenPage
) -> None:
    page = open_page(behind_nginx, key=None).page
    page.locator('nav a[href="docs"]').click()
    page.wait_for_url(f"{behind_nginx.base_url}/docs")
    expect(page.locator("h1")).to_contain_text("triton-completions")
    with page.expect_response(re.compile("openapi.json")) as response:
        page.locator('a[href="openai/openapi.json"]').first.click()
    assert response.value.url == f"{behind_nginx.base_url}/openai/openapi.json"
    assert response.value.status == 200
    assert response.value.json()["servers"] == [{"url": behind_nginx.base_url}]


def test_links_in_responses_work_through_the_proxy(behind_nginx: Address) -> None:
    with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, trust_env=False) as client:
        url = f"{behind_nginx.base_url}/v1/completions"
        completion = client.post(url, json={"model": MODEL, "prompt": "Hi"}).json()
        error = client.post(url, json={"model": MODEL}).json()
        for body in (completion, error):
            assert body["$schema"].startswith(f"{behind_nginx.base_url}/openai/schemas/")
            assert client.get(body["$schema"]).json()["$id"] == body["$schema"]


def test_public_url_with_a_path_needs_no_header(tmp_path: Path, open_page: OpenPage) -> None:
    (port,) = free_ports(1)
    location = LOCATION.replace("proxy_set_header X-", "# proxy_set_header X-")
    with running_nginx(tmp_path, location.format(server=f"http://127.0.0.1:{port}")) as proxy:
        address = Address(f"{proxy.base_url}/llm")
        with running_front_end(tmp_path, PORT=str(port), PUBLIC_URL=address.base_url):
            playground = open_page(address)
            playground.run()
            assert playground.text().startswith(" Paris")
            schema = httpx.get(f"{address.base_url}/nothing", trust_env=False).json()["$schema"]
            assert schema == f"{address.base_url}/openai/schemas/Error.json"
