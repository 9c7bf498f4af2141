"""Settings of the front end, read once at start from its environment."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, HttpUrl, model_validator
from pydantic_settings import NoDecode
from typing_extensions import Self

from llm_pipeline.protocol.executor_names import ExecutorName
from llm_pipeline.protocol.tensors import ENSEMBLE_MODEL
from llm_pipeline.runtime.program_settings import ProgramSettings

MIB = 1024 * 1024


@dataclass(frozen=True)
class HashedKey:
    """An API key of which only the SHA-256 is kept, so that no dump of the settings can show it."""

    sha256: str  # hexadecimal, lower case

    @classmethod
    def of(cls, plain: str) -> HashedKey:
        return cls(hashlib.sha256(plain.encode()).hexdigest())


def _hashed(value: Any) -> Any:
    return HashedKey.of(value) if isinstance(value, str) else value


def _split_names(value: Any) -> Any:
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


class FrontendSettings(ProgramSettings):
    """One field per environment variable of the same name in capitals. A bad value stops the start with its name."""

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(9000, ge=0, le=65535, description="Port to listen on; 0 picks a free one")
    frontend_workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes of the front end; limits and metrics are those of all together",
    )
    public_url: HttpUrl | None = Field(
        None,
        description="Base of the URLs in answers ($schema, Link), such as https://api.example.com; "
        "left out: taken from each request's Host header",
    )

    backend: Literal["triton", "fake"] = Field(
        "triton",
        description="Source of completions: Triton, or a fake that returns fixed text, for work on clients",
    )
    triton_grpc_port: int = Field(8001, ge=1, le=65535, description="Triton's gRPC port on the loopback address")
    triton_grpc_url: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)] = Field(
        (),
        description="gRPC address of Triton as host:port, or those of several, comma separated, that share the load; "
        "left out: the loopback address and TRITON_GRPC_PORT",
    )
    triton_model: str = Field(ENSEMBLE_MODEL, description="The Triton model that completes prompts")
    deployment: Path | None = Field(
        None,
        description="TOML file of several models (docs/models.md), in place of MODEL_NAME, ENGINE_DIR and the like",
    )
    model_name: str = Field("smollm2-135m-instruct", min_length=1, description="Name under which the model is served")
    model_aliases: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)] = Field(
        (), description="Further names of the same model, comma separated"
    )
    engine_dir: Path | None = Field(None, description="Engine directory, for what /models tells about its limits")
    executor: ExecutorName | None = Field(None, description="What makes the tokens, for what /models tells about it")
    max_model_len: int | None = Field(
        None, ge=2, description="The context in tokens that /models tells, where the engine's manifest can't be read"
    )

    auth: Literal["on", "off"] = Field("on", description="off: no API key is needed; for closed networks only")
    api_key: Annotated[HashedKey | None, NoDecode, BeforeValidator(_hashed)] = Field(
        None, description="One API key that may use everything; hashed as soon as it is read"
    )
    api_keys_file: Path | None = Field(
        None,
        description="JSON file with a list of {name, sha256, models?, requests_per_minute?, expires?}; "
        "reloaded when it changes",
    )
    metrics_needs_key: bool = Field(False, description="Whether /metrics needs an API key")

    max_body_bytes: int = Field(4 * MIB, ge=1024, description="Largest request body in bytes; more is a 413")
    max_choices: int = Field(128, ge=1, description="Most choices of one request: its prompts times n")
    max_in_flight: int = Field(512, ge=1, description="Most choices that may be in work at once; more is a 429")
    strict_fields: bool = Field(False, description="Refuse request fields that are not known instead of ignoring them")

    request_timeout_s: float = Field(
        600.0, gt=0, description="Seconds until a request ends with a 504; a request may ask for less by header"
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, description="Seconds that running requests have to finish after SIGTERM before they are stopped"
    )
    client_write_timeout_s: float = Field(
        30.0, gt=0, description="Seconds without reading after which a client's connection is cut off"
    )
    keepalive_s: float = Field(15.0, gt=0, description="Seconds of silence in a stream before a comment is sent")
    health_check_interval_s: float = Field(1.0, gt=0, description="Seconds between two looks at whether Triton is up")
    triton_unresponsive_timeout_s: float = Field(
        15.0,
        gt=0,
        description="Seconds without a token or another sign of Triton after which what is in flight ends with a 503",
    )
    idle_probe_interval_s: float = Field(
        60.0, gt=0, description="Seconds without a token after which an idle engine is tried again"
    )

    grpc_experiments: str = Field(
        "-event_engine_client",
        description="Switches of the gRPC library. The default has connections read by one thread in place of two, "
        "for a fifth less CPU; `none` leaves gRPC as it is",
    )

    log_format: Literal["console", "json"] = Field("console", description="How log lines are written")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least level that is logged"
    )

    @model_validator(mode="after")
    def _has_keys_unless_open(self) -> Self:
        if self.auth == "on" and self.api_key is None and self.api_keys_file is None:
            raise ValueError("set API_KEY or API_KEYS_FILE, or AUTH=off to serve everybody who can reach the port")
        return self

    @property
    def triton_addresses(self) -> tuple[str, ...]:
        """host:port of the gRPC service of each Triton."""
        return self.triton_grpc_url or (f"127.0.0.1:{self.triton_grpc_port}",)

    @property
    def most_choices(self) -> int:
        """Choices one request may have: a request that can never be admitted is refused, not queued for ever."""
        return min(self.max_choices, self.max_in_flight)
