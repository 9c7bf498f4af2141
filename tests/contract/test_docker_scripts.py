"""The scripts that run in images: the health check, and those that add packages and libraries to NVIDIA's images."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from launcher.local.stage_monitor import STAGE_MESSAGES
from launcher.local.triton_wheel import find_server_root

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
libraries = load("complete_libraries")


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


# --- complete_libraries.py -------------------------------------------------------------------------------------------

LDD = """\tlinux-vdso.so.1 (0x00007f)
\tlibdcgm.so.4 => not found
\tlibcuda.so.1 => not found
\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f)
./tritonserver: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.40' not found (required by ./tritonserver)
"""


def test_missing_libraries_and_versions_are_read_from_ldd() -> None:
    assert list(libraries.missing_libraries(LDD)) == ["libdcgm.so.4"]  # libcuda.so.1 comes with the driver
    assert list(libraries.missing_versions(LDD)) == ["GLIBC_2.40"]


def test_library_of_the_other_image_is_found_through_its_links(tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib/x86_64-linux-gnu"
    folder.mkdir(parents=True)
    (folder / "libdcgm.so.4.5.3").write_text("dcgm")
    (folder / "libdcgm.so.4").symlink_to("libdcgm.so.4.5.3")
    (folder / "libre2.so.10").symlink_to("/usr/lib/x86_64-linux-gnu/libdcgm.so.4.5.3")
    assert libraries.find(tmp_path, "libdcgm.so.4") == folder / "libdcgm.so.4.5.3"
    assert libraries.find(tmp_path, "libre2.so.10") == folder / "libdcgm.so.4.5.3"
    assert libraries.find(tmp_path, "libnone.so.1") is None


@pytest.fixture
def moved_server(tmp_path: Path) -> tuple[Path, Path]:
    """Triton's server program without the wheel's libraries, and the root of an image that has them."""
    wheel = find_server_root()
    program = tmp_path / "bin" / "tritonserver"
    program.parent.mkdir()
    shutil.copy2(wheel / "bin" / "tritonserver", program)
    folder = tmp_path / "other" / "usr" / "local" / "lib"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(wheel.parents[1] / "nvidia_pytriton.libs")
    return program, tmp_path / "other"


def test_real_server_gets_what_it_lacks_and_nothing_else(moved_server: tuple[Path, Path], tmp_path: Path) -> None:
    program, other = moved_server
    problems = libraries.complete([program], other, tmp_path / "into")
    assert problems
    assert all("needs libcudart" in problem for problem in problems)  # CUDA has to be this image's
    copied = {path.name.partition("-")[0] for path in (tmp_path / "into").iterdir()}
    assert {"libtritonserver", "libdcgm", "libnuma", "libb64"} <= copied
    assert not copied & {"libc", "libstdc++", "libz", "libcudart"}


def test_library_that_the_other_image_lacks_fails_the_build(
    moved_server: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, _ = moved_server
    arguments = ["--from", str(tmp_path / "nothing"), "--into", str(tmp_path / "into"), str(program)]
    assert libraries.main(arguments) == 1
    assert "tritonserver needs libtritonserver" in capsys.readouterr().err
    assert libraries.main([*arguments[:-1], str(tmp_path / "no-program")]) == 1
    assert "no-program does not exist." in capsys.readouterr().err
