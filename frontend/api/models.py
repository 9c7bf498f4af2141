"""GET /openai/v1/models and /openai/v1/models/{model}: the models that a client may request."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from frontend.api import route_paths as paths
from frontend.api.openapi import LINK_HEADER, READ_METHODS, error_responses
from frontend.api.schema_documents import Model, ModelList
from frontend.dependencies import InjectedDependencies, InjectedRecord
from frontend.models.model_card import model_card
from frontend.observability.request_record import RequestRecord

router = APIRouter()


async def list_models(dependencies: InjectedDependencies, record: InjectedRecord) -> Response:
    """Every name and alias that the API key of the request may use."""
    names = dependencies.models.names_open_to(record.key)
    settings, created = dependencies.settings, dependencies.started
    cards = await asyncio.gather(*(model_card(name, model, settings, created) for name, model in names))
    return _response({"object": "list", "data": cards}, "ModelList", record)


async def get_model(model: str, dependencies: InjectedDependencies, record: InjectedRecord) -> Response:
    """The context length, limits, defaults and capabilities of one model."""
    served = dependencies.model_for(model, record.key)
    card = await model_card(model, served, dependencies.settings, dependencies.started)
    return _response(card, "Model", record)


def _response(body: dict[str, Any], schema: str, record: RequestRecord) -> Response:
    url = record.schema_url(schema)
    headers = {"Link": f'<{url}>; rel="describedBy"'}
    return Response(orjson.dumps({**body, "$schema": url}), headers=headers, media_type="application/json")


for _path in paths.MODELS:
    router.add_api_route(
        _path,
        list_models,
        name="listModels",
        methods=READ_METHODS,
        summary="List the models",
        response_model=ModelList,
        response_description="The models",
        responses={200: {"headers": LINK_HEADER}, **error_responses(401, 405)},
    )
    router.add_api_route(
        _path + "/{model:path}",  # a name may contain slashes (org/model)
        get_model,
        name="getModel",
        methods=READ_METHODS,
        summary="Describe a model",
        response_model=Model,
        response_description="The model",
        responses={200: {"headers": LINK_HEADER}, **error_responses(401, 403, 404, 405)},
    )
