"""The completions API as this program needs it: an answer, whole or streamed, the models, and what went wrong."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

_DONE = "[DONE]"
# Silence that long in a stream means that nobody is there: servers send comments while they wait for a token. Of a
# whole answer nothing comes before it is made, which may take as long as the server allows.
_SILENCE_LIMIT_S = 120.0
_ANSWER_LIMIT_S = 3600.0
_CONNECT_LIMIT_S = 10.0


class CompletionError(Exception):
    """The server refused or failed; the message is its own."""


class UnreachableError(Exception):
    """Nobody answered, or not as HTTP."""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask. `base_url` ends in /v1; no key is sent when there is none."""

    base_url: str
    key: str | None

    def first_model(self) -> str:
        """The first name of /models. CompletionError, UnreachableError."""
        with self._client() as client, _translated():
            found = _json(client.get("models"))
        try:
            return str(found["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise CompletionError("The server lists no model; name one with --model.") from None

    def complete(self, body: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The chunks of a stream, or the one whole answer. Closing the iterator ends the request.

        CompletionError, UnreachableError.
        """
        limit_s = _SILENCE_LIMIT_S if body.get("stream") else _ANSWER_LIMIT_S
        with (
            self._client(limit_s) as client,
            _translated(),
            client.stream("POST", "completions", json=dict(body)) as answer,
        ):
            if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                answer.read()
                yield _with_choices(_json(answer))
                return
            yield from _events(answer.iter_lines())

    def _client(self, silence_limit_s: float = _SILENCE_LIMIT_S) -> httpx.Client:
        if self.key is not None and not self.key.isascii():  # no header can carry it
            raise CompletionError("The API key holds characters that no key has.")
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        timeout = httpx.Timeout(silence_limit_s, connect=_CONNECT_LIMIT_S)
        return httpx.Client(base_url=self.base_url.rstrip("/") + "/", headers=headers, timeout=timeout)


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == _DONE:
            return
        event = _event(data)
        if event.get("error"):
            raise CompletionError(_message(event) or "The server reported an error without a message.")
        yield _with_choices(event)
    raise CompletionError("The stream broke off before its end.")


def _event(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise CompletionError("The server sent an event that is no JSON object, not as this API does.")
    return event


def _with_choices(answer: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(answer.get("choices"), list):
        raise CompletionError("The server answered without choices, not as this API does.")
    return answer


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        body = None
    if answer.is_success and isinstance(body, dict):
        return body
    said = _message(body) or f"The server answered {answer.status_code} {answer.reason_phrase}, not as this API does."
    wait_s = answer.headers.get("retry-after")
    raise CompletionError(said if wait_s is None else f"{said} Try again in {wait_s} s.")


def _message(body: Any) -> str | None:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message) if message else None


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise UnreachableError(str(error) or type(error).__name__) from error
