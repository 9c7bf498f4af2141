"""The OpenAPI document against the API page, the routes, the error table, its former version and random requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi.routing import iter_route_contexts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from frontend.api.openapi import DocumentedApi
from frontend.app import build_app
from frontend.backends.fake import CHAT_FORMAT
from frontend.backends.generator import OnChunk
from frontend.dependencies import build_dependencies
from frontend.settings import FrontendSettings
from llm_pipeline.protocol.capabilities import CAPABILITIES
from llm_pipeline.protocol.errors import ERRORS
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk
from llm_pipeline.protocol.model_info import ModelInfo

MODEL = "tiny"


class OneWordGenerator:
    """Completes every prompt with one word."""

    is_progressing = True

    async def generate(self, parameters: CompletionParameters, on_chunk: OnChunk) -> None:
        ids = (7,) if parameters.return_token_ids else None
        on_chunk(TextChunk(" word", 1, ids, 3, FinishReason.LENGTH))

    async def cancel(self, key: str) -> None:
        return

    async def get_model_info(self) -> ModelInfo:
        return ModelInfo(64, 1000, 16, False, CAPABILITIES["cpu"], CHAT_FORMAT)

    async def is_ready(self) -> bool:
        return True

    async def close(self) -> None:
        return


def make_app(**settings: Any) -> DocumentedApi:
    values: dict[str, Any] = {"model_name": MODEL, "auth": "off", "allowed_hosts": ("*",), **settings}
    dependencies = build_dependencies(FrontendSettings(**values), OneWordGenerator())
    dependencies.models.first.readiness.is_ready = True
    return build_app(dependencies)


DOCUMENT = make_app(auth="on", api_key="sk-of-the-document").openapi_at("http://test")
SCHEMAS = DOCUMENT["components"]["schemas"]
COMPLETIONS = DOCUMENT["paths"]["/openai/v1/completions"]["post"]
OPERATIONS = [f"{method.upper()} {path}" for path, operations in DOCUMENT["paths"].items() for method in operations]
# Written by hand before FastAPI generated the document: clients may rely on all of it.
FORMER_DOCUMENT = Path(__file__).parents[1] / "data" / "openapi_before.json"
TEXTS = {"summary", "description", "title", "version"}  # may be reworded, but not left out

# The API page's body table: type, and range where it gives one. `stop` and `prompt` take more forms than it shows.
PAGE_FIELDS: dict[str, dict[str, Any]] = {
    "model": {"type": "string"},
    "prompt": {"type": "string"},
    "include_stop_str_in_output": {"type": "boolean"},
    "max_completion_tokens": {"type": "integer", "format": "int64"},
    "max_tokens": {"type": "integer", "format": "int64"},
    "min_p": {"type": "number", "format": "double", "minimum": 0, "maximum": 1},
    "return_tokens_as_token_ids": {"type": "boolean"},
    "seed": {"type": "integer", "format": "int64"},
    "skip_special_tokens": {"type": "boolean"},
    "stop": {"type": "array"},
    "stream": {"type": "boolean"},
    "stream_options": {"$ref": "#/components/schemas/StreamOptions"},
    "temperature": {"type": "number", "format": "double", "minimum": 0, "maximum": 2},
    "top_k": {"type": "integer", "format": "int64"},
    "top_p": {"type": "number", "format": "double", "maximum": 1},
}
PAGE_RESPONSE = {"choices", "created", "model", "object", "$schema", "usage"}


@pytest.fixture(scope="module")
def app() -> DocumentedApi:
    return make_app()


@pytest.mark.parametrize("name", PAGE_FIELDS)
def test_request_fields_are_those_of_the_page(name: str) -> None:
    field = SCHEMAS["CompletionRequest"]["properties"][name]
    forms = field.get("anyOf", [field])
    expected = PAGE_FIELDS[name]
    assert any(expected.items() <= form.items() for form in forms), forms


def test_required_fields_are_those_of_the_page() -> None:
    assert SCHEMAS["CompletionRequest"]["required"] == ["model", "prompt"]


@pytest.mark.parametrize("name", sorted(set(PAGE_FIELDS) - {"model", "prompt"}))
def test_optional_fields_may_be_null(name: str) -> None:
    assert {"type": "null"} in SCHEMAS["CompletionRequest"]["properties"][name]["anyOf"]


def test_response_fields_are_those_of_the_page() -> None:
    assert set(SCHEMAS["Completion"]["properties"]) >= PAGE_RESPONSE
    assert {"finish_reason", "index", "text"} <= set(SCHEMAS["CompletionChoice"]["properties"])
    assert set(SCHEMAS["Usage"]["required"]) == {"completion_tokens", "prompt_tokens", "total_tokens"}


def test_the_example_of_the_page_is_valid() -> None:
    example = {
        "model": "<string>",
        "prompt": "<string>",
        "include_stop_str_in_output": True,
        "max_completion_tokens": 123,
        "max_tokens": 123,
        "min_p": 0.5,
        "return_tokens_as_token_ids": True,
        "seed": 123,
        "skip_special_tokens": True,
        "stop": ["<string>"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 1,
        "top_k": 123,
        "top_p": 0,
    }
    _validator("CompletionRequest").validate(example)


def test_our_own_examples_are_valid() -> None:
    request = COMPLETIONS["requestBody"]["content"]["application/json"]["example"]
    answer = COMPLETIONS["responses"]["200"]["content"]["application/json"]["example"]
    _validator("CompletionRequest").validate(request)
    _validator("Completion").validate(answer)


def test_every_status_of_the_error_table_is_documented() -> None:
    statuses = {str(kind.status) for kind in ERRORS.values()}
    assert set(COMPLETIONS["responses"]) == {"200", *statuses}


def test_every_route_is_documented(app: DocumentedApi) -> None:
    routes = {
        f"{method} {route.path_format}" for route in iter_route_contexts(app.routes) for method in route.methods or ()
    }
    assert sorted(OPERATIONS) == sorted(route for route in routes if not route.startswith("HEAD "))


def test_nothing_of_the_former_document_is_missing() -> None:
    former = json.loads(FORMER_DOCUMENT.read_text())
    assert list(_missing(former, DOCUMENT)) == []


def _missing(former: Any, current: Any, location: str = "") -> Iterator[str]:
    """Locations in the former document that have no equal or extended counterpart in the current one."""
    if isinstance(former, dict) and isinstance(current, dict):
        if "$ref" in current and "$ref" not in former:
            current = SCHEMAS[current["$ref"].rpartition("/")[2]]
        for name, value in former.items():
            inner = f"{location}/{name}"
            if name not in current or (name in TEXTS and isinstance(value, str) and not current[name]):
                yield inner
            elif not (name in TEXTS and isinstance(value, str)):
                yield from _missing(value, current[name], inner)
    elif isinstance(former, list) and isinstance(current, list):
        for index, item in enumerate(former):
            if all(any(_missing(item, candidate)) for candidate in current):
                yield f"{location}/{index}"
    elif former != current:
        yield location


def test_operation_ids_differ() -> None:
    ids = [operation["operationId"] for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)


def test_readiness_of_one_model_is_documented() -> None:
    for path, operations in DOCUMENT["paths"].items():
        if "health" in path:
            names = {parameter["name"] for parameter in operations["get"]["parameters"]}
            assert ("model" in names) == ("404" in operations["get"]["responses"]) == (not path.endswith("/live")), path


def test_completions_need_a_key() -> None:
    assert DOCUMENT["components"]["securitySchemes"]["bearer"] == {"type": "http", "scheme": "bearer"}
    assert DOCUMENT["security"] == [{"bearer": []}]
    assert "security" not in COMPLETIONS


def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": SCHEMAS}})


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.parametrize("label", OPERATIONS)
def test_random_requests_get_documented_responses(app: DocumentedApi, label: str) -> None:
    """Valid and invalid requests. Schemathesis's own plugin does not support this version of pytest yet."""
    operation = schemathesis.openapi.from_asgi("/openai/openapi.json", app).find_operation_by_label(label)
    assert operation is not None
    modes = [operation.as_strategy(generation_mode=mode) for mode in list(GenerationMode)]

    @settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(modes))
    def run(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    run()
