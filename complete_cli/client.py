"""Client of the completions and chat APIs: whole and streamed responses, the model list, and errors."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from httpx_sse import EventSource

_DONE = "[DONE]"
_EVENT_STREAM = "text/event-stream"


class CompletionError(Exception):
    """The server rejected or failed the request. The message is the server's."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        """`status` is that of an HTTP error."""
        super().__init__(message)
        self.status = status


class ServerUnreachableError(Exception):
    """The server did not respond, or not with HTTP."""


@dataclass(frozen=True)
class ClientTimeouts:
    """Limits in seconds.

    A stream may be silent for `silence_s` only, because servers send comments while they wait for a token. A whole
    response is sent once it is complete, so it may take `response_s`.
    """

    connect_s: float = 10.0
    silence_s: float = 120.0
    response_s: float = 3600.0
    documents_s: float = 5.0


@dataclass(frozen=True)
class ServerAddress:
    """An API to send requests to. `base_url` ends in /v1; without a key, no Authorization header is sent."""

    base_url: str
    key: str | None
    timeouts: ClientTimeouts = field(default_factory=ClientTimeouts)

    def first_model(self) -> str:
        """Returns the first name of /models. Raises CompletionError if the list is empty, or UnreachableError."""
        with self._client(self.timeouts.silence_s) as client, _translated_errors():
            models = _json(client.get("models"))
        try:
            return str(models["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise CompletionError("The server lists no models. Name one with --model.") from None

    def request_fields(self, schema: str) -> list[str] | None:
        """Returns the names of the request fields that the server documents in `schema`; None if it documents none.

        Our server ignores other fields. The document is an aid: any failure to read it is the same as none.
        """
        url = httpx.URL(self.base_url.rstrip("/") + "/").join("../openapi.json")
        try:
            with self._client(self.timeouts.documents_s) as client:
                document = client.get(url).json()
            return list(document["components"]["schemas"][schema]["properties"])
        except (httpx.TransportError, httpx.InvalidURL, ValueError, KeyError, TypeError):
            return None

    def complete(self, body: Mapping[str, Any], *, path: str = "completions") -> Generator[dict[str, Any], None, None]:
        """Yields the chunks of a stream, or the one whole response. Closing the generator cancels the request.

        Raises CompletionError or UnreachableError.
        """
        timeout_s = self.timeouts.silence_s if body.get("stream") else self.timeouts.response_s
        with (
            self._client(timeout_s) as client,
            _translated_errors(),
            client.stream("POST", path, json=dict(body)) as response,
        ):
            if response.headers.get("content-type", "").startswith(_EVENT_STREAM):
                yield from _chunks(EventSource(response))
            else:
                response.read()
                yield _with_choices(_json(response))

    def _client(self, timeout_s: float) -> httpx.Client:
        if self.key is not None and not self.key.isascii():  # no header can carry it
            raise CompletionError("The API key contains characters other than ASCII.")
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        timeout = httpx.Timeout(timeout_s, connect=self.timeouts.connect_s)
        return httpx.Client(base_url=self.base_url.rstrip("/") + "/", headers=headers, timeout=timeout)


def _chunks(events: EventSource) -> Iterator[dict[str, Any]]:
    for event in events.iter_sse():
        if event.data == _DONE:
            return
        chunk = _parse(event.data)
        if chunk.get("error"):
            raise CompletionError(_error_message(chunk) or "The server reported an error without a message.")
        yield _with_choices(chunk)
    raise CompletionError("The stream ended before its last event.")


def _parse(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError:
        chunk = None
    if not isinstance(chunk, dict):
        raise CompletionError("The server sent an event that is not a JSON object. This is not a completions API.")
    return chunk


def _with_choices(body: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(body.get("choices"), list):
        raise CompletionError("The server's response has no choices. This is not a completions API.")
    return body


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if response.is_success and isinstance(body, dict):
        return body
    status = f"{response.status_code} {response.reason_phrase}"
    message = _error_message(body) or f"The server responded {status}. This is not a completions API."
    retry_after_s = response.headers.get("retry-after")
    retry = "" if retry_after_s is None else f" Retry in {retry_after_s} s."
    raise CompletionError(message + retry, status=response.status_code)


def _error_message(body: Any) -> str | None:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message) if message else None


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except (httpx.TransportError, httpx.InvalidURL) as error:
        cause = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
        raise ServerUnreachableError(cause) from error
