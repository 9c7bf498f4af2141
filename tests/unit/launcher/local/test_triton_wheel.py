"""The tritonserver of the wheel: put together once, and started on loopback only."""

from __future__ import annotations

import sys
import threading
from importlib import metadata
from pathlib import Path

import pytest

from launcher.local import triton_wheel as triton_server
from launcher.local.preflight import PreflightError
from launcher.settings import StackSettings

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = "triton_python_backend_stub"


@pytest.fixture
def server_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server as the wheel has it, only smaller."""
    root = tmp_path / "tritonserver"
    backend = root / "backends" / "python"
    (backend / "__pycache__").mkdir(parents=True)
    (backend / "libtriton_python.so").write_bytes(b"library")
    stub = root / "python_backend_stubs" / PYTHON / STUB
    stub.parent.mkdir(parents=True)
    stub.write_bytes(b"stub")
    stub.chmod(0o755)
    monkeypatch.setattr(triton_server, "_server_root", lambda: root)
    return root


def contents(backends: Path) -> set[str]:
    return {path.relative_to(backends).as_posix() for path in backends.rglob("*")}


@pytest.mark.usefixtures("server_root")
def test_the_stub_of_this_python_stands_beside_the_backends_library(tmp_path: Path) -> None:
    backends = triton_server.prepare_backends(tmp_path / "run")
    assert contents(backends) == {"python", "python/libtriton_python.so", f"python/{STUB}"}
    assert (backends / "python" / STUB).stat().st_mode & 0o100
    assert PYTHON in backends.name


def test_what_is_there_is_used_again(tmp_path: Path, server_root: Path) -> None:
    first = triton_server.prepare_backends(tmp_path / "run")
    (server_root / "backends" / "python" / "libtriton_python.so").unlink()
    assert triton_server.prepare_backends(tmp_path / "run") == first
    assert len(contents(first)) == 3


@pytest.mark.usefixtures("server_root")
def test_starts_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    found: list[Path] = []
    together = threading.Barrier(4)

    def start() -> None:
        together.wait(10)
        found.append(triton_server.prepare_backends(tmp_path / "run"))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(contents(found[0])) == 3
    assert [path.name for path in found[0].parent.iterdir()] == [found[0].name]  # no drafts are left


def test_a_failed_preparation_is_an_error_and_leaves_no_draft(tmp_path: Path, server_root: Path) -> None:
    (server_root / "backends" / "python" / "libtriton_python.so").unlink()
    (server_root / "backends" / "python" / "libtriton_python.so").symlink_to("nowhere")
    with pytest.raises(OSError, match="libtriton_python"):
        triton_server.prepare_backends(tmp_path / "run")
    assert list((tmp_path / "run" / "triton").iterdir()) == []


def test_a_python_that_the_wheel_has_no_stub_for_is_told(tmp_path: Path, server_root: Path) -> None:
    (server_root / "python_backend_stubs" / PYTHON / STUB).unlink()
    with pytest.raises(PreflightError, match=r"3\.10, 3\.11 or 3\.12"):
        triton_server.prepare_backends(tmp_path / "run")


def test_a_missing_wheel_is_told_how_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_server, "_WHEEL", "a-wheel-that-nobody-has")
    with pytest.raises(PreflightError, match="make install"):
        triton_server.prepare_backends(tmp_path / "run")


def test_the_real_wheel_holds_what_is_taken_from_it() -> None:
    root = triton_server._server_root()
    assert (root / "bin" / "tritonserver").is_file()
    assert (root / "backends" / "python" / "libtriton_python.so").is_file()
    assert (root / "python_backend_stubs" / PYTHON / STUB).is_file()


def test_the_server_listens_on_loopback_only_and_on_the_ports_of_the_settings() -> None:
    settings = StackSettings(triton_http_port=1111, triton_grpc_port=2222, triton_metrics_port=3333)
    command = triton_server.command(settings, Path("/backends"))
    for service, port in (("http", 1111), ("grpc", 2222), ("metrics", 3333)):
        assert f"--{service}-address=127.0.0.1" in command
        assert f"--{service}-port={port}" in command


def test_two_servers_on_one_machine_do_not_share_names_in_shared_memory() -> None:
    prefixes = {triton_server.new_shared_memory_prefix(StackSettings()) for _ in range(2)}
    assert len(prefixes) == 2
    for prefix in prefixes:
        command = triton_server.command(StackSettings(), Path("/backends"), shared_memory_prefix=prefix)
        assert f"--backend-config=python,shm-region-prefix-name={prefix}" in command


def test_regions_of_this_launcher_alone_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_server, "_SHARED_MEMORY", tmp_path)
    ours, others = (triton_server.new_shared_memory_prefix(StackSettings()) for _ in range(2))
    for name in (f"{ours}1", f"{ours}2", f"{others}1", "psm_of_somebody"):
        (tmp_path / name).touch()
    triton_server.remove_shared_memory(ours)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"{others}1", "psm_of_somebody"])


def test_the_stubs_python_is_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/somewhere")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/inherited")
    environment = triton_server.environment(StackSettings(executor="scripted"), Path("/engine"))
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/somewhere"
    assert environment["LD_LIBRARY_PATH"].startswith(str(metadata.distribution("nvidia-pytriton").locate_file("")))
    assert environment["LD_LIBRARY_PATH"].endswith(":/inherited")
    assert (environment["ENGINE_DIR"], environment["EXECUTOR"]) == ("/engine", "scripted")


def test_the_clients_key_is_not_given_to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    assert "API_KEY" not in triton_server.environment(StackSettings(), Path("/engine"))
