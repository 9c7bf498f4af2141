"""Settings of the front end, read from its environment once, at start."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, HttpUrl, SecretStr, model_validator
from pydantic_settings import NoDecode
from typing_extensions import Self

from llm_pipeline.protocol.executor_names import ExecutorName
from llm_pipeline.protocol.tensors import ENSEMBLE_MODEL
from llm_pipeline.runtime.program_settings import HeaderSecret, ProgramSettings

KIB = 1024
MIB = 1024 * KIB
_DEFAULT_BODY_BYTES_IN_FLIGHT = 64 * MIB
_SHORTEST_SECRET = 16  # characters
ANY_ORIGIN = "*"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([^/?#@\s*\[\]:,]+|\[[0-9a-f:.]+\])(:\d{1,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}  # which browsers leave out


@dataclass(frozen=True)
class HashedKey:
    """An API key of which only the SHA-256 is stored: a dump of the settings does not reveal it."""

    sha256: str  # hexadecimal, lower case

    @classmethod
    def of(cls, plain: str) -> HashedKey:
        """Hashes a key as clients send it."""
        return cls(hashlib.sha256(plain.encode()).hexdigest())


def _hashed(value: Any) -> Any:
    return HashedKey.of(value) if isinstance(value, str) else value


def _split_names(value: Any) -> Any:
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


def _as_switch(value: Any) -> Any:
    """Accepts the values of a Boolean setting, which this one used to be."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str):
        return {"true": "on", "1": "on", "false": "off", "0": "off"}.get(value.lower(), value)
    return value


def _check_networks(addresses: tuple[str, ...]) -> tuple[str, ...]:
    for address in addresses:
        if address != "*":
            ipaddress.ip_network(address)  # raises ValueError
    return addresses


def _as_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """The origins as browsers send them."""
    return tuple(_as_origin(origin.lower()) for origin in origins)


def _as_origin(origin: str) -> str:
    if origin != ANY_ORIGIN and not _ORIGIN.fullmatch(origin):
        raise ValueError(f"{origin} is not an origin. Write scheme://host or scheme://host:port, without a path")
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition(":")[0], "/"))


def _check_redis_url(url: SecretStr) -> SecretStr:
    if not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("Write redis://HOST:PORT/DATABASE, rediss:// for TLS, or unix:///PATH")
    try:
        urlsplit(url.get_secret_value()).port  # noqa: B018 - raises for one that is no number
    except ValueError:
        # Not the library's message: what follows an unquoted / in a password is a port to it.
        raise ValueError("It has an invalid host or port. Percent-encode special characters of the password") from None
    return url


