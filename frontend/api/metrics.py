"""GET /metrics: the metrics of all workers, for Prometheus. GET /metrics/engine: five series for endpoint pickers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from frontend.api import route_paths as paths
from frontend.api.openapi import READ_METHODS, error_responses
from frontend.dependencies import InjectedDependencies
from frontend.observability.engine_numbers import PickerPage

router = APIRouter()
_TEXT = "text/plain; version=0.0.4; charset=utf-8"

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


@router.api_route(
    paths.ENGINE_METRICS,
    name="getEngine",
    methods=READ_METHODS,
    summary="Load of the engines for endpoint pickers",
    response_description="Five series in Prometheus' text format: requests, and use and size of the KV cache",
    response_class=PlainTextResponse,
    responses=error_responses(401, 405),
    openapi_extra={"security": [{}, {"bearer": []}]},  # a key only with METRICS_NEEDS_KEY=on
)
async def get_engine_metrics(dependencies: InjectedDependencies) -> Response:
    """The newest numbers that decode has reported: at most 100 ms old while requests run, and 6 s when idle."""
    return engine_metrics_response(PickerPage(dependencies.metrics.engines))


def engine_metrics_response(page: PickerPage) -> Response:
    """The response that RequestContextMiddleware sends without the router: pickers scrape 20 times a second."""
    return Response(page.text(), headers={"Content-Type": _TEXT})
