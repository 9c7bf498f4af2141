"""GET /openai/v1/models and /openai/v1/models/{model}: the names that can be asked for."""

from __future__ import annotations

from functools import partial
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from frontend import paths
from frontend.request_record import RequestRecord, record_of
from frontend.services import Services
from llm_pipeline.description import ModelDescription

_OWNER = "triton-completions"


def routes(services: Services) -> list[Route]:
    """Both paths and their aliases. A name may hold slashes (org/model)."""
    found = []
    for path in paths.MODELS:
        found.append(Route(path, partial(_list, services)))
        found.append(Route(path + "/{model:path}", partial(_describe, services)))
    return found


async def _list(services: Services, request: Request) -> Response:
    record = record_of(request.scope)
    own = services.settings.model_name
    names = [name for name in services.settings.model_names if record.key is None or record.key.may_use({name, own})]
    card = await services.model_card.read()
    body = {"object": "list", "data": [_model(services, name, card) for name in names]}
    return _described(body, "ModelList", record)


async def _describe(services: Services, request: Request) -> Response:
    record = record_of(request.scope)
    name = request.path_params["model"]
    services.check_model(name, record.key)
    return _described(_model(services, name, await services.model_card.read()), "Model", record)


def _model(services: Services, name: str, card: ModelDescription | None) -> dict[str, Any]:
    root = services.settings.model_name
    known = {} if card is None else card.as_document()
    return {"id": name, "object": "model", "created": services.started, "owned_by": _OWNER, "root": root, **known}


def _described(body: dict[str, Any], schema: str, record: RequestRecord) -> Response:
    url = record.schema_url(schema)
    headers = {"Link": f'<{url}>; rel="describedBy"'}
    return Response(orjson.dumps({**body, "$schema": url}), headers=headers, media_type="application/json")
