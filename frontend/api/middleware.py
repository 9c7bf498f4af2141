"""Wraps every request: assigns its id and record, authenticates it, turns exceptions into error responses, logs it."""

from __future__ import annotations

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontend.api.auth import ApiKeyStore
from frontend.api.route_paths import is_completions, is_probe, is_public
from frontend.observability.metrics import Metrics
from frontend.observability.request_log import log_request
from frontend.observability.request_record import CLIENT_CLOSED_REQUEST, RequestRecord, begin_record
from frontend.response.errors import as_pipeline_error, error_response
from frontend.response.event_writer import store_send
from frontend.settings import FrontendSettings

log = structlog.get_logger(__name__)


class RequestContextMiddleware:
    """The outermost layer of the app. Plain ASGI, because every chunk of a stream passes through it."""

    def __init__(self, app: ASGIApp, *, settings: FrontendSettings, keys: ApiKeyStore, metrics: Metrics) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self._public_url = str(settings.public_url).rstrip("/") if settings.public_url else None
        self._metrics_needs_key = settings.metrics_needs_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = begin_record(scope, self._public_url)
        store_send(scope, send)
        try:
            await self._respond(scope, receive, _with_request_id(send, record), record)
        finally:
            is_completion = is_completions(record.path)
            if is_completion:
                self._metrics.count_request(record)
            log_request(record, is_completion=is_completion, is_probe=is_probe(record.path))

    async def _respond(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        try:
            if not is_public(record.path, metrics_needs_key=self._metrics_needs_key):
                record.key = self._keys.authenticate(dict(scope["headers"]).get(b"authorization"))
            await self._app(scope, receive, send)
        except ClientDisconnect:
            record.outcome = CLIENT_CLOSED_REQUEST
        except Exception as error:
            failure = as_pipeline_error(error)
            if record.status:
                log.error("response_aborted", request_id=record.request_id, exc_info=error)
                record.outcome = failure.kind.status
                raise  # part of the response was sent: only closing the connection shows the client that it failed
            await error_response(failure, record)(scope, receive, send)


def _with_request_id(send: Send, record: RequestRecord) -> Send:
    header = (b"x-request-id", record.request_id.encode())

    async def send_with_request_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), header]}
        await send(message)

    return send_with_request_id
