"""The front end as a process of its own with the fake backend: for clients that are real programs, without Triton."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from launcher.ports import free_ports
from tests.support.waiting import wait_until

KEY = "sk-front-end-process-only"
MODEL = "tiny"
_OPENER = build_opener(ProxyHandler({}))
_START_S = 60  # on a machine with other work
_STOP_S = 10


@dataclass(frozen=True)
class Address:
    """Where a server is, and its key."""

    base_url: str
    api_key: str = KEY


def answers(url: str) -> bool:
    """Whether a GET of this URL succeeds."""
    try:
        with _OPENER.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except (URLError, ConnectionError, TimeoutError):
        return False


@contextmanager
def running_process(
    command: list[str], log: Path, *, is_ready: Callable[[], bool], **environment: str
) -> Iterator[None]:
    """Runs a server until the end of the block. Its output is in `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        wait_until(lambda: is_ready() or process.poll() is not None, limit_s=_START_S, what=f"{command[0]} is ready")
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_S)


@contextmanager
def running_front_end(folder: Path, **settings: str) -> Iterator[Address]:
    """Runs the front end with these settings, on a free port unless PORT is among them."""
    environment = {"BACKEND": "fake", "MODEL_NAME": MODEL, "API_KEY": KEY, "PORT": str(free_ports(1)[0]), **settings}
    base_url = f"http://127.0.0.1:{environment['PORT']}"
    if "API_KEYS_FILE" in settings:
        del environment["API_KEY"]
    command = [sys.executable, "-m", "frontend"]
    with running_process(
        command, folder / "front-end.log", is_ready=lambda: answers(f"{base_url}/health/ready"), **environment
    ):
        yield Address(base_url)
