"""Prometheus and Alertmanager: from the PATH, or Debian's packages, unpacked below .run without installing them.

Without them a test skips with the reason; NEED_DEPLOY_TOOLS=1 makes it fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from launcher.ports import free_ports
from scripts.deploy_tools import PROMETHEUS, download_prometheus
from tests.support.front_end_process import answers, running_process

_SHARE = Path("/usr/share")
_TEMPLATES = "prometheus/alertmanager/default.tmpl"


@cache
def _find(name: str) -> Path | str:
    """Returns the program, or the reason why there is none."""
    if installed := shutil.which(name):
        return Path(installed)
    reason = download_prometheus()
    return reason or PROMETHEUS / "usr" / "bin" / name


def program(name: str) -> Path:
    """The path of prometheus, promtool, prometheus-alertmanager or amtool."""
    found = _find(name)
    if isinstance(found, str):
        refuse(found)
    return Path(found)


def refuse(reason: str) -> None:
    """Skips the test, or fails it if NEED_DEPLOY_TOOLS is set."""
    if os.environ.get("NEED_DEPLOY_TOOLS"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class Server:
    """A running Prometheus or Alertmanager."""

    url: str

    def get(self, path: str, **parameters: Any) -> Any:
        """The answer of its API."""
        answer = httpx.get(f"{self.url}{path}", params=parameters, timeout=20, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that Prometheus answers an expression with now."""
        data = self.get("/api/v1/query", query=expression)["data"]
        assert data["resultType"] == "vector", expression
        return list(data["result"])


@contextmanager
def running_prometheus(folder: Path, config: Mapping[str, Any]) -> Iterator[Server]:
    """Runs Prometheus in a new folder, with this configuration."""
    (port,) = free_ports(1)
    folder.mkdir()
    (folder / "prometheus.yml").write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    command: list[str | Path] = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with _running(command, folder, port) as server:
        yield server


@contextmanager
def running_alertmanager(folder: Path, config: Mapping[str, Any]) -> Iterator[Server]:
    """Runs Alertmanager in a new folder, with this configuration."""
    (port,) = free_ports(1)
    folder.mkdir()
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    command: list[str | Path] = [
        *_with_templates(),
        program("prometheus-alertmanager"),
        f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with _running(command, folder, port) as server:
        yield server


def _with_templates() -> list[str | Path]:
    """Debian's Alertmanager reads its templates from /usr/share: an unpacked one needs a mount of its own there."""
    if (_SHARE / _TEMPLATES).exists():
        return []
    unpacked = PROMETHEUS / "usr" / "share"
    unshare = ["unshare", "--map-root-user", "--mount"]
    mount = f'mount --bind "{unpacked}" {_SHARE} && exec "$@"'
    command = [*unshare, "sh", "-c", mount, "sh"]
    program("prometheus-alertmanager")
    if not shutil.which("unshare") or subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        refuse("Alertmanager is not installed, and an unpacked one needs user namespaces, which this machine refuses")
    return list(command)


@contextmanager
def _running(command: list[str | Path], folder: Path, port: int) -> Iterator[Server]:
    server = Server(f"http://127.0.0.1:{port}")
    with running_process([*map(str, command)], folder / "log", is_ready=lambda: answers(f"{server.url}/-/ready")):
        yield server
