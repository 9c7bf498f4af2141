"""Settings of the local stack, from the environment. Triton's models and the front end have classes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from launcher.triton_access import ApiName, TritonAddresses
from llm_pipeline.protocol.executor_names import ExecutorName
from llm_pipeline.runtime.program_settings import ProgramSettings

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent  # of a checkout; site-packages if installed from a wheel
MODEL_REPOSITORY = REPOSITORY_ROOT / "model_repository"


def _split_names(value: Any) -> Any:
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


OpenApis = Annotated[tuple[ApiName, ...], NoDecode, BeforeValidator(_split_names)]


class StackSettings(ProgramSettings):
    """Ports, names and folders of one stack. Two stacks run side by side when all four ports differ."""

    host: str = Field("127.0.0.1", description="Address that the front end listens on")
    port: int = Field(9000, ge=1, le=65535, description="Port of the front end")
    frontend_workers: int = Field(
        1, ge=1, le=64, description="Front-end processes; limits and metrics apply to all of them together"
    )
    triton_http_port: int = Field(8000, ge=1, le=65535, description="Port of Triton's HTTP service, on loopback")
    triton_grpc_port: int = Field(8001, ge=1, le=65535, description="Port of Triton's gRPC service, on loopback")
    triton_metrics_port: int = Field(8002, ge=1, le=65535, description="Port of Triton's metrics, on loopback")
    triton_inference: Literal["open", "private"] = Field(
        "open",
        description="Who may use Triton's own inference API: `open` is every program on this machine, `private` only "
        "this user's, over sockets in RUN_DIR instead of TRITON_HTTP_PORT and TRITON_GRPC_PORT",
    )
    triton_open_apis: OpenApis = Field(
        (),
        description="Triton's management APIs that are open, comma separated: shared-memory, model-repository, trace, "
        "logging, statistics, model-config. Unset: none",
    )
    api_key: str | None = Field(
        None, description="API key that clients send. Unset: a key is generated and stored in RUN_DIR/api-key"
    )
    api_keys_file: Path | None = Field(
        None,
        description="JSON file of hashed API keys, used instead of API_KEY. Unset: "
        "RUN_DIR/api-keys.json, beside API_KEY",
    )
    deployment: Path | None = Field(
        None,
        description="TOML file of several models (docs/models.md), used instead of MODEL_NAME and ENGINE_DIR",
    )
    model: Path | None = Field(
        None,
        description="GGUF file or Hugging Face directory to serve, under its own name unless MODEL_NAME is set. Its "
        "CPU engine is built if it does not exist yet",
    )
    model_name: str = Field("smollm2-135m-instruct", description="Name under which the model is served")
    executor: ExecutorName = Field(
        "cpu", description="What generates the tokens: `cpu`, `tensorrt_llm`, `tensorrt_llm_pytorch` or `scripted`"
    )
    cpu_kv_cache_gib: float = Field(1.0, gt=0, description="cpu: size of the KV cache in GiB")
    cpu_f32_copy_mib: int = Field(
        1536,
        ge=0,
        description="cpu: limit in MiB of an f32 copy of fp16 weights, which speeds up steps of many tokens. A larger "
        "model (8 bytes a weight) runs without it",
    )
    engine_dir: Path | None = Field(
        None, description="Engine directory. Unset: an engine is built from MODEL, or from the default model"
    )
    run_dir: Path = Field(Path(".run"), description="Directory for engines, logs and the generated API key")
    triton_hang_timeout_s: float = Field(
        10.0, ge=2, description="Seconds without an answer after which Triton is restarted"
    )
    drain_timeout_s: float = Field(
        30.0,
        ge=0,
        description="Seconds that running requests may take to finish after SIGTERM before they are cancelled",
    )
    start_timeout_s: float = Field(240.0, gt=0, description="Seconds that a start may take before it is abandoned")

    @property
    def keys_file(self) -> Path:
        """The file of hashed keys that the front end reads."""
        return self.api_keys_file or self.run_dir.absolute() / "api-keys.json"

    @property
    def usage_dir(self) -> Path:
        """Where the front end keeps the usage of keys unless USAGE_DIR is set."""
        return self.run_dir.absolute() / "usage"

    @property
    def triton_addresses(self) -> TritonAddresses:
        """Where the HTTP and gRPC services of Triton listen."""
        is_private = self.triton_inference == "private"
        socket_dir = self.run_dir.absolute() / "sockets" / str(self.port) if is_private else None
        return TritonAddresses(self.triton_http_port, self.triton_grpc_port, socket_dir)

    @property
    def ports(self) -> dict[str, int]:
        """Every port by the name of its setting."""
        return {
            "PORT": self.port,
            "TRITON_HTTP_PORT": self.triton_http_port,
            "TRITON_GRPC_PORT": self.triton_grpc_port,
            "TRITON_METRICS_PORT": self.triton_metrics_port,
        }
