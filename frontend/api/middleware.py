"""Wraps every request: gives it an id and a record, authenticates it, turns exceptions into error responses, logs it.

Responses get `X-Content-Type-Options: nosniff`, and `Cache-Control: no-store` unless they set one of their own.
"""

from __future__ import annotations

from collections.abc import Awaitable

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontend.api.allowed_hosts import AllowedHosts
from frontend.api.completions import SERVED
from frontend.api.metrics import engine_metrics_response
from frontend.api.route_paths import ENGINE_METRICS, is_probe, is_public, is_requested_by_address, operation_of
from frontend.keys.store import ApiKeyStore
from frontend.observability.engine_numbers import PickerPage
from frontend.observability.metrics import Metrics
from frontend.observability.request_log import log_request
from frontend.observability.request_record import CLIENT_CLOSED_REQUEST, RequestRecord, begin_record, own_url
from frontend.response.cors import CorsPolicy
from frontend.response.errors import as_pipeline_error, error_response
from frontend.response.event_writer import store_send
from frontend.settings import FrontendSettings
from llm_pipeline.protocol.errors import PipelineError

log = structlog.get_logger(__name__)

_NO_SNIFF = (b"x-content-type-options", b"nosniff")
_NO_STORE = (b"cache-control", b"no-store")


class RequestContextMiddleware:
    """The outermost layer of the app. Plain ASGI, because every chunk of a stream passes through it.

    Completions go to their endpoint directly: the layers below, for exceptions and routing, would take longer than all
    of our own work for the request before it is sent to Triton, and have nothing to add.
    """

    def __init__(self, app: ASGIApp, *, settings: FrontendSettings, keys: ApiKeyStore, metrics: Metrics) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self._public_url = str(settings.public_url).rstrip("/") if settings.public_url else None
        self._metrics_needs_key = settings.protects_metrics
        self._engine_metrics_need_key = settings.protects_engine_metrics
        self._picker_page = PickerPage(metrics.engines)
        self._hosts = AllowedHosts(settings)
        self._cors = CorsPolicy(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = begin_record(scope, self._public_url)
        record.operation = operation_of(record.path)
        store_send(scope, send)
        try:
            await self._respond(scope, receive, self._with_headers(send, record), record)
        finally:
            is_completion = record.operation is not None and record.method != "OPTIONS"
            if is_completion:
                self._metrics.count_request(record)
            log_request(record, is_completion=is_completion, is_probe=is_probe(record.path))

    def _require_host(self, scope: Scope, host: bytes, record: RequestRecord) -> None:
        try:
            self._hosts.require(host)
        except PipelineError:
            record.base_url = self._public_url or own_url(scope)  # links must not repeat that name
            raise

    async def _respond(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        try:
            headers = dict(scope["headers"])
            if not is_requested_by_address(record.path):
                self._require_host(scope, headers.get(b"host", b""), record)
            if record.method == "OPTIONS" and (preflight := self._cors.preflight_headers(headers)) is not None:
                await send({"type": "http.response.start", "status": 204, "headers": [*preflight]})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            if not is_public(
                record.path,
                metrics_needs_key=self._metrics_needs_key,
                engine_metrics_need_key=self._engine_metrics_need_key,
            ):
                record.key = self._keys.authenticate(headers.get(b"authorization"))
            await self._app_for(record)(scope, receive, send)
        except ClientDisconnect:
            record.outcome = CLIENT_CLOSED_REQUEST
        except Exception as error:
            failure = as_pipeline_error(error)
            if record.status:
                log.error("response_aborted", request_id=record.request_id, exc_info=error)
                record.outcome = failure.kind.status
                raise  # part of the response was sent: only closing the connection shows the client that it failed
            await error_response(failure, record)(scope, receive, send)

    def _app_for(self, record: RequestRecord) -> ASGIApp:
        """Completions, and the page that pickers scrape 20 times a second, need no router."""
        if record.operation is not None and record.method == "POST":
            return SERVED[record.operation]
        if record.path == ENGINE_METRICS and record.method == "GET":
            return engine_metrics_response(self._picker_page)
        return self._app

    def _with_headers(self, send: Send, record: RequestRecord) -> Send:
        own = ((b"x-request-id", record.request_id.encode()), _NO_SNIFF, *self._cors.response_headers(record.origin))

        def send_with_headers(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = [*message.get("headers", ()), *own]
                for name, _ in headers:
                    if name == b"cache-control":
                        break
                else:
                    headers.append(_NO_STORE)
                message = {**message, "headers": headers}
            return send(message)

        return send_with_headers
