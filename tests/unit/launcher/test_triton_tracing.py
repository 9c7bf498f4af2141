"""Triton's arguments for traces: from OpenTelemetry's variables alone, and none without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.gpu.launch import LaunchSettings, command
from launcher.local.errors import PreflightError
from launcher.local.preflight import run_preflight
from launcher.local.triton_wheel import tritonserver_command
from launcher.settings import StackSettings
from launcher.triton_tracing import trace_arguments
from llm_pipeline.runtime.tracing_settings import TracingSettings

URL = "http://collector:4318"


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, None),
        ({"endpoint": URL}, f"{URL}/v1/traces"),
        ({"endpoint": f"{URL}/otlp/"}, f"{URL}/otlp/v1/traces"),
        ({"endpoint": URL, "traces_endpoint": "http://traces:1/in"}, "http://traces:1/in"),
        ({"endpoint": URL, "protocol": "grpc"}, None),
        ({"endpoint": URL, "protocol": "grpc", "traces_protocol": "http/protobuf"}, f"{URL}/v1/traces"),
    ],
)
def test_triton_exports_to_the_endpoint_by_http(variables: dict[str, str], url: str | None) -> None:
    values: dict[str, Any] = {f"otel_exporter_otlp_{name}": value for name, value in variables.items()}
    settings = TracingSettings(**values)
    arguments = trace_arguments(settings)
    if url is None:
        assert arguments == []
    else:
        assert f"--trace-config=opentelemetry,url={url}" in arguments
        assert "--trace-config=mode=opentelemetry" in arguments


def test_only_requests_of_the_front_end_are_traced() -> None:
    """A rate is one request in this many; the largest that Triton takes."""
    assert f"--trace-config=rate={2**31 - 1}" in trace_arguments(TracingSettings(otel_exporter_otlp_endpoint=URL))


@pytest.mark.parametrize(("name", "service"), [(None, "triton"), ("llama", "llama-triton")])
def test_triton_has_a_name_of_its_own(name: str | None, service: str) -> None:
    arguments = trace_arguments(TracingSettings(otel_exporter_otlp_endpoint=URL, otel_service_name=name))
    assert f"--trace-config=opentelemetry,resource=service.name={service}" in arguments


@pytest.mark.parametrize("endpoint", [None, URL])
def test_both_launchers_pass_the_arguments(monkeypatch: pytest.MonkeyPatch, endpoint: str | None) -> None:
    if endpoint:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    wanted = trace_arguments(TracingSettings())
    assert bool(wanted) == bool(endpoint)
    local = tritonserver_command(StackSettings(), Path("/backends"))
    gpu = command(LaunchSettings(engine_dir=Path("/engine")), "single", 1)
    for line in (local, gpu):
        assert [argument for argument in line if "trace" in argument and "trace-config" in argument] == wanted


def test_invalid_variables_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(PreflightError, match="OTEL_EXPORTER_OTLP_PROTOCOL: "):
        run_preflight(StackSettings())
