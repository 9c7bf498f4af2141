"""Refuses requests that were sent to a host name which is not this server's.

This stops DNS rebinding: a web page whose own name has been made to resolve to this machine can use a server on the
loopback address as if it were part of the page, but its requests carry the page's name.
"""

from __future__ import annotations

from frontend.settings import FrontendSettings
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

_ANY = "*"
_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


class AllowedHosts:
    """The host names of ALLOWED_HOSTS; unset, those of a loopback address if HOST is one, otherwise any."""

    def __init__(self, settings: FrontendSettings) -> None:
        self._names = _names(settings)
        self._last_allowed = b""  # most requests have the same one as the request before

    def require(self, host: bytes) -> None:
        """Raises PipelineError (421) if the Host header, with or without a port, names another host."""
        if self._names is None or (host and host == self._last_allowed):
            return
        if _name_of(host.decode("latin-1")) in self._names:
            self._last_allowed = host
            return
        raise PipelineError(
            ErrorCode.HOST_NOT_ALLOWED,
            "This server does not answer to the name in the Host header. Use one of its own names, or add this one to "
            "ALLOWED_HOSTS.",
        )


def _names(settings: FrontendSettings) -> frozenset[str] | None:
    """None: any name."""
    own = {_name_of(settings.public_url.host or "")} if settings.public_url is not None else set()
    if settings.allowed_hosts:
        return None if _ANY in settings.allowed_hosts else frozenset(own.union(map(_name_of, settings.allowed_hosts)))
    if not settings.is_loopback:
        return None
    return _LOOPBACK_HOSTS.union(own, {_name_of(settings.host)})


def _name_of(host: str) -> str:
    """The name in a Host header in lower case, without a port; of an IPv6 address, with its brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[: host.find("]") + 1]
    if host.count(":") > 1:  # an IPv6 address without brackets, as in HOST
        return f"[{host}]"
    return host.partition(":")[0].removesuffix(".")
