"""A real nginx in front of a server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.ports import free_ports
from tests.support.front_end_process import Address, answers, running_process

_CONFIGURATION = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ return 404; }}
        location = /ready {{ return 200; }}
{locations}
    }}
}}
"""


@contextmanager
def running_nginx(folder: Path, locations: str) -> Iterator[Address]:
    """Runs nginx with these `location` blocks, as root or not. Skips the test if it is not installed."""
    path = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        pytest.skip("no nginx on PATH or in /usr/sbin; Debian: apt-get install nginx-light")
    (port,) = free_ports(1)
    configuration = folder / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(folder=folder, port=port, locations=locations))
    command = [path, "-p", str(folder), "-e", "stderr", "-c", str(configuration)]
    base_url = f"http://127.0.0.1:{port}"
    with running_process(command, folder / "nginx.log", is_ready=lambda: answers(f"{base_url}/ready")):
        yield Address(base_url)
