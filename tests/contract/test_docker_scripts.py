"""The two scripts that run in images: the health check, and the one that adds packages to NVIDIA's image."""

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

from launcher.local.stage_monitor import STAGE_MESSAGES

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

    def do_POST(self) -> None:
        """Triton's generate: all stages of `ensemble` answer, and of `silent-*` none does."""
        self.rfile.read(int(self.headers["Content-Length"]))
        if "silent-" in self.path:
            self.server.shutdown_request(self.connection)
            return
        is_allowed = self.headers.get("triton-secret", "0123456789abcdef") == "0123456789abcdef"
        self.send_response(200 if is_allowed else 403)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Discards the line."""


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
def test_status_200_is_healthy(port: str, path: str, status: int) -> None:
    assert healthcheck.main(["NO_SUCH_SETTING", port, path]) == status


@pytest.mark.parametrize(("ensemble", "status"), [("ensemble", 0), ("silent", 1)])
def test_every_stage_has_to_answer(port: str, ensemble: str, status: int) -> None:
    assert healthcheck.main(["NO_SUCH_SETTING", port, "/good", ensemble]) == status


def test_secret_of_the_environment_is_sent(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_SECRET", "0123456789abcdef")
    assert healthcheck.main(["NO_SUCH_SETTING", port, "/good", "ensemble"]) == 0
    monkeypatch.setenv("TRITON_SECRET", "another-secret-0123")
    assert healthcheck.main(["NO_SUCH_SETTING", port, "/good", "ensemble"]) == 1


def test_messages_to_the_stages_are_the_launchers() -> None:
    assert healthcheck.STAGE_MESSAGES == STAGE_MESSAGES


def test_port_comes_from_the_environment_variable(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_PORT", port)
    assert healthcheck.main(["SOME_PORT", "1", "/good"]) == 0


def test_refused_connection_is_unhealthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert healthcheck.main(["NO_SUCH_SETTING", "1", "/good"]) == 1
    assert "refused" in capsys.readouterr().out


def test_proxy_of_the_environment_is_ignored(port: str) -> None:
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


def test_only_missing_packages_are_installed() -> None:
    (block,) = image.missing_blocks(LOCK, {"colorama", "pydantic-core"})
    assert block.startswith("orjson==3.13.0 \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc")


def test_empty_image_gets_the_whole_lock() -> None:
    blocks = image.missing_blocks(LOCK, set())
    assert [block.split("==")[0] for block in blocks] == ["colorama", "orjson", "pydantic-core"]
    assert "\n".join(blocks) + "\n" == LOCK


def test_lock_files_of_the_images_can_be_parsed() -> None:
    for lock in (DOCKER / "requirements").glob("*.lock"):
        blocks = image.missing_blocks(lock.read_text(encoding="utf-8"), set())
        assert blocks
        assert all("--hash=sha256:" in block for block in blocks), lock.name


@pytest.mark.parametrize("version", ["1.2.1", "1.2.1+cu131"])
def test_expected_version_passes(version: str) -> None:
    assert image.unexpected("tensorrt_llm==1.2.1", {"tensorrt-llm": version}) is None


@pytest.mark.parametrize("present", [{"tensorrt-llm": "1.1.0"}, {}], ids=["another", "none"])
def test_other_version_fails_the_build(present: dict[str, str]) -> None:
    problem = image.unexpected("tensorrt_llm==1.2.1", present)
    assert problem == f"The image has tensorrt_llm {present.get('tensorrt-llm', 'none')}; expected 1.2.1."


def test_changed_package_fails_the_build() -> None:
    before, after = {"torch": "2.9", "numpy": "1.26", "six": "1"}, {"torch": "2.10", "numpy": "1.26", "orjson": "3"}
    assert image.changed(before, after) == ["six changed from 1 to removed.", "torch changed from 2.9 to 2.10."]


def test_installed_packages_have_the_names_of_lock_files() -> None:
    present = image.installed()
    assert {"pydantic-core", "typing-extensions", "pytest"} <= set(present)
