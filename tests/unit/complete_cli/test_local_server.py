"""The server of this directory is found by the file that its launcher writes, and by no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from complete_cli.local_server import LocalServer, find_local_server
from launcher.local.server_file import published_server

URL = "http://127.0.0.1:9077/openai/v1"


def write(run_dir: Path, *, mode: int = 0o600, **changed: Any) -> None:
    content = {"base_url": URL, "api_key": "sk-local", "pid": os.getpid(), **changed}
    path = run_dir / "server.json"
    path.write_text(json.dumps(content))
    path.chmod(mode)


def test_file_of_the_launcher_is_read(tmp_path: Path) -> None:
    with published_server(tmp_path, base_url="http://127.0.0.1:9077", api_key="sk-local", models=["small"]):
        assert find_local_server(tmp_path) == LocalServer(URL, "sk-local")
    assert find_local_server(tmp_path) is None


def test_server_with_a_file_of_keys_has_no_key_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, api_key=None)
    assert find_local_server(tmp_path) == LocalServer(URL, None)


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o602])
def test_file_that_others_can_read_or_write_is_ignored(tmp_path: Path, mode: int) -> None:
    """It would lead the prompt, and the key, to any address."""
    write(tmp_path, mode=mode)
    assert find_local_server(tmp_path) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_file_of_another_user_is_ignored(tmp_path: Path) -> None:
    write(tmp_path)
    os.chown(tmp_path / "server.json", 12345, -1)
    assert find_local_server(tmp_path) is None


def test_file_of_a_killed_launcher_is_ignored(tmp_path: Path) -> None:
    """Its port may belong to another program by now, which must not get the key."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    write(tmp_path, pid=ended.pid)
    assert find_local_server(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"pid": "x", "base_url": "", "api_key": ""}', "\x00"])
def test_file_that_is_not_understood_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "server.json").write_text(text)
    (tmp_path / "server.json").chmod(0o600)
    assert find_local_server(tmp_path) is None


@pytest.mark.parametrize(
    ("base_url", "is_same"),
    [
        (URL, True),
        (f"{URL}/", True),
        ("http://127.0.0.1:9077/v1", False),
        ("http://localhost:9077/openai/v1", False),
        ("http://127.0.0.1:90771/openai/v1", False),
    ],
)
def test_address_is_compared_exactly(base_url: str, is_same: bool) -> None:
    assert LocalServer(URL, None).is_at(base_url) == is_same
