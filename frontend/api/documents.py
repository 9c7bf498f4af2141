"""GET of the OpenAPI document, of the same document as a page, and of the JSON Schemas of bodies."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from frontend.api import route_paths as paths
from frontend.api.docs_page import CONTENT_SECURITY_POLICY, docs_page
from frontend.api.openapi import PUBLIC, READ_METHODS, DocumentedApi, error_responses
from frontend.api.schema_documents import DOCUMENTS, schema_document
from frontend.dependencies import InjectedRecord
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

router = APIRouter()


class JsonSchemaResponse(JSONResponse):
    """A JSON Schema."""

    media_type = "application/schema+json"


@router.api_route(
    paths.OPENAPI,
    name="get",
    methods=READ_METHODS,
    summary="OpenAPI document",
    response_description="This document",
    responses=error_responses(405),
    openapi_extra=PUBLIC,
)
async def get_openapi(request: Request, record: InjectedRecord) -> JSONResponse:
    """This document."""
    app: DocumentedApi = request.app
    return JSONResponse(app.openapi_at(record.base_url))


@router.api_route(
    paths.DOCS,
    name="get",
    methods=READ_METHODS,
    summary="API reference",
    response_description="This document as a page",
    response_class=HTMLResponse,
    responses=error_responses(405),
    openapi_extra=PUBLIC,
)
async def get_docs(request: Request, record: InjectedRecord) -> HTMLResponse:
    """This document as a page without scripts or external resources."""
    app: DocumentedApi = request.app
    headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Referrer-Policy": "no-referrer"}
    return HTMLResponse(docs_page(app.openapi_at(record.base_url)), headers=headers)


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
    return JsonSchemaResponse(schema_document(name, record.schema_url(name)))
