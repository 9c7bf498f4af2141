"""OpenTelemetry's standard variables, as far as this project decides by them. Its SDK reads the others itself.

Traces are off unless an endpoint is set. The specification's default, an exporter to localhost:4318, would make every
installation without a collector drop spans.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, HttpUrl, SecretStr, ValidationError

from llm_pipeline.runtime.program_settings import ProgramSettings

_TRACES_PATH = "v1/traces"
_EXTRA = "opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http", "opentelemetry.exporter.otlp.proto.grpc"

Protocol = Literal["http/protobuf", "grpc"]


class TracingError(Exception):
    """Traces are requested and can't be exported."""


def _is_true(value: object) -> bool:
    """The specification's Boolean: anything but `true` is false."""
    return str(value).strip().lower() == "true"


class TracingSettings(ProgramSettings):
    """Where spans are sent, and whether. Variables of OpenTelemetry's specification, with its meanings."""

    otel_exporter_otlp_endpoint: HttpUrl | None = Field(
        None, description="URL of an OTLP collector, such as http://collector:4318. Unset: no traces (docs/tracing.md)"
    )
    otel_exporter_otlp_traces_endpoint: HttpUrl | None = Field(
        None, description="The same for traces alone, with its whole path, such as http://collector:4318/v1/traces"
    )
    otel_exporter_otlp_protocol: Protocol = Field(
        "http/protobuf", description="How spans are sent: `http/protobuf` or `grpc`. Triton can export by HTTP only"
    )
    otel_exporter_otlp_traces_protocol: Protocol | None = Field(
        None, description="The same for traces alone. Unset: OTEL_EXPORTER_OTLP_PROTOCOL"
    )
    otel_service_name: str | None = Field(
        None,
        description="Name of the front end in traces, and with `-triton` of Triton. Unset: triton-completions, triton",
    )
    # OpenTelemetry reads the next four itself. They are here for the lists of settings.
    otel_exporter_otlp_headers: SecretStr | None = Field(
        None, description="Headers of requests to the collector: name=value,name=value"
    )
    otel_resource_attributes: str | None = Field(
        None, description="Attributes of all spans: name=value,name=value, such as deployment.environment.name=prod"
    )
    otel_traces_sampler: str | None = Field(
        None,
        description="Which requests are traced, such as `parentbased_traceidratio`. Unset: `parentbased_always_on`, "
        "all but those whose client has decided otherwise",
    )
    otel_traces_sampler_arg: str | None = Field(None, description="Its argument, such as a ratio from 0 to 1")
    otel_traces_exporter: Literal["otlp", "none"] = Field("otlp", description="`none`: no traces")
    otel_sdk_disabled: Annotated[bool, BeforeValidator(_is_true)] = Field(False, description="`true`: no traces")
    otel_bsp_max_queue_size: int = Field(
        2048, ge=1, description="Spans of a front-end process that wait to be sent; more are dropped and counted"
    )

    @property
    def is_on(self) -> bool:
        """Whether traces are recorded."""
        endpoint = self.otel_exporter_otlp_traces_endpoint or self.otel_exporter_otlp_endpoint
        return endpoint is not None and self.otel_traces_exporter != "none" and not self.otel_sdk_disabled

    @property
    def protocol(self) -> Protocol:
        """How spans are sent."""
        return self.otel_exporter_otlp_traces_protocol or self.otel_exporter_otlp_protocol

    @property
    def http_url(self) -> str | None:
        """The URL that spans are sent to by HTTP; None if traces are off or use gRPC."""
        if not self.is_on or self.protocol != "http/protobuf":
            return None
        if self.otel_exporter_otlp_traces_endpoint is not None:
            return str(self.otel_exporter_otlp_traces_endpoint)
        return f"{str(self.otel_exporter_otlp_endpoint).rstrip('/')}/{_TRACES_PATH}"


def read_tracing_settings(*, needs_extra: bool = True) -> TracingSettings:
    """Returns the settings of the environment.

    Raises TracingError if one is invalid, or if traces are on and the packages of the extra are not installed.
    """
    try:
        settings = TracingSettings()
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc'])).upper()}: {item['msg']}" for item in error.errors()]
        raise TracingError("\n".join(problems)) from None  # without the input, which may have a password
    if settings.is_on and needs_extra and not _has_extra():
        raise TracingError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, and OpenTelemetry is not installed. Install it with "
            "`pip install 'triton-completions[tracing]'`, or set OTEL_SDK_DISABLED=true."
        )
    return settings


def _has_extra() -> bool:
    try:
        return all(find_spec(name) is not None for name in _EXTRA)
    except ModuleNotFoundError:  # of a parent package
        return False