# It may contain a password.
RedisUrl = Annotated[SecretStr, AfterValidator(_check_redis_url)]


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class FrontendSettings(ProgramSettings):
    """One field per environment variable, which has its name in capitals. An invalid value prevents the start."""

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(9000, ge=0, le=65535, description="Port to listen on; 0 picks a free one")
    frontend_workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes of the front end; limits and metrics apply to all of them together",
    )
    public_url: HttpUrl | None = Field(
        None,
        description="Base URL of links in responses ($schema, Link), such as https://api.example.com, or "
        "https://example.com/llm behind a proxy that removes /llm; unset: taken from the Host header of each request",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)] = Field(
        (),
        description="Host names, without a port, that requests may be sent to, comma separated; `*` is any. Others get "
        "a 421, except health checks. Unset: if HOST is a loopback address, its names and that of PUBLIC_URL; "
        "otherwise any",
    )
    trusted_proxies: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_split_names), AfterValidator(_check_networks)
    ] = Field(
        (),
        description="Addresses or networks of proxies, comma separated, whose X-Forwarded-Proto, X-Forwarded-For and "
        "X-Forwarded-Prefix headers are believed, so that links begin with https and with the path that the proxy "
        "removes; `*` is any client. Unset: the headers are ignored",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names), AfterValidator(_as_origins)] = (
        Field(
            (),
            description="Origins (https://app.example.com), comma separated, whose web pages may use the API from a "
            "browser; `*` is any page. Unset: only pages of this server",
        )
    )

    backend: Literal["triton", "fake"] = Field(
        "triton",
        description="Source of completions; `fake` serves fixed text without Triton or an engine, to develop clients",
    )
    triton_grpc_port: int = Field(8001, ge=1, le=65535, description="Triton's gRPC port on the loopback address")
    triton_grpc_url: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)] = Field(
        (),
        description="gRPC addresses (host:port) of one or more Tritons that share the load, comma separated; "
        "unset: the loopback address with TRITON_GRPC_PORT",
    )
    pool_policy: Literal["least_outstanding", "prefix"] = Field(
        "least_outstanding",
        description="Which of several Tritons gets a request: the one with the fewest; or with `prefix` the one that "
        "has the beginning of its prompt in the prefix cache, unless that one has too many (POOL_LOAD_BOUND)",
    )
    pool_load_bound: float = Field(
        1.25,
        ge=1,
        allow_inf_nan=False,
        description="With POOL_POLICY=prefix: most requests of a Triton, as a multiple of the average, rounded up; "
        "more go to another one. Higher: more hits in the prefix cache, less even load",
    )
    pool_prefix_bytes: int = Field(
        4096,
        ge=128,
        le=MIB,
        description="With POOL_POLICY=prefix: bytes of the prompt (4 for each token id) that select its Triton, or the "
        "largest power of two of a shorter prompt. Keep it above the length of system prompts",
    )
    triton_secret: HeaderSecret | None = Field(
        None,
        description="Secret that Triton's inference API needs, sent with each call; the GPU launcher's TRITON_SECRET",
    )
    triton_model: str = Field(ENSEMBLE_MODEL, description="Name of the Triton model that completes prompts")
    deployment: Path | None = Field(
        None,
        description="TOML file that defines one or more models (docs/models.md); replaces MODEL_NAME, MODEL_ALIASES, "
        "TRITON_MODEL and MAX_MODEL_LEN",
    )
    model_name: str = Field("smollm2-135m-instruct", min_length=1, description="Name of the model in the API")
    model_aliases: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)] = Field(
        (), description="Additional names of the model, comma separated"
    )
    engine_dir: Path | None = Field(None, description="Engine directory, for the limits in /v1/models")
    executor: ExecutorName | None = Field(None, description="Executor of the engine, for /v1/models")
    chat_template: Path | None = Field(
        None,
        description="Jinja file with the model's chat template (docs/chat-templates.md), in place of the engine's; a "
        "deployment file has one for each model",
    )
    max_model_len: int | None = Field(
        None, ge=2, description="Context length in tokens for /v1/models, if the engine's manifest cannot be read"
    )

    auth: Literal["on", "off"] = Field("on", description="`off` requires no API key; for closed networks only")
    api_key: Annotated[HashedKey | None, NoDecode, BeforeValidator(_hashed)] = Field(
        None, description="An API key with access to every model; only its hash is stored"
    )
    api_keys_file: Path | None = Field(
        None,
        description="JSON file of hashed keys with their models and limits (docs/keys.md), which `triton-completions "
        "keys` edits; reloaded when it changes",
    )
    api_keys_grace_s: float = Field(
        60.0,
        ge=0,
        description="Seconds that the previous keys stay valid while API_KEYS_FILE cannot be read or is invalid; a "
        "missing file revokes its keys within 2 seconds",
    )
    limits_url: RedisUrl | None = Field(
        None,
        description="Redis (redis://, rediss:// or unix://) in which several front ends count the requests, tokens and "
        "choices of keys together, and their usage. Unset: each front end counts for itself",
    )
    limits_on_failure: Literal["open", "closed"] = Field(
        "open",
        description="While LIMITS_URL does not answer: `open` counts in this front end alone, `closed` answers "
        "requests of keys with such limits with a 503",
    )
    usage_dir: Path | None = Field(
        None,
        description="Directory for the usage of keys, one file a day (`triton-completions usage`); from it, the day's "
        "budgets survive a restart. Unset: usage is only in /metrics. With LIMITS_URL, usage is in Redis instead",
    )
    usage_days: int = Field(90, ge=1, description="Days that usage is kept")
    tenant_secret: SecretStr | None = Field(
        None,
        description="Secret from which the engine's names of keys are derived (16 characters or more). Front ends that "
        "share a Triton need the same one to share a key's turn in the queue and its prefix cache; unset: a new one at "
        "each start",
    )
    metrics_needs_key: Annotated[Literal["auto", "on", "off"], BeforeValidator(_as_switch)] = Field(
        "auto",
        description="Whether /metrics requires an API key; `auto`: unless HOST is a loopback address. /metrics/engine, "
        "which has five numbers and no names, requires one only with `on`",
    )

    max_body_bytes: int = Field(4 * MIB, ge=1024, description="Maximum bytes of a request body; larger ones get a 413")
    max_body_bytes_in_flight: int | None = Field(
        None,
        ge=2048,
        description="Maximum bytes of all bodies that are being received or parsed, for each worker; one API key may "
        "hold half of them; more get a 503; unset: 64 MiB, or 4 times MAX_BODY_BYTES if that is more",
    )
    max_head_bytes: int = Field(
        64 * KIB, ge=1024, description="Maximum bytes of a request line with its headers; larger ones get a 431"
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        description="Maximum number of connections for each worker; beyond it, the oldest without a request are "
        "closed; unset: what the limit of open files allows, at most 16384",
    )
    max_choices: int = Field(128, ge=1, description="Maximum number of choices per request: prompts times n")
    max_in_flight: int = Field(512, ge=1, description="Maximum number of choices in flight; more get a 429")
    max_in_flight_per_key: int | None = Field(
        None,
        ge=1,
        description="Maximum number of choices in flight for each API key without a `max_in_flight` of its own. Unset: "
        "with several keys, a key may hold no more places than are free, so one key gets half of MAX_IN_FLIGHT at most",
    )
    chat_parse_special_tokens: bool = Field(
        False,
        description="Parse the spelling of a special token in a chat's messages as that token. Off, so that text of a "
        "user cannot end its message",
    )
    chat_tool_format: Literal["auto", "hermes", "llama3", "mistral", "mistral_args", "generic"] = Field(
        "auto",
        description="The way in which models write calls of functions in a chat. `auto`: what a model's template shows",
    )
    chat_separate_reasoning: bool = Field(
        True,
        description="Put what a model writes between the markers of reasoning, such as `<think>`, into "
        "`reasoning_content` instead of `content`",
    )
    strict_fields: bool = Field(False, description="Reject unknown request fields with a 400 instead of ignoring them")

    request_timeout_s: float = Field(
        600.0, gt=0, description="Timeout of a request in seconds, after which it gets a 504; a header may lower it"
    )
    head_timeout_s: float = Field(
        15.0, gt=0, description="Seconds in which a request line with its headers must arrive; later ones get a 408"
    )
    body_timeout_s: float = Field(
        30.0, gt=0, description="Seconds without a byte of an incomplete body after which its request gets a 408"
    )
    idle_timeout_s: int = Field(
        75,
        ge=1,
        description="Seconds after which a connection without a request is closed; keep it longer than that of a "
        "load balancer",
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, description="Seconds after SIGTERM in which running requests may finish before they are cancelled"
    )
    client_write_timeout_s: float = Field(
        30.0, gt=0, description="Seconds after which the connection of a client that reads nothing is closed"
    )
    keepalive_s: float = Field(15.0, gt=0, description="Seconds without an event after which a stream sends a comment")
    health_check_interval_s: float = Field(1.0, gt=0, description="Seconds between two readiness checks of Triton")
    triton_unresponsive_timeout_s: float = Field(
        15.0,
        gt=0,
        description="Seconds without a token or a passed check after which requests in flight end with a 503",
    )
    stage_timeout_s: float = Field(
        5.0,
        gt=0,
        description="Seconds without an answer from preprocess, decode or postprocess, while requests wait, after "
        "which the model is not ready",
    )
    engine_stall_timeout_s: float = Field(
        6.0,
        gt=0,
        description="Seconds without a step of an engine with work after which the model is not ready; raise it if "
        "steps of a large model on few cores take longer",
    )
    idle_probe_interval_s: float = Field(
        60.0, gt=0, description="Seconds without a token after which an idle engine gets a warm-up probe"
    )

    use_channels: bool = Field(
        True,
        description="Receive the tokens of all requests over one channel for each Triton; off: one response stream "
        "per request",
    )
    grpc_experiments: str = Field(
        "-event_engine_client",
        description="Value of GRPC_EXPERIMENTS; the default reads connections with one thread instead of two, which "
        "uses 20 % less CPU; `none` leaves gRPC's defaults",
    )

    log_format: Literal["console", "json"] = Field("console", description="Format of log lines")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged")

    @model_validator(mode="after")
    def _has_keys_unless_open(self) -> Self:
        if self.auth == "on" and self.api_key is None and self.api_keys_file is None:
            raise ValueError("Set API_KEY or API_KEYS_FILE, or AUTH=off to serve every client that can reach the port")
        return self

    @model_validator(mode="after")
    def _has_room_for_two_bodies(self) -> Self:
        limit = self.max_body_bytes_in_flight
        if limit is not None and limit < 2 * self.max_body_bytes:
            raise ValueError("Set MAX_BODY_BYTES_IN_FLIGHT to at least twice MAX_BODY_BYTES: a key may hold half of it")
        return self

    @property
    def body_bytes_in_flight(self) -> int:
        """Maximum bytes of all bodies that are being received or parsed."""
        return self.max_body_bytes_in_flight or max(_DEFAULT_BODY_BYTES_IN_FLIGHT, 4 * self.max_body_bytes)

    @model_validator(mode="after")
    def _has_long_secret(self) -> Self:
        if self.tenant_secret is not None and len(self.tenant_secret.get_secret_value()) < _SHORTEST_SECRET:
            raise ValueError(f"TENANT_SECRET must have at least {_SHORTEST_SECRET} characters")
        return self

    @property
    def tenant_key(self) -> bytes | None:
        """TENANT_SECRET as bytes."""
        return None if self.tenant_secret is None else self.tenant_secret.get_secret_value().encode()

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can reach the port."""
        return is_loopback(self.host)

    @property
    def protects_metrics(self) -> bool:
        """Whether /metrics requires an API key."""
        return not self.is_loopback if self.metrics_needs_key == "auto" else self.metrics_needs_key == "on"

    @property
    def protects_engine_metrics(self) -> bool:
        """Whether /metrics/engine requires an API key: an endpoint picker sends none."""
        return self.metrics_needs_key == "on"

    @property
    def triton_addresses(self) -> tuple[str, ...]:
        """host:port of the gRPC service of each Triton."""
        return self.triton_grpc_url or (f"127.0.0.1:{self.triton_grpc_port}",)

    @property
    def max_choices_per_request(self) -> int:
        """Maximum number of choices per request: a request that could never be admitted is rejected at once."""
        return min(self.max_choices, self.max_in_flight)
