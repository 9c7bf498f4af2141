"""The models, schemas and documentation that the server publishes."""

from __future__ import annotations

import base64
import hashlib
import html
import re

import pytest
from jsonschema import Draft202012Validator

from frontend.api.schema_documents import DOCUMENTS
from tests.support.app import KEY, MODEL, Running, in_process


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_schema_documents_are_valid(running: Running, name: str) -> None:
    response = await running.client.get(f"/openai/schemas/{name}.json")
    schema = response.json()
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == str(response.url)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize(
    ("method", "path", "fields"),
    [
        ("POST", "/v1/completions", {"model": MODEL, "prompt": "Hi"}),
        ("POST", "/v1/completions", {"model": MODEL, "prompt": ["a", "b"], "return_tokens_as_token_ids": True}),
        ("POST", "/v1/completions", {"model": "other", "prompt": "Hi"}),
        ("POST", "/v1/completions", {}),
        ("GET", "/openai/v1/models", None),
        ("GET", f"/v1/models/{MODEL}", None),
        ("GET", "/health/nothing", None),
    ],
)
async def test_bodies_validate_against_the_schema_they_name(
    running: Running, method: str, path: str, fields: object
) -> None:
    body = (await running.client.request(method, path, json=fields)).json()
    schema = (await running.client.get(body["$schema"])).json()
    Draft202012Validator(schema).validate(body)


async def test_models_lists_aliases_with_their_root() -> None:
    async with in_process(model_aliases="a,org/b") as app:
        found = (await app.client.get("/v1/models")).json()["data"]
        assert [(model["id"], model["root"]) for model in found] == [(MODEL, MODEL), ("a", MODEL), ("org/b", MODEL)]
        assert (await app.client.get("/openai/v1/models/org/b")).json()["id"] == "org/b"


async def test_docs_page_loads_no_external_resources(running: Running) -> None:
    page = (await running.client.get("/docs", headers={"authorization": ""})).text
    assert "/openai/v1/completions" in page
    assert re.findall(r"(?:src|@import|<link)[^>]*", page) == []
    assert re.findall(r'href="([^"]*)"', page) == ["./", "#fields", "#operations", "openai/openapi.json"]
    assert all(f'id="{name}"' in page for name in ("fields", "operations"))


@pytest.mark.parametrize(
    ("field", "type_text"),
    [
        ("model", "string, required"),
        ("prompt", "string or list of strings or list of integers of at least 0 or list of lists of integers"),
        ("temperature", "number from 0 to 2"),
        ("n", "integer of at least 1"),
        ("seed", "integer"),
        ("stop", "string or list of strings"),
        ("stream", "boolean"),
        ("logit_bias", "object"),
    ],
)
async def test_docs_page_has_the_type_of_each_field(running: Running, field: str, type_text: str) -> None:
    page = (await running.client.get("/docs")).text
    assert re.findall(rf"<tr><td><code>{field}</code></td><td>([^<]*)", page)[0].startswith(type_text)


async def test_docs_page_has_a_request_to_paste_and_says_where_the_key_is(running: Running) -> None:
    page = html.unescape((await running.client.get("/docs")).text)
    assert f"curl {str(running.client.base_url).rstrip('/')}/openai/v1/completions \\\n" in page
    assert '-H "Authorization: Bearer $OPENAI_API_KEY"' in page
    assert ".run/api-key" in page


async def test_documents_of_a_server_without_authentication_ask_for_no_key() -> None:
    async with in_process(auth="off") as app:
        assert (await app.client.get("/openai/openapi.json")).json()["security"] == []
        page = (await app.client.get("/docs")).text
        assert "Requests need no API key." in page
        assert "Authorization" not in page.partition("<h2")[0]


async def test_docs_page_has_a_policy_that_allows_its_own_style_alone(running: Running) -> None:
    response = await running.client.get("/docs")
    directives = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert directives.pop("default-src") == "'none'"
    (style,) = re.findall(r"<style>(.*?)</style>", response.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert directives.pop("style-src") == f"'sha256-{digest}'"
    assert set(directives.values()) == {"'none'"}
    assert re.findall(r"<script|style=|\son\w+=", response.text) == []


async def test_public_documents_contain_no_api_key(running: Running) -> None:
    for path in ("/metrics", "/openai/openapi.json", "/docs", "/health", "/openai/schemas/Error.json"):
        assert KEY not in (await running.client.get(path)).text
