"""The playground as static files: headers, caching, and no external resources."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from tests.support.app import KEY, Running

FOLDER = files("frontend") / "playground"
NAMES = sorted(item.name for item in FOLDER.iterdir())
ASSETS = [name for name in NAMES if name != "index.html"]


def url(name: str) -> str:
    return "/" if name == "index.html" else f"/playground/{name}"


@pytest.mark.parametrize("name", NAMES)
async def test_every_file_is_public(running: Running, name: str) -> None:
    response = await running.client.get(url(name), headers={"authorization": ""})
    assert response.status_code == 200
    assert response.content == (FOLDER / name).read_bytes()
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert response.headers["content-type"].startswith(kind[name.rpartition(".")[2]])
    assert response.headers["x-content-type-options"] == "nosniff"
    assert KEY not in response.text


@pytest.mark.parametrize("name", NAMES)
async def test_current_etag_gets_304(running: Running, name: str) -> None:
    first = await running.client.get(url(name))
    assert first.headers["cache-control"] == "no-cache"
    for tag in (first.headers["etag"], f'"other", W/{first.headers["etag"]}'):
        again = await running.client.get(url(name), headers={"if-none-match": tag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert (await running.client.get(url(name), headers={"if-none-match": '"other"'})).status_code == 200


async def test_content_security_policy_allows_this_server_only(running: Running) -> None:
    policy = (await running.client.get("/")).headers["content-security-policy"]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert {directives[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert {directives[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert directives["require-trusted-types-for"] == "'script'"


@pytest.mark.parametrize("name", NAMES)
def test_files_load_no_external_resources(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")  # the name of SVG, never fetched
    found = re.findall(r'(?:src|href)="playground/([^"]+)"', text) + re.findall(r'from "\./([^"]+)"', text)
    assert set(found) <= set(ASSETS)


def test_page_has_no_inline_script_or_style() -> None:
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<style|style=|\son\w+=|<script(?![^>]* src=)", page) == []


@pytest.mark.parametrize("name", [name for name in ASSETS if name.endswith(".js")])
def test_scripts_never_parse_text_as_markup(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert (
        re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|localStorage", text)
        == []
    )


@pytest.mark.parametrize(
    "path", ["/playground/", "/playground/none.js", "/playground/index.html", "/playground/../app.py"]
)
async def test_other_paths_are_not_served(running: Running, path: str) -> None:
    response = await running.client.get(path, headers={"authorization": ""})
    assert response.status_code in {401, 404}  # 401: outside of the playground's paths
