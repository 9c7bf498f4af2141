"""Completes the OpenAPI document that FastAPI generates from the routes.

FastAPI derives paths, parameters and responses. Added here is what it cannot see: the headers and API keys that the
middleware handles, and the schemas of completion bodies, which are parsed and built by hand for speed.
"""

from __future__ import annotations

import copy
import json
import warnings
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from frontend.api import route_paths as paths
from frontend.api.schema_documents import openapi_schemas
from llm_pipeline.protocol.errors import ERRORS

_TITLES = {kind.status: kind.title for kind in ERRORS.values()}
_VALIDATION_SCHEMAS = ("HTTPValidationError", "ValidationError")  # FastAPI's own, of a 422 that is never sent

_STRING = {"type": "string"}
_REQUEST_ID_PARAMETER = {
    "name": "x-request-id",
    "in": "header",
    "description": "An id for the request: up to 128 visible ASCII characters. Any other value is replaced.",
    "schema": _STRING,
}
_REQUEST_ID_HEADER = {
    "x-request-id": {"description": "The request's id: the client's own if it sent a valid one", "schema": _STRING}
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds, at most 120", "schema": {"type": "integer"}}}
_ERROR_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": _STRING}},
    405: {"Allow": {"schema": _STRING}},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}

LINK_HEADER: dict[str, Any] = {
    "Link": {"description": "URL of the JSON Schema of the body, with rel=describedBy", "schema": _STRING}
}
READ_METHODS = ["GET", "HEAD"]  # FastAPI does not add HEAD by itself
PUBLIC: dict[str, Any] = {"security": []}  # `openapi_extra` of a route that needs no API key


class DocumentedApi(FastAPI):
    """A FastAPI app with a complete OpenAPI document. Its examples request `example_model`.

    Without `requires_key`, the document declares no security: clients need not send a key.
    """

    def __init__(self, *, example_model: str, requires_key: bool = True, **options: Any) -> None:
        super().__init__(
            title="triton-completions",
            version=version("triton-completions"),
            description="Completions and chat for OpenAI clients, served by NVIDIA Triton.",
            generate_unique_id_function=operation_id,
            **options,
        )
        self._example_model = example_model
        self._requires_key = requires_key

    def openapi(self) -> dict[str, Any]:
        """The document without the parts that depend on the URL under which a client reaches this server."""
        if self.openapi_schema is None:
            with warnings.catch_warnings():
                # HEAD has the operation id of its GET, and is removed below.
                warnings.filterwarnings("ignore", message="Duplicate Operation ID")
                document = super().openapi()
            self.openapi_schema = _completed(document)
        return self.openapi_schema

    def openapi_at(self, base_url: str) -> dict[str, Any]:
        """The document for a client that reaches this server at `base_url` (without a slash at the end)."""
        document = {**copy.deepcopy(self.openapi()), "servers": [{"url": base_url}]}
        if not self._requires_key:
            document["security"] = []
        for path in paths.COMPLETIONS:
            _add_completion_examples(document["paths"][path]["post"], base_url, self._example_model)
        for path in paths.CHAT:
            _add_chat_examples(document["paths"][path]["post"], base_url, self._example_model)
        return document


def operation_id(route: APIRoute) -> str:
    """The route's name and its path, without parameters: aliases of a path are operations of their own."""
    fixed_part = route.path.partition("{")[0].replace(".", "/")
    return f"{route.name}{''.join(part.title() for part in fixed_part.split('/'))}"


def schema_ref(name: str) -> dict[str, str]:
    """A reference to one of the schemas in `schema_documents`."""
    return {"$ref": f"#/components/schemas/{name}"}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may fail with these HTTP statuses."""
    content = {media: {"schema": schema_ref("Error")} for media in ("application/json", "application/problem+json")}
    return {
        status: {
            "description": _TITLES[status],
            "headers": {**LINK_HEADER, **_ERROR_HEADERS.get(status, {})},
            "content": content,
        }
        for status in statuses
    }


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    for path, operations in document["paths"].items():
        operations.pop("head", None)
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if not paths.is_requested_by_address(path):
                responses = operation["responses"]
                responses.update({str(status): response for status, response in error_responses(421).items()})
            _add_request_id(operation)
    generated = document.get("components", {}).get("schemas", {})
    schemas = {name: schema for name, schema in generated.items() if name not in _VALIDATION_SCHEMAS}
    document["components"] = {
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        # FastAPI's generator leaves out nulls, and with them the default of most fields: ours take precedence.
        "schemas": {**schemas, **openapi_schemas()},
    }
    document["security"] = [{"bearer": []}]
    return document


def _add_request_id(operation: dict[str, Any]) -> None:
    operation.setdefault("parameters", []).insert(0, _REQUEST_ID_PARAMETER)
    for response in operation["responses"].values():
        response["headers"] = {**_REQUEST_ID_HEADER, **response.get("headers", {})}


def _add_completion_examples(operation: dict[str, Any], base_url: str, model: str) -> None:
    request = {"model": model, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    choice = {"index": 0, "text": " Paris", "logprobs": None, "finish_reason": "length"}
    head = {"id": "cmpl-0a1b2c", "object": "text_completion", "created": 1760000000, "model": model}
    answer = {
        **head,
        "choices": [choice],
        "usage": {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13},
        "$schema": f"{base_url}{paths.SCHEMAS}Completion.json",
    }
    _add_examples(operation, request, answer, [{**head, "choices": [choice]}])


def _add_chat_examples(operation: dict[str, Any], base_url: str, model: str) -> None:
    message = {"role": "user", "content": "What is the capital of France?"}
    request = {"model": model, "messages": [message], "max_completion_tokens": 8, "temperature": 0}
    head = {"id": "chatcmpl-0a1b2c", "object": "chat.completion", "created": 1760000000, "model": model}
    answered = {"role": "assistant", "content": "Paris.", "refusal": None}
    answer = {
        **head,
        "choices": [{"index": 0, "message": answered, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 14, "completion_tokens": 3, "total_tokens": 17},
        "$schema": f"{base_url}{paths.SCHEMAS}ChatCompletion.json",
    }
    deltas = [({**answered, "content": ""}, None), ({"content": "Paris."}, None), ({}, "stop")]
    events = [
        {
            **head,
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}],
        }
        for delta, reason in deltas
    ]
    _add_examples(operation, request, answer, events)


def _add_examples(
    operation: dict[str, Any], request: dict[str, Any], answer: dict[str, Any], events: list[dict[str, Any]]
) -> None:
    operation["requestBody"]["content"]["application/json"]["example"] = request
    content = operation["responses"]["200"]["content"]
    content["application/json"]["example"] = answer
    lines = [f"data: {json.dumps(event, separators=(',', ':'))}\n\n" for event in events]
    content["text/event-stream"]["example"] = "".join([*lines, "data: [DONE]\n\n"])
