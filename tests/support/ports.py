"""Free TCP ports for the servers that tests start, one import for all of them."""

from __future__ import annotations

from benchmarks.systems.servers import free_ports

__all__ = ["free_ports"]
