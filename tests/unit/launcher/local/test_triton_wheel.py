"""The tritonserver of the wheel: backends assembled once per interpreter, and a server on loopback only."""

from __future__ import annotations

import sys
import threading
from importlib import metadata
from pathlib import Path

import pytest

from launcher.local import triton_wheel
from launcher.local.errors import PreflightError
from launcher.settings import StackSettings

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = "triton_python_backend_stub"


@pytest.fixture
def server_root(tmp_path: Path) -> Path:
    """The layout of the wheel's server, with tiny files."""
    root = tmp_path / "tritonserver"
    backend = root / "backends" / "python"
    (backend / "__pycache__").mkdir(parents=True)
    (backend / "libtriton_python.so").write_bytes(b"library")
    stub = root / "python_backend_stubs" / PYTHON / STUB
    stub.parent.mkdir(parents=True)
    stub.write_bytes(b"stub")
    stub.chmod(0o755)
    return root


def contents(backends: Path) -> set[str]:
    return {path.relative_to(backends).as_posix() for path in backends.rglob("*")}


def test_backends_contain_the_stub_of_this_python(tmp_path: Path, server_root: Path) -> None:
    backends = triton_wheel.prepare_backends(tmp_path / "run", server_root)
    assert contents(backends) == {"python", "python/libtriton_python.so", f"python/{STUB}"}
    assert (backends / "python" / STUB).stat().st_mode & 0o100
    assert PYTHON in backends.name


def test_existing_backends_are_reused(tmp_path: Path, server_root: Path) -> None:
    first = triton_wheel.prepare_backends(tmp_path / "run", server_root)
    (server_root / "backends" / "python" / "libtriton_python.so").unlink()
    assert triton_wheel.prepare_backends(tmp_path / "run", server_root) == first
    assert len(contents(first)) == 3


def test_concurrent_starts_assemble_the_same_folder(tmp_path: Path, server_root: Path) -> None:
    folders: list[Path] = []
    barrier = threading.Barrier(4)

    def start() -> None:
        barrier.wait(10)
        folders.append(triton_wheel.prepare_backends(tmp_path / "run", server_root))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(folders) == 4
    assert len(set(folders)) == 1
    assert len(contents(folders[0])) == 3
    assert [path.name for path in folders[0].parent.iterdir()] == [folders[0].name]  # no drafts are left


def test_failed_preparation_raises_and_leaves_no_draft(tmp_path: Path, server_root: Path) -> None:
    (server_root / "backends" / "python" / "libtriton_python.so").unlink()
    (server_root / "backends" / "python" / "libtriton_python.so").symlink_to("nowhere")
    with pytest.raises(OSError, match="libtriton_python"):
        triton_wheel.prepare_backends(tmp_path / "run", server_root)
    assert list((tmp_path / "run" / "triton").iterdir()) == []


def test_python_without_a_stub_in_the_wheel_is_reported(tmp_path: Path, server_root: Path) -> None:
    (server_root / "python_backend_stubs" / PYTHON / STUB).unlink()
    with pytest.raises(PreflightError, match=r"3\.10, 3\.11 or 3\.12"):
        triton_wheel.prepare_backends(tmp_path / "run", server_root)


def test_missing_wheel_is_reported_with_the_install_command() -> None:
    with pytest.raises(PreflightError, match="make install"):
        triton_wheel.find_server_root("a-wheel-that-does-not-exist")


def test_installed_wheel_contains_server_library_and_stub() -> None:
    root = triton_wheel.find_server_root()
    assert (root / "bin" / "tritonserver").is_file()
    assert (root / "backends" / "python" / "libtriton_python.so").is_file()
    assert (root / "python_backend_stubs" / PYTHON / STUB).is_file()


def test_server_listens_on_loopback_and_the_configured_ports() -> None:
    settings = StackSettings(triton_http_port=1111, triton_grpc_port=2222, triton_metrics_port=3333)
    command = triton_wheel.tritonserver_command(settings, Path("/backends"))
    for service, port in (("http", 1111), ("grpc", 2222), ("metrics", 3333)):
        assert f"--{service}-address=127.0.0.1" in command
        assert f"--{service}-port={port}" in command


def test_two_servers_use_different_shared_memory_names() -> None:
    prefixes = {triton_wheel.new_shared_memory_prefix(StackSettings()) for _ in range(2)}
    assert len(prefixes) == 2
    for prefix in prefixes:
        command = triton_wheel.tritonserver_command(StackSettings(), Path("/backends"), shared_memory_prefix=prefix)
        assert f"--backend-config=python,shm-region-prefix-name={prefix}" in command


def test_regions_of_this_launcher_alone_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, others = (triton_wheel.new_shared_memory_prefix(StackSettings()) for _ in range(2))
    for name in (f"{ours}1", f"{ours}2", f"{others}1", "psm_of_another_program"):
        (tmp_path / name).touch()
    triton_wheel.remove_shared_memory(ours, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"{others}1", "psm_of_another_program"])


def test_regions_that_others_can_read_are_made_private(tmp_path: Path) -> None:
    ours, other = tmp_path / "triton_completions_8001_1", tmp_path / "psm_of_another_program"
    for path in (ours, other):
        path.touch()
        path.chmod(0o644)
    triton_wheel.make_shared_memory_private(tmp_path)
    assert (ours.stat().st_mode & 0o777, other.stat().st_mode & 0o777) == (0o600, 0o644)


def test_stubs_run_this_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/somewhere")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/inherited")
    environment = triton_wheel.environment(StackSettings(executor="scripted"), Path("/engine"))
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/somewhere"
    assert environment["LD_LIBRARY_PATH"].startswith(str(metadata.distribution("nvidia-pytriton").locate_file("")))
    assert environment["LD_LIBRARY_PATH"].endswith(":/inherited")
    assert (environment["ENGINE_DIR"], environment["EXECUTOR"]) == ("/engine", "scripted")


def test_api_key_is_not_passed_to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    assert "API_KEY" not in triton_wheel.environment(StackSettings(), Path("/engine"))
