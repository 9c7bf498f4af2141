"""GET of the OpenAPI document, of the same document as a page, and of the JSON Schemas of bodies."""

from __future__ import annotations

import html
import json
from functools import lru_cache

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from frontend.api import route_paths as paths
from frontend.api.docs_page import CONTENT_SECURITY_POLICY, docs_page
from frontend.api.openapi import PUBLIC, READ_METHODS, DocumentedApi, error_responses
from frontend.api.schema_documents import DOCUMENTS, schema_document
from frontend.dependencies import InjectedRecord
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

router = APIRouter()

_BASE_URL = "http://base-url.invalid"
"""Replaced in the rendered documents by the client's URL: rendering takes milliseconds, and needs no key."""


class JsonSchemaResponse(JSONResponse):
    """A JSON Schema."""

    media_type = "application/schema+json"


@router.api_route(
    paths.OPENAPI,
    name="get",
    methods=READ_METHODS,
    summary="OpenAPI document",
    response_description="This document",
    response_class=JSONResponse,
    responses=error_responses(405),
    openapi_extra=PUBLIC,
)
async def get_openapi(request: Request, record: InjectedRecord) -> Response:
    """This document."""
    return Response(_openapi(request.app).replace(_BASE_URL, _in_json(record.base_url)), media_type="application/json")


@router.api_route(
    paths.DOCS,
    name="get",
    methods=READ_METHODS,
    summary="API reference",
    response_description="The API reference, as a page",
    response_class=HTMLResponse,
    responses=error_responses(405),
    openapi_extra=PUBLIC,
)
async def get_docs(request: Request, record: InjectedRecord) -> HTMLResponse:
    """The OpenAPI document as a page without scripts or external resources."""
    headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Referrer-Policy": "no-referrer"}
    page = _docs_page(request.app).replace(_BASE_URL, html.escape(record.base_url))
    return HTMLResponse(page, headers=headers)


@router.api_route(
    paths.SCHEMAS + "{name}.json",
    name="get",
    methods=READ_METHODS,
    summary="JSON Schema of a body",
    response_description="A JSON Schema (2020-12)",
    response_class=JsonSchemaResponse,
    responses=error_responses(404, 405),
    openapi_extra=PUBLIC,
)
async def get_schema(name: str, record: InjectedRecord) -> Response:
    """The schema that the `$schema` property of a response refers to."""
    if name not in DOCUMENTS:
        raise PipelineError(ErrorCode.NOT_FOUND, f"Unknown schema. Available: {', '.join(DOCUMENTS)}.")
    schema = _schema(name).replace(_BASE_URL, _in_json(record.base_url))
    return Response(schema, media_type=JsonSchemaResponse.media_type)


@lru_cache(maxsize=8)
def _openapi(app: DocumentedApi) -> str:
    return json.dumps(app.openapi_at(_BASE_URL), ensure_ascii=False, separators=(",", ":"))


@lru_cache(maxsize=8)
def _docs_page(app: DocumentedApi) -> str:
    return docs_page(app.openapi_at(_BASE_URL))


@lru_cache(maxsize=len(DOCUMENTS))
def _schema(name: str) -> str:
    document = schema_document(name, f"{_BASE_URL}{paths.SCHEMAS}{name}.json")
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _in_json(base_url: str) -> str:
    """Returns the URL as it stands inside a JSON string."""
    return json.dumps(base_url, ensure_ascii=False)[1:-1]
