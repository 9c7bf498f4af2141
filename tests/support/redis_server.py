"""A real Redis with a password, on a free port."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.ports import free_ports
from tests.support.front_end_process import running_process

PASSWORD = "redis-password-of-tests"


@contextmanager
def running_redis(folder: Path, port: int | None = None) -> Iterator[str]:
    """Runs Redis without files, and yields its URL. Skips the test if it is not installed."""
    path = shutil.which("redis-server")
    if path is None:
        pytest.skip("no redis-server on PATH; Debian: apt-get install redis-server")
    port = port or free_ports(1)[0]
    command = [path, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    command += ["--requirepass", PASSWORD]
    with running_process(command, folder / "redis.log", is_ready=lambda: _accepts(port)):
        yield f"redis://:{PASSWORD}@127.0.0.1:{port}/0"


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except OSError:
        return False
