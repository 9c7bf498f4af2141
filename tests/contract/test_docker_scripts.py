"""The two scripts that run inside images: the health check, and what adds packages to an image of NVIDIA's."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest

DOCKER = Path(__file__).parents[2] / "docker"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCKER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


healthcheck = load("healthcheck")
image = load("install_into_image")


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/good" else 503)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Health)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield str(server.server_port)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("path", "status"), [("/good", 0), ("/bad", 1)])
def test_healthy_is_a_200(port: str, path: str, status: int) -> None:
    assert healthcheck.main(["NO_SUCH_SETTING", port, path]) == status


def test_the_port_is_the_settings_where_it_is_set(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_PORT", port)
    assert healthcheck.main(["SOME_PORT", "1", "/good"]) == 0


def test_nobody_there_is_unhealthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert healthcheck.main(["NO_SUCH_SETTING", "1", "/good"]) == 1
    assert "refused" in capsys.readouterr().out


def test_a_proxy_of_the_environment_is_not_asked(port: str) -> None:
    command = [sys.executable, str(DOCKER / "healthcheck.py"), "NO_SUCH_SETTING", port, "/good"]
    run = subprocess.run(command, env={"http_proxy": "http://127.0.0.1:1"}, timeout=20, check=False)
    assert run.returncode == 0


LOCK = """colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:aa
    # via click
orjson==3.13.0 \\
    --hash=sha256:bb \\
    --hash=sha256:cc
    # via triton-completions (pyproject.toml)
pydantic-core==2.50.4 \\
    --hash=sha256:dd
"""


def test_only_what_the_image_lacks_is_installed() -> None:
    (block,) = image.missing_blocks(LOCK, {"colorama", "pydantic-core"})
    assert block.startswith("orjson==3.13.0 \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc")


def test_a_lock_is_taken_whole_by_an_image_that_has_nothing() -> None:
    blocks = image.missing_blocks(LOCK, set())
    assert [block.split("==")[0] for block in blocks] == ["colorama", "orjson", "pydantic-core"]
    assert "\n".join(blocks) + "\n" == LOCK


def test_the_real_locks_can_be_read() -> None:
    for lock in (DOCKER / "requirements").glob("*.lock"):
        blocks = image.missing_blocks(lock.read_text(encoding="utf-8"), set())
        assert blocks
        assert all("--hash=sha256:" in block for block in blocks), lock.name


@pytest.mark.parametrize("found", ["1.2.1", "1.2.1+cu131"])
def test_the_expected_version_passes(found: str) -> None:
    assert image.unexpected("tensorrt_llm==1.2.1", {"tensorrt-llm": found}) is None


@pytest.mark.parametrize("present", [{"tensorrt-llm": "1.1.0"}, {}], ids=["another", "none"])
def test_another_version_stops_the_build(present: dict[str, str]) -> None:
    said = image.unexpected("tensorrt_llm==1.2.1", present)
    assert said is not None
    assert f"was to have tensorrt_llm 1.2.1 and has {present.get('tensorrt-llm', 'none')}" in said


def test_a_package_that_was_moved_stops_the_build() -> None:
    before, after = {"torch": "2.9", "numpy": "1.26", "six": "1"}, {"torch": "2.10", "numpy": "1.26", "orjson": "3"}
    assert image.moved(before, after) == ["six was 1 and is gone now.", "torch was 2.9 and is 2.10 now."]


def test_what_is_installed_is_known_by_the_names_that_locks_use() -> None:
    present = image.installed()
    assert {"pydantic-core", "typing-extensions", "pytest"} <= set(present)
