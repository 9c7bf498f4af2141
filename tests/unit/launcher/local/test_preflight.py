"""Checks before a start: each finding names the problem and the remedy, and all are reported together."""

from __future__ import annotations

import os
import platform
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher import check_python
from launcher.local import preflight
from launcher.local.errors import PreflightError
from launcher.local.preflight import run_preflight
from launcher.memory import AvailableMemory
from launcher.ports import free_ports
from launcher.settings import StackSettings
from tests.support.sample_requests import write_manifest

MIB = 2**20


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StackSettings:
    """Settings of a stack that could start, on free ports."""
    for name in StackSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    names = ("port", "triton_http_port", "triton_grpc_port", "triton_metrics_port")
    ports: dict[str, Any] = dict(zip(names, free_ports(4), strict=True))
    set_memory(monkeypatch, mib=16_000)
    return StackSettings(run_dir=tmp_path, **ports)


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def set_memory(monkeypatch: pytest.MonkeyPatch, *, mib: int, limit: int | None = None) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: AvailableMemory(mib * MIB, limit and limit * MIB))


def findings(settings: StackSettings, **changed: Any) -> str:
    with pytest.raises(PreflightError) as caught:
        run_preflight(settings.model_copy(update=changed))
    return str(caught.value)


def test_tensorrt_llm_requires_an_engine_dir(settings: StackSettings, tmp_path: Path) -> None:
    assert "ENGINE_DIR" in findings(settings, executor="tensorrt_llm")
    engine_dir = write_manifest(tmp_path / "engine")
    run_preflight(settings.model_copy(update={"executor": "tensorrt_llm", "engine_dir": engine_dir}))


@pytest.mark.parametrize("executor", ["cpu", "tensorrt_llm", "scripted"])
def test_directory_without_an_engine_is_found_before_anything_starts(
    settings: StackSettings, tmp_path: Path, executor: str
) -> None:
    message = findings(settings, executor=executor, engine_dir=tmp_path / "nothing")
    assert f"No engine in {tmp_path / 'nothing'}: manifest.json is missing." in message
    assert "python -m build_engine build" in message


def test_model_that_does_not_exist_is_reported(settings: StackSettings) -> None:
    assert "MODEL=/no/such.gguf: there is no such file or directory" in findings(settings, model=Path("/no/such.gguf"))


