"""Collects the facts about one HTTP request, which are logged and counted once at its end."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from starlette.types import Scope

from frontend.api_key import ApiKey
from llm_pipeline.protocol.errors import ErrorCode

# Visible ASCII characters only: the id is copied into headers, log lines and Triton's request id unchanged.
_VALID_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_VALID_HOST = re.compile(r"[A-Za-z0-9._\-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")

FORWARDED_PREFIX = "forwarded_prefix"
"""Key of a scope's state: the part of the path that a trusted proxy has removed, without a slash at its end."""

CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that disconnected before the response; never sent


@dataclass
class RequestRecord:
    """One HTTP request. Times (`_s`) are of the monotonic clock; `created` is Unix time in seconds."""

    request_id: str
    method: str
    path: str
    base_url: str  # without a trailing slash
    wants_problem_json: bool
    origin: bytes | None = None  # of the web page that sent the request
    started_s: float = field(default_factory=time.monotonic)
    created: int = field(default_factory=lambda: int(time.time()))
    key: ApiKey | None = None
    model: str | None = None  # the requested name, set once it is known to exist
    served_model: str | None = None  # the same model's own name, if the request used an alias
    operation: str | None = None  # completions or chat; None for other paths
    is_stream: bool = False
    status: int = 0  # of the response; 0 until it starts
    outcome: int = 0  # status of an error after the response has started, or CLIENT_CLOSED_REQUEST
    error_code: ErrorCode | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float | None = None
    finish_reasons: tuple[str, ...] = ()

    @property
    def final_status(self) -> int:
        """The status to log and count: of a late error instead of the 200 that was sent before it."""
        return self.outcome or self.status or CLIENT_CLOSED_REQUEST

    @property
    def duration_s(self) -> float:
        """Seconds since the request arrived."""
        return time.monotonic() - self.started_s

    def schema_url(self, name: str) -> str:
        """The URL of the JSON Schema with this name."""
        return f"{self.base_url}/openai/schemas/{name}.json"


def begin_record(scope: Scope, public_url: str | None) -> RequestRecord:
    """Creates the record of a new request and stores it in the scope, for `record_of`."""
    headers = dict(scope["headers"])
    record = RequestRecord(
        request_id=_request_id(headers.get(b"x-request-id", b"")),
        method=scope["method"],
        path=scope["path"],
        base_url=public_url or own_url(scope, headers.get(b"host", b"")),
        origin=headers.get(b"origin"),
        wants_problem_json=_accepts_problem_json(value for name, value in scope["headers"] if name == b"accept"),
    )
    scope.setdefault("state", {})["record"] = record
    return record


def record_of(scope: Scope) -> RequestRecord:
    """The record that `begin_record` created for this request."""
    record: RequestRecord = scope["state"]["record"]
    return record


def _request_id(sent: bytes) -> str:
    return sent.decode() if _VALID_REQUEST_ID.fullmatch(sent) else os.urandom(16).hex()


def own_url(scope: Scope, host: bytes = b"") -> str:
    """The URL of this server under the name in a Host header; under its address if the name is invalid.

    Ends with the path prefix of a trusted proxy, if there is one, and without a slash.
    """
    name = host.decode("latin-1")
    if not _VALID_HOST.fullmatch(name):
        address, port = scope.get("server") or ("localhost", None)
        name = f"{address}:{port}" if port else address
    return f"{scope['scheme']}://{name}{scope.get('state', {}).get(FORWARDED_PREFIX, '')}"


def _accepts_problem_json(values: Iterable[bytes]) -> bool:
    for value in values:
        for item in value.decode("latin-1").lower().split(","):
            media_type, *parameters = (part.strip() for part in item.split(";"))
            if media_type == "application/problem+json":
                return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False
