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
async def test_every_file_is_served_without_a_key(running: Running, name: str) -> None:
    answer = await running.client.get(url(name), headers={"authorization": ""})
    assert answer.status_code == 200
    assert answer.content == (FOLDER / name).read_bytes()
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert answer.headers["content-type"].startswith(kind[name.rpartition(".")[2]])
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert KEY not in answer.text


@pytest.mark.parametrize("name", NAMES)
async def test_a_browser_that_has_the_file_is_told_so(running: Running, name: str) -> None:
    first = await running.client.get(url(name))
    assert first.headers["cache-control"] == "no-cache"
    for tag in (first.headers["etag"], f'"other", W/{first.headers["etag"]}'):
        again = await running.client.get(url(name), headers={"if-none-match": tag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert (await running.client.get(url(name), headers={"if-none-match": '"other"'})).status_code == 200


async def test_the_policy_lets_nothing_in_and_nothing_out(running: Running) -> None:
    policy = (await running.client.get("/")).headers["content-security-policy"]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert {directives[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert {directives[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert directives["require-trusted-types-for"] == "'script'"


@pytest.mark.parametrize("name", NAMES)
def test_files_refer_to_each_other_only(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")  # the name of SVG, fetched by nobody
    found = re.findall(r'(?:src|href)="playground/([^"]+)"', text) + re.findall(r'from "\./([^"]+)"', text)
    assert set(found) <= set(ASSETS)


def test_the_page_holds_no_script_and_no_style_of_its_own() -> None:
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<style|style=|\son\w+=|<script(?![^>]* src=)", page) == []


@pytest.mark.parametrize("name", [name for name in ASSETS if name.endswith(".js")])
def test_no_script_reads_text_as_markup(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert (
        re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|localStorage", text)
        == []
    )


@pytest.mark.parametrize(
    "path", ["/playground/", "/playground/none.js", "/playground/index.html", "/playground/../app.py"]
)
async def test_nothing_else_is_there(running: Running, path: str) -> None:
    answer = await running.client.get(path, headers={"authorization": ""})
    assert answer.status_code in {401, 404}  # 401: outside of the playground's paths
