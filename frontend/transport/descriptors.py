"""The number of connections that one process can hold, from its limit of open files."""

from __future__ import annotations

import resource

import structlog

log = structlog.get_logger(__name__)

PROBE_CONNECTIONS = 64
"""Connections beyond the limit that may ask for the health of the server, and for nothing else."""

BACKLOG = 2048
"""Connections that wait in the kernel. The event loop may accept all of them before it closes one in their place."""

_OTHER_DESCRIPTORS = 256  # listening sockets, gRPC, logs, libraries that are opened later
_DEFAULT_CONNECTIONS = 16384


class DescriptorLimitError(ValueError):
    """MAX_CONNECTIONS needs more open files than the process may have."""


def connection_limit(configured: int | None) -> int:
    """Raises the soft limit of open files as far as needed, and returns the number of connections to serve.

    `configured` is MAX_CONNECTIONS. Raises DescriptorLimitError if the hard limit does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserve = _OTHER_DESCRIPTORS + PROBE_CONNECTIONS
    needed = (configured or _DEFAULT_CONNECTIONS) + reserve
    wanted = needed + BACKLOG
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return needed - reserve
    if configured is not None or soft <= reserve:
        raise DescriptorLimitError(
            f"MAX_CONNECTIONS={configured or 'unset'} needs {needed if configured else reserve + 1} open files, and "
            f"this process may have {soft} (ulimit -Hn). Raise that limit, or lower MAX_CONNECTIONS."
        )
    log.warning("few_connections", connections=soft - reserve, advice="raise the limit of open files (ulimit -Hn)")
    return soft - reserve
