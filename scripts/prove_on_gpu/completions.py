"""Completions of the running server, as a client of the API makes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from scripts.prove_on_gpu.outcome import StepFailedError
from scripts.prove_on_gpu.server import Server

PATH = "/v1/completions"


class RefusedError(Exception):
    """The server rejected the request: its status, and the field that it named."""

    def __init__(self, status: int, param: str | None, message: str) -> None:
        super().__init__(f"{status}, {param}: {message}")
        self.status = status
        self.param = param
        self.message = message


class Completions:
    """Completions of one model. Use it as a context manager."""

    def __init__(self, server: Server, timeout_s: float = 60) -> None:
        """`timeout_s` is for each read, and the server sends comments in between: streams end at the step's limit."""
        self.model = server.manifest.model_name
        self._client = server.client(timeout_s)
        self._left_s = server.left_s

    def __enter__(self) -> Completions:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def post(self, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        """Sends one request."""
        return self._client.post(PATH, json={"model": self.model, **body}, headers=headers)

    def choice(self, **body: Any) -> dict[str, Any]:
        """Returns the first choice of a completion, with its token ids.

        Raises RefusedError for a 4xx, StepFailedError for any other error.
        """
        choices: list[dict[str, Any]] = self.document(**body)["choices"]
        return choices[0]

    def document(self, **body: Any) -> dict[str, Any]:
        """Returns the whole document of a completion; raises as `choice` does."""
        answer = self.post(**{"temperature": 0, "return_token_ids": True, **body})
        document: dict[str, Any] = answer.json()
        if answer.is_client_error:
            error = document["error"]
            raise RefusedError(answer.status_code, error.get("param"), error["message"])
        if answer.is_error:
            raise StepFailedError(f"A completion failed with {answer.status_code}: {answer.text[:300]}")
        return document

    def ids(self, **body: Any) -> list[int]:
        """Returns the token ids of a completion; raises as `choice` does."""
        return list(self.choice(**body)["token_ids"])

    def capabilities(self) -> dict[str, Any]:
        """Returns the flags of the model in /v1/models."""
        answer = self._client.get(f"/v1/models/{self.model}")
        answer.raise_for_status()
        flags: dict[str, Any] = answer.json()["capabilities"]
        return flags

    @contextmanager
    def stream(self, **body: Any) -> Iterator[Iterator[dict[str, Any]]]:
        """Yields the events of a streamed completion as they arrive; leaving the block closes the connection."""
        request = {"model": self.model, "temperature": 0, "stream": True, **body}
        with self._client.stream("POST", PATH, json=request) as answer:
            if answer.is_error:
                raise StepFailedError(f"A stream failed with {answer.status_code}: {answer.read()[:300]!r}")
            yield self._events(answer)

    def _events(self, answer: httpx.Response) -> Iterator[dict[str, Any]]:
        for line in answer.iter_lines():
            self._left_s()
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))
