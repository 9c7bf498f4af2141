"""The headers that let web pages of other origins use the API (CORS), of preflights and of all responses.

No cookies are involved, so responses never allow credentials: pages send a key in the Authorization header.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeAlias

from frontend.settings import ANY_ORIGIN
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]

_VARY: Headers = ((b"vary", b"Origin"),)
_EXPOSED = (
    b"x-request-id, retry-after, retry-after-ms, x-should-retry, link, www-authenticate, allow, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
_PREFLIGHT: Headers = (
    (b"access-control-allow-methods", b"GET, HEAD, POST, OPTIONS"),
    # The wildcard stands for all names but Authorization. Clients send headers of their own, such as x-stainless-*.
    (b"access-control-allow-headers", b"Authorization, Content-Type, X-Request-Id, X-Request-Timeout-S, *"),
    (b"access-control-max-age", b"7200"),  # seconds; browsers use at most that many
)


class CorsPolicy:
    """The origins whose pages may use this server."""

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)
        self._allows_any = ANY_ORIGIN in origins
        self._any: Headers = _allowing(b"*")

    def response_headers(self, origin: bytes | None) -> Headers:
        """The headers of every response to a request with this Origin header, errors included."""
        if self._allows_any:
            return self._any
        if not self._origins:
            return ()
        return (*_allowing(origin), *_VARY) if origin in self._origins else _VARY

    def preflight_headers(self, headers: Mapping[bytes, bytes]) -> Headers | None:
        """The headers of the response to a preflight, beside `response_headers`. None for any other OPTIONS request.

        Raises PipelineError (403) for an origin that is not allowed.
        """
        origin = headers.get(b"origin")
        if origin is None or b"access-control-request-method" not in headers:
            return None
        if not self._allows_any and origin not in self._origins:
            message = "Pages of this origin may not use this server. Add the origin to CORS_ORIGINS to allow them."
            raise PipelineError(ErrorCode.ORIGIN_NOT_ALLOWED, message)
        return _PREFLIGHT


def _allowing(origin: bytes | None) -> Headers:
    return (b"access-control-allow-origin", origin or b"null"), (b"access-control-expose-headers", _EXPOSED)
