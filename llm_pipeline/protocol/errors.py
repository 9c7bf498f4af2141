"""The errors of a request: their table, their exception, and its wire format between Triton and the front end.

An error is raised as `PipelineError(ErrorCode.X, message)`. Its HTTP status and type come from `ERRORS`, the only place
that pairs them with a code. Triton carries errors as one string, so `to_wire` puts the code and the parameter in front
of the message, and `from_wire` finds them after any prefix of Triton's ("in ensemble 'ensemble', ...").

Messages state the cause, the limit and the action to take. They never contain the prompt, a path, a traceback or
engine internals.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial


class ErrorCode(str, Enum):
    """The `error.code` in responses to clients, unless the table has a more general one for them."""

    INVALID_HTTP = "invalid_http"
    INVALID_JSON = "invalid_json"
    MISSING_REQUIRED_PARAMETER = "missing_required_parameter"
    INVALID_TYPE = "invalid_type"
    VALUE_OUT_OF_RANGE = "value_out_of_range"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INVALID_API_KEY = "invalid_api_key"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    MODEL_NOT_FOUND = "model_not_found"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    REQUEST_TOO_LARGE = "request_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    HOST_NOT_ALLOWED = "host_not_allowed"
    HEADERS_TOO_LARGE = "headers_too_large"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    REQUEST_RATE_EXCEEDED = "request_rate_exceeded"
    TOKEN_RATE_EXCEEDED = "token_rate_exceeded"
    INSUFFICIENT_QUOTA = "insufficient_quota"
    QUEUE_FULL = "queue_full"
    SERVICE_UNAVAILABLE = "service_unavailable"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    DRAINING = "draining"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    INTERNAL_ERROR = "internal_error"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class ErrorKind:
    """The HTTP form of a code: status, `error.type`, the problem+json title, and whether a retry can help."""

    status: int
    type: str
    title: str
    is_retryable: bool = False
    client_code: str | None = None  # `error.code`, if several codes are one for clients


_INVALID = ErrorKind(400, "invalid_request_error", "Bad Request")
_NOT_FOUND = ErrorKind(404, "not_found_error", "Not Found")
_UNAVAILABLE = ErrorKind(503, "overloaded_error", "Service Unavailable", is_retryable=True)


def _too_many(what: str) -> ErrorKind:
    code = ErrorCode.RATE_LIMIT_EXCEEDED.value
    return ErrorKind(429, what, "Too Many Requests", is_retryable=True, client_code=code)


ERRORS: dict[ErrorCode, ErrorKind] = {
    ErrorCode.INVALID_HTTP: _INVALID,
    ErrorCode.INVALID_JSON: _INVALID,
    ErrorCode.MISSING_REQUIRED_PARAMETER: _INVALID,
    ErrorCode.INVALID_TYPE: _INVALID,
    ErrorCode.VALUE_OUT_OF_RANGE: _INVALID,
    ErrorCode.UNSUPPORTED_PARAMETER: _INVALID,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: _INVALID,
    ErrorCode.INVALID_API_KEY: ErrorKind(401, "authentication_error", "Unauthorized"),
    ErrorCode.MODEL_NOT_ALLOWED: ErrorKind(403, "permission_error", "Forbidden"),
    ErrorCode.ORIGIN_NOT_ALLOWED: ErrorKind(403, "permission_error", "Forbidden"),
    ErrorCode.MODEL_NOT_FOUND: _NOT_FOUND,
    ErrorCode.NOT_FOUND: _NOT_FOUND,
    ErrorCode.METHOD_NOT_ALLOWED: ErrorKind(405, "invalid_request_error", "Method Not Allowed"),
    ErrorCode.REQUEST_TIMEOUT: ErrorKind(408, "timeout_error", "Request Timeout", is_retryable=True),
    ErrorCode.REQUEST_TOO_LARGE: ErrorKind(413, "request_too_large", "Content Too Large"),
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: ErrorKind(415, "invalid_request_error", "Unsupported Media Type"),
    ErrorCode.HOST_NOT_ALLOWED: ErrorKind(421, "invalid_request_error", "Misdirected Request"),
    ErrorCode.HEADERS_TOO_LARGE: ErrorKind(431, "invalid_request_error", "Request Header Fields Too Large"),
    ErrorCode.RATE_LIMIT_EXCEEDED: ErrorKind(429, "rate_limit_error", "Too Many Requests", is_retryable=True),
    # As in OpenAI's API: one code, and the type names what is limited. Its clients give up at insufficient_quota.
    ErrorCode.REQUEST_RATE_EXCEEDED: _too_many("requests"),
    ErrorCode.TOKEN_RATE_EXCEEDED: _too_many("tokens"),
    ErrorCode.INSUFFICIENT_QUOTA: ErrorKind(429, "insufficient_quota", "Too Many Requests"),
    ErrorCode.QUEUE_FULL: ErrorKind(429, "overloaded_error", "Too Many Requests", is_retryable=True),
    ErrorCode.SERVICE_UNAVAILABLE: _UNAVAILABLE,
    ErrorCode.ENGINE_UNAVAILABLE: _UNAVAILABLE,
    ErrorCode.DRAINING: _UNAVAILABLE,
    ErrorCode.DEADLINE_EXCEEDED: ErrorKind(504, "timeout_error", "Gateway Timeout", is_retryable=True),
    ErrorCode.INTERNAL_ERROR: ErrorKind(500, "server_error", "Internal Server Error"),
}

_WIRE = re.compile(
    r"\[error code=(?P<code>[a-z_]+)(?: param=(?P<param>[\w.\[\]]+))?(?: retry_after_s=(?P<retry>\d+(?:\.\d+)?))?\] "
    r"(?P<message>.*)",
    re.DOTALL,
)


class PipelineError(Exception):
    """A request that ends with an error instead of a finish reason.

    `param` is the invalid request field, under the client's name for it, or None. `retry_after_s` is a hint in seconds.
    """

    def __init__(
        self, code: ErrorCode, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Callable[[], PipelineError], tuple[()]]:
        """Pickles all fields; the base class would call the constructor with the message alone."""
        make = partial(PipelineError, self.code, self.message, param=self.param, retry_after_s=self.retry_after_s)
        return make, ()

    @property
    def kind(self) -> ErrorKind:
        return ERRORS[self.code]

    @property
    def client_code(self) -> str:
        """The `error.code` in responses."""
        return self.kind.client_code or self.code.value

    def with_param(self, param: str | None) -> PipelineError:
        """The same error with another `param`."""
        return PipelineError(self.code, self.message, param=param, retry_after_s=self.retry_after_s)

    def to_wire(self) -> str:
        """The one-line form that travels as a Triton error message."""
        param = f" param={self.param}" if self.param else ""
        retry = "" if self.retry_after_s is None else f" retry_after_s={self.retry_after_s:.3f}"
        return f"[error code={self.code}{param}{retry}] {self.message}"

    @classmethod
    def from_wire(cls, text: str) -> PipelineError | None:
        """The error in a Triton error message, or None if the message is not one of ours."""
        match = _WIRE.search(text)
        if match is None:
            return None
        try:
            code = ErrorCode(match["code"])
        except ValueError:
            return None
        retry_after_s = None if match["retry"] is None else float(match["retry"])
        return cls(code, match["message"], param=match["param"], retry_after_s=retry_after_s)


def internal_error() -> PipelineError:
    """The error for internal failures. The cause goes to the log, never to the client."""
    return PipelineError(
        ErrorCode.INTERNAL_ERROR,
        "The server failed to handle this request because of an internal error. "
        "Quote the x-request-id header when you report it.",
    )
