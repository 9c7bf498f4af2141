"""The OpenAPI document, written by hand: bodies are parsed and answers are built by hand, so nothing can derive it.

tests/unit/frontend hold it against the router, the error table and the contract's list of fields.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from frontend.api import route_paths as paths
from frontend.api.schema_documents import openapi_schemas
from llm_pipeline.protocol.errors import ERRORS

_MODEL_PATH = "/{model}"
_EVERYWHERE = (401, 405)
_COMPLETION_STATUSES = (400, 401, 403, 404, 405, 413, 415, 429, 500, 503, 504)
_TITLES = {kind.status: kind.title for kind in ERRORS.values()}

_HEADERS: dict[str, Any] = {
    "x-request-id": {"description": "The request's id: the client's own when it sent one", "schema": {"type": "string"}}
}
_LINK = {"description": "The JSON Schema of the body, as describedBy", "schema": {"type": "string"}}
_ERROR_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}}},
    405: {"Allow": {"schema": {"type": "string"}}},
    429: {"Retry-After": {"description": "Seconds, 120 at most", "schema": {"type": "integer"}}},
    503: {"Retry-After": {"description": "Seconds, 120 at most", "schema": {"type": "integer"}}},
}
_REQUEST_ID = {
    "name": "x-request-id",
    "in": "header",
    "description": "Up to 128 visible ASCII characters to find the request by; anything else is replaced",
    "schema": {"type": "string"},
}
_TIMEOUT = {
    "name": "x-request-timeout-s",
    "in": "header",
    "description": "Seconds that this request may take; more than the server allows counts as what it allows",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
_READY_MODEL = {
    "name": "model",
    "in": "query",
    "description": "Of this model alone; without it, of any",
    "schema": {"type": "string"},
}
_EXAMPLE_REQUEST = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
_EXAMPLE_HEAD = {"id": "cmpl-0a1b2c", "object": "text_completion", "created": 1760000000}
_EXAMPLE_USAGE = {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}
_EXAMPLE_STREAM = (
    'data: {{"id":"cmpl-0a1b2c","object":"text_completion","created":1760000000,"model":"{model}",'
    '"choices":[{{"index":0,"text":" Paris","logprobs":null,"finish_reason":"length"}}]}}\n\ndata: [DONE]\n\n'
)


def openapi_document(base_url: str, model: str) -> dict[str, Any]:
    """The document as seen from `base_url`; `model` is the name that examples ask for."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "triton-completions",
            "version": version("triton-completions"),
            "description": "Text completions for OpenAI clients, served by NVIDIA Triton.",
        },
        "servers": [{"url": base_url}],
        "security": [{"bearer": []}],
        "paths": _paths(base_url, model),
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": openapi_schemas(),
        },
    }


