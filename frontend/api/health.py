"""GET /health and its variants: liveness and readiness probes. None of them waits for the engine."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel
from pydantic.json_schema import SkipJsonSchema

from frontend.api import route_paths as paths
from frontend.api.openapi import PUBLIC, READ_METHODS, error_responses
from frontend.dependencies import InjectedDependencies

router = APIRouter()

_ModelName = Annotated[
    str | SkipJsonSchema[None],
    Query(description="Reports on this model only. Without it, one ready model is enough."),
]


class LivenessStatus(BaseModel):
    """The process is running."""

    status: Literal["alive"]


class ReadinessStatus(BaseModel):
    """Completion requests are accepted."""

    status: Literal["ready"]


async def live() -> LivenessStatus:
    """Does not depend on Triton: restarting this process would not help a model that is down."""
    return LivenessStatus(status="alive")


async def ready(dependencies: InjectedDependencies, model: _ModelName = None) -> ReadinessStatus:
    """Ready if at least one model is, or with `?model=` if that one is."""
    dependencies.require_ready(None if model is None else dependencies.models.find(model))
    dependencies.workers.require_started()
    return ReadinessStatus(status="ready")


for _root in paths.HEALTH_ROOTS:
    for _path in (_root, f"{_root}/ready"):
        router.add_api_route(
            _path,
            ready,
            name="get",
            methods=READ_METHODS,
            summary="Readiness probe",
            response_description="Completions are accepted",
            responses=error_responses(404, 405, 503),
            openapi_extra=PUBLIC,
        )
    router.add_api_route(
        f"{_root}/live",
        live,
        name="get",
        methods=READ_METHODS,
        summary="Liveness probe",
        response_description="The process is running",
        responses=error_responses(405),
        openapi_extra=PUBLIC,
    )
