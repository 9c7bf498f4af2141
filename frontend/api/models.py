"""GET /openai/v1/models and /openai/v1/models/{model}: the names that can be asked for."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from frontend.api import route_paths as paths
from frontend.dependencies import Dependencies
from frontend.models.model_card import model_card
from frontend.observability.request_record import RequestRecord, record_of


def routes(services: Dependencies) -> list[Route]:
    """Both paths and their aliases. A name may hold slashes (org/model)."""
    found = []
    for path in paths.MODELS:
        found.append(Route(path, partial(_list, services)))
        found.append(Route(path + "/{model:path}", partial(_describe, services)))
    return found


async def _list(services: Dependencies, request: Request) -> Response:
    record = record_of(request.scope)
    names = services.models.names_open_to(record.key)
    cards = await asyncio.gather(
        *(model_card(name, model, services.settings, services.started) for name, model in names)
    )
    body = {"object": "list", "data": cards}
    return _described(body, "ModelList", record)


async def _describe(services: Dependencies, request: Request) -> Response:
    record = record_of(request.scope)
    name = request.path_params["model"]
    return _described(
        await model_card(name, services.model_for(name, record.key), services.settings, services.started),
        "Model",
        record,
    )


def _described(body: dict[str, Any], schema: str, record: RequestRecord) -> Response:
    url = record.schema_url(schema)
    headers = {"Link": f'<{url}>; rel="describedBy"'}
    return Response(orjson.dumps({**body, "$schema": url}), headers=headers, media_type="application/json")