def _paths(base_url: str, model: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in paths.COMPLETIONS:
        found[path] = {"post": _create_completion(path, base_url, model)}
    for path in paths.MODELS:
        found[path] = {"get": _get("List the models", "listModels", path, "ModelList", (401, 405))}
        one = _get("Describe a model", "getModel", path, "Model", (401, 403, 404, 405))
        one["parameters"].append({"name": "model", "in": "path", "required": True, "schema": {"type": "string"}})
        found[path + _MODEL_PATH] = {"get": one}
    for root in paths.HEALTH_ROOTS:
        for end in ("", "/live", "/ready"):
            found[root + end] = {"get": _health(root + end)}
    found[paths.METRICS] = {"get": _plain(paths.METRICS, "Metrics for Prometheus", "text/plain", (401, 405))}
    found[paths.OPENAPI] = {"get": _plain(paths.OPENAPI, "This document", "application/json", (405,))}
    found[paths.DOCS] = {"get": _plain(paths.DOCS, "This document for humans", "text/html", (405,))}
    found[paths.PLAYGROUND] = {"get": _kept(_plain(paths.PLAYGROUND, "The playground", "text/html", (405,)))}
    file = _kept(_plain(paths.PLAYGROUND_FILES, "A file of the playground", "text/javascript", (404, 405)))
    content = file["responses"]["200"]["content"]
    content |= {media: {"schema": {"type": "string"}} for media in ("text/css", "image/svg+xml")}
    file["parameters"].append({"name": "name", "in": "path", "required": True, "schema": {"type": "string"}})
    found[paths.PLAYGROUND_FILES + "{name}"] = {"get": file}
    schema = _plain(paths.SCHEMAS, "JSON Schema of a body", "application/schema+json", (404, 405))
    schema["parameters"].append({"name": "name", "in": "path", "required": True, "schema": {"type": "string"}})
    found[paths.SCHEMAS + "{name}.json"] = {"get": schema}
    return found


def _create_completion(path: str, base_url: str, model: str) -> dict[str, Any]:
    schema_url = base_url + paths.SCHEMAS + "Completion.json"
    choice = {"index": 0, "text": " Paris", "logprobs": None, "finish_reason": "length"}
    example = {**_EXAMPLE_HEAD, "model": model, "choices": [choice], "usage": _EXAMPLE_USAGE, "$schema": schema_url}
    answer = {
        "application/json": {"schema": _ref("Completion"), "example": example},
        "text/event-stream": {"schema": {"type": "string"}, "example": _EXAMPLE_STREAM.format(model=model)},
    }
    return {
        "summary": "Create completion",
        "description": "Completes one prompt or several: as one JSON object, or with `stream: true` as events.",
        "operationId": _operation_id("createCompletion", path),
        "parameters": [_REQUEST_ID, _TIMEOUT],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": _ref("CompletionRequest"),
                    "example": {"model": model, **_EXAMPLE_REQUEST},
                }
            },
        },
        "responses": {
            "200": {
                "description": "JSON when stream=false, server-sent events when stream=true",
                "headers": {**_HEADERS, "Link": _LINK},
                "content": answer,
            },
            **_errors(_COMPLETION_STATUSES),
        },
    }


def _get(summary: str, operation_id: str, path: str, schema: str, errors: tuple[int, ...]) -> dict[str, Any]:
    return {
        "summary": summary,
        "operationId": _operation_id(operation_id, path),
        "parameters": [_REQUEST_ID],
        "responses": {
            "200": {
                "description": summary,
                "headers": {**_HEADERS, "Link": _LINK},
                "content": {"application/json": {"schema": _ref(schema)}},
            },
            **_errors(errors),
        },
    }


def _plain(path: str, summary: str, media_type: str, errors: tuple[int, ...]) -> dict[str, Any]:
    schema = {} if media_type.endswith("json") else {"type": "string"}
    return {
        "summary": summary,
        "operationId": _operation_id("get", path),
        "security": [{"bearer": []}, {}] if path == paths.METRICS else [],
        "parameters": [_REQUEST_ID],
        "responses": {
            "200": {"description": summary, "headers": _HEADERS, "content": {media_type: {"schema": schema}}},
            **_errors(errors),
        },
    }


def _kept(operation: dict[str, Any]) -> dict[str, Any]:
    """The operation, for something that a browser may keep and ask about."""
    etag = {"ETag": {"schema": {"type": "string"}}}
    operation["parameters"].append({"name": "If-None-Match", "in": "header", "schema": {"type": "string"}})
    operation["responses"]["200"]["headers"] = {**_HEADERS, **etag}
    operation["responses"]["304"] = {"description": "What the browser has is current", "headers": {**_HEADERS, **etag}}
    return operation


def _health(path: str) -> dict[str, Any]:
    is_live = path.endswith("/live")
    summary = "Whether the process lives" if is_live else "Whether completions are accepted"
    operation = _plain(path, summary, "application/json", (405,) if is_live else (404, 405, 503))
    if not is_live:
        operation["parameters"].append(_READY_MODEL)
    status = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    operation["responses"]["200"]["content"]["application/json"]["schema"] = status
    return operation


def _operation_id(name: str, path: str) -> str:
    """Unique: aliases of a path have operations of their own."""
    return f"{name}{''.join(part.title() for part in path.replace('.', '/').split('/'))}"


def _errors(statuses: tuple[int, ...]) -> dict[str, Any]:
    content = {media: {"schema": _ref("Error")} for media in ("application/json", "application/problem+json")}
    return {
        str(status): {
            "description": _TITLES[status],
            "headers": {**_HEADERS, "Link": _LINK, **_ERROR_HEADERS.get(status, {})},
            "content": content,
        }
        for status in statuses
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
