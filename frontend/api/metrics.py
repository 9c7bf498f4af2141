"""GET /metrics: the metrics of all workers, for Prometheus."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from frontend.api import route_paths as paths
from frontend.api.openapi import READ_METHODS, error_responses
from frontend.dependencies import InjectedDependencies

router = APIRouter()

_Accept = Annotated[str, Header(include_in_schema=False)]  # OpenAPI reserves the name: responses list the media types


@router.api_route(
    paths.METRICS,
    name="get",
    methods=READ_METHODS,
    summary="Metrics for Prometheus",
    response_description="Metrics in the exposition format that the Accept header selects",
    response_class=PlainTextResponse,
    responses=error_responses(401, 405),
    openapi_extra={"security": [{"bearer": []}, {}]},  # METRICS_NEEDS_KEY decides
)
async def get_metrics(dependencies: InjectedDependencies, accept: _Accept = "") -> Response:
    """Sums the workers of a front end of several processes."""
    encode, content_type = choose_encoder(accept)
    return Response(encode(dependencies.metrics_registry()), headers={"Content-Type": content_type})
