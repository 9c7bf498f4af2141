"""Believes the X-Forwarded-* headers of trusted proxies, of any other client none.

uvicorn's middleware reads X-Forwarded-Proto and X-Forwarded-For. X-Forwarded-Prefix is the part of the path that a
proxy has removed, as `/llm` for a `location /llm/` of nginx: links in responses begin with it.
"""

from __future__ import annotations

import re
from typing import Any

from starlette.types import Scope
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from frontend.observability.request_record import FORWARDED_PREFIX

_VALID_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]{1,64}){1,8}")


class ForwardedHeaders(ProxyHeadersMiddleware):
    """uvicorn's middleware, and the prefix, which has to be read before the client's address is replaced."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        client = scope.get("client")
        if scope["type"] == "http" and client is not None and client[0] in self.trusted_hosts:
            scope.setdefault("state", {})[FORWARDED_PREFIX] = _prefix_in(scope)
        await super().__call__(scope, receive, send)


def _prefix_in(scope: Scope) -> str:
    sent = next((value for name, value in scope["headers"] if name == b"x-forwarded-prefix"), b"")
    prefix = sent.decode("latin-1").strip().rstrip("/")
    return prefix if _VALID_PREFIX.fullmatch(prefix) and ".." not in prefix else ""