def test_model_that_exists_passes(settings: StackSettings, tmp_path: Path) -> None:
    run_preflight(settings.model_copy(update={"model": tmp_path}))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"engine_dir": Path("an engine")}, "MODEL and ENGINE_DIR are both set"),
        ({"deployment": Path("deployment.toml")}, "MODEL and DEPLOYMENT are both set"),
        ({"executor": "tensorrt_llm"}, "MODEL is for the CPU engine"),
    ],
    ids=["ENGINE_DIR", "DEPLOYMENT", "EXECUTOR"],
)
def test_model_excludes_what_names_another_engine(
    settings: StackSettings, tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    assert message in findings(settings, model=tmp_path, **other)


def test_limit_of_a_container_is_named(settings: StackSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    set_memory(monkeypatch, mib=1500, limit=2048)
    message = findings(settings)
    assert "1500 MiB of memory are left of this container's or control group's 2048 MiB" in message
    assert "--memory" in message


def test_machine_that_meets_every_requirement_passes(settings: StackSettings) -> None:
    run_preflight(settings)


@pytest.mark.parametrize("name", ["PORT", "TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT"])
def test_busy_port_is_named_with_its_setting(settings: StackSettings, busy_port: int, name: str) -> None:
    message = findings(settings, **{name.lower(): busy_port})
    assert f"Port {busy_port} ({name}) is in use" in message
    assert f"`make serve {name}=...`" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may listen on every port")
def test_privileged_port_is_not_reported_as_busy(settings: StackSettings) -> None:
    assert "needs root privileges" in findings(settings, port=1)


def test_two_equal_ports_are_reported_with_all_four(settings: StackSettings) -> None:
    message = findings(settings, triton_http_port=settings.port)
    assert "Two of the ports are the same" in message
    assert f"PORT={settings.port}, TRITON_HTTP_PORT={settings.port}" in message


def test_all_findings_are_reported_together(
    settings: StackSettings, busy_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_memory(monkeypatch, mib=100)
    message = findings(settings, port=busy_port)
    assert len(message.splitlines()) == 2


def test_python_without_libpython_gets_the_install_command(
    settings: StackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_python, "libpython", lambda: None)
    message = findings(settings)
    assert "libpython" in message
    assert "make serve PYTHON=" in message


@pytest.mark.parametrize(
    ("executor", "kv_cache_gib", "available_mib", "is_enough"),
    [
        ("cpu", 1.0, 3500, True),
        ("cpu", 1.0, 3400, False),
        ("cpu", 0.5, 3000, True),
        ("cpu", 8.0, 10500, False),
        ("cpu", 8.0, 10700, True),
        ("scripted", 1.0, 600, True),
        ("scripted", 8.0, 600, True),
        ("scripted", 1.0, 400, False),
    ],
)
def test_required_memory_depends_on_executor_and_kv_cache(
    settings: StackSettings,
    monkeypatch: pytest.MonkeyPatch,
    executor: str,
    kv_cache_gib: float,
    available_mib: int,
    is_enough: bool,
) -> None:
    """The message proposes a lower CPU_KV_CACHE_GIB, which therefore has to help."""
    set_memory(monkeypatch, mib=available_mib)
    settings = settings.model_copy(update={"executor": executor, "cpu_kv_cache_gib": kv_cache_gib})
    if is_enough:
        run_preflight(settings)
    else:
        assert f"{available_mib} MiB of memory are free" in findings(settings)


def test_less_memory_is_required_without_the_f32_copy(settings: StackSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    set_memory(monkeypatch, mib=2500)
    assert "CPU_F32_COPY_MIB=0" in findings(settings)
    run_preflight(settings.model_copy(update={"cpu_f32_copy_mib": 0}))


def deployed(folder: Path, models: int, lines: str = "") -> Path:
    path = folder / "deployment.toml"
    path.write_text("".join(f'[[models]]\nname = "m{number}"\n{lines}\n' for number in range(models)))
    return path


@pytest.mark.parametrize(("available_mib", "is_enough"), [(8900, False), (9000, True)])
def test_models_share_the_memory_of_triton_and_front_end(
    settings: StackSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, available_mib: int, is_enough: bool
) -> None:
    set_memory(monkeypatch, mib=available_mib)
    settings = settings.model_copy(
        update={"executor": "cpu", "cpu_kv_cache_gib": 0.7, "deployment": deployed(tmp_path, models=3)}
    )
    if is_enough:
        run_preflight(settings)
    else:
        assert f"{available_mib} MiB of memory are free" in findings(settings)


def test_required_memory_includes_the_weights(
    settings: StackSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The weights are sparse files of the right length."""
    set_memory(monkeypatch, mib=8000)
    write_manifest(tmp_path)
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(1024 * MIB)
    run_preflight(settings.model_copy(update={"engine_dir": tmp_path}))
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(8 * 1024 * MIB)
    assert "8000 MiB of memory are free" in findings(settings, engine_dir=tmp_path)


@pytest.mark.parametrize(("models", "is_enough"), [(1, True), (3, True), (4, False)])
def test_required_shared_memory_grows_with_each_model(
    settings: StackSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: int, is_enough: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=96 * MIB))
    settings = settings.model_copy(update={"executor": "scripted", "deployment": deployed(tmp_path, models)})
    if is_enough:
        run_preflight(settings)
    else:
        assert "/dev/shm has 96 MiB free; Triton's Python backend needs 112 MiB" in findings(settings)


def test_too_little_shared_memory_is_reported(settings: StackSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10 * MIB))
    assert "/dev/shm has 10 MiB free" in findings(settings)


def test_missing_shared_memory_is_reported(settings: StackSettings, tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="/dev/shm is missing"):
        run_preflight(settings, shared_memory=tmp_path / "nothing")


def test_other_processor_architecture_is_reported(settings: StackSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "not for linux on aarch64" in findings(settings)


@pytest.mark.parametrize(("version", "is_fine"), [("2.34", False), ("2.35", True), ("2.39", True), ("3.0", True)])
def test_old_glibc_is_reported(
    settings: StackSettings, monkeypatch: pytest.MonkeyPatch, version: str, is_fine: bool
) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", version))
    if is_fine:
        run_preflight(settings)
    else:
        assert f"this system has {version}" in findings(settings)


def test_port_is_checked_on_the_address_that_will_listen(settings: StackSettings) -> None:
    """The port may be busy on all addresses, or only on one other than loopback."""
    with socket.create_server(("127.0.0.2", 0)) as server:
        port = server.getsockname()[1]
        assert f"Port {port} (PORT) is in use" in findings(settings, host="127.0.0.2", port=port)
        assert f"Port {port} (PORT) is in use" in findings(settings, host="0.0.0.0", port=port)
        run_preflight(settings.model_copy(update={"port": port}))


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"], ids=["another machine's", "no address"])
def test_foreign_or_invalid_host_is_reported(settings: StackSettings, host: str) -> None:
    assert f"HOST={host} is not an address of this machine" in findings(settings, host=host)
