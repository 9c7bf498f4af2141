"""Which of Triton's services a stack opens, and where they listen."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from launcher.local.errors import PreflightError
from launcher.local.frontend_process import frontend_environment
from launcher.local.preflight import run_preflight
from launcher.local.triton_wheel import tritonserver_command
from launcher.ports import free_ports
from launcher.settings import StackSettings
from launcher.triton_access import MANAGEMENT_APIS, TritonAddresses, closing_arguments


def test_management_apis_are_closed_by_default() -> None:
    line = tritonserver_command(StackSettings(), Path("/backends"))
    apis = ",".join(MANAGEMENT_APIS)
    assert len([part for part in line if part.startswith(f"--http-restricted-api={apis}:")]) == 1
    assert len([part for part in line if part.startswith(f"--grpc-restricted-protocol={apis}:")]) == 1


def test_headers_that_open_an_api_cannot_be_sent() -> None:
    http, grpc = closing_arguments()
    assert "\n" in http.partition("=")[2]
    name = grpc.partition(":")[2].partition("=")[0]
    assert name != name.lower()


def test_open_apis_are_not_restricted() -> None:
    settings = StackSettings(triton_open_apis="statistics, model-config")
    line = tritonserver_command(settings, Path("/backends"))
    assert not [part for part in line if "statistics" in part or "model-config" in part]
    assert closing_arguments(MANAGEMENT_APIS) == []


def test_unknown_api_is_refused() -> None:
    with pytest.raises(ValidationError, match="triton_open_apis"):
        StackSettings(triton_open_apis="statistic")


def test_private_stack_uses_sockets_in_the_run_directory(tmp_path: Path) -> None:
    settings = StackSettings(run_dir=tmp_path, triton_inference="private", port=1234, triton_grpc_port=2222)
    folder = tmp_path / "sockets" / "1234"
    line = tritonserver_command(settings, Path("/backends"))
    assert f"--http-address=unix:{folder}/http" in line
    assert f"--grpc-address=unix:{folder}/grpc" in line
    assert "--metrics-address=127.0.0.1" in line
    assert frontend_environment(settings)["TRITON_GRPC_URL"] == f"unix:{folder}/grpc:2222"


def test_sockets_of_a_server_that_has_ended_are_removed(tmp_path: Path) -> None:
    addresses = TritonAddresses(8000, 8001, tmp_path)
    addresses.remove_sockets()
    for name in ("http", "grpc:8001", "another"):
        (tmp_path / name).touch()
    addresses.remove_sockets()
    assert [path.name for path in tmp_path.iterdir()] == ["another"]
    TritonAddresses(8000, 8001).remove_sockets()


def test_run_directory_whose_path_is_too_long_for_a_socket_is_reported(tmp_path: Path) -> None:
    http, grpc, metrics, port = free_ports(4)
    settings = StackSettings(
        run_dir=tmp_path / ("x" * 100),
        triton_inference="private",
        executor="scripted",
        port=port,
        triton_http_port=http,
        triton_grpc_port=grpc,
        triton_metrics_port=metrics,
    )
    with pytest.raises(PreflightError, match="too long for a socket"):
        run_preflight(settings)
