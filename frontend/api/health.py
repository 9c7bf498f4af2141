"""Health, metrics and documents: what operators and tools read. None of it waits for the engine."""

from __future__ import annotations

from functools import partial

import orjson
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from frontend.api import route_paths as paths
from frontend.api.docs_page import docs_page
from frontend.api.openapi import openapi_document
from frontend.api.schema_documents import DOCUMENTS, schema_document
from frontend.dependencies import Dependencies
from frontend.observability.request_record import record_of
from llm_pipeline.protocol.errors import ErrorCode, PipelineError


def routes(services: Dependencies) -> list[Route]:
    """All of them; GET and HEAD."""
    found = [
        Route(paths.METRICS, partial(_metrics, services)),
        Route(paths.OPENAPI, partial(_openapi, services)),
        Route(paths.DOCS, partial(_docs, services)),
        Route(paths.SCHEMAS + "{name}.json", _schema),
    ]
    for root in paths.HEALTH_ROOTS:
        found.append(Route(root, partial(_ready, services)))
        found.append(Route(root + "/ready", partial(_ready, services)))
        found.append(Route(root + "/live", _live))
    return found


async def _live(request: Request) -> Response:
    return Response(b'{"status":"alive"}', media_type="application/json")


async def _ready(services: Dependencies, request: Request) -> Response:
    """Of all models, or of the one that `?model=` names. One that is down leaves the others ready."""
    name = request.query_params.get("model")
    services.require_ready(None if name is None else services.models.find(name))
    services.workers.require_started()
    return Response(b'{"status":"ready"}', media_type="application/json")


async def _metrics(services: Dependencies, request: Request) -> Response:
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(services.metrics_registry()), headers={"Content-Type": content_type})


async def _openapi(services: Dependencies, request: Request) -> Response:
    document = openapi_document(record_of(request.scope).base_url, services.models.first.name)
    return Response(orjson.dumps(document), media_type="application/json")


async def _docs(services: Dependencies, request: Request) -> Response:
    return HTMLResponse(docs_page(openapi_document(record_of(request.scope).base_url, services.models.first.name)))


async def _schema(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in DOCUMENTS:
        raise PipelineError(ErrorCode.NOT_FOUND, f"There is no such schema; there are: {', '.join(DOCUMENTS)}.")
    document = schema_document(name, record_of(request.scope).schema_url(name))
    return Response(orjson.dumps(document), media_type="application/schema+json")
