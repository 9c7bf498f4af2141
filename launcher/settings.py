"""Settings of the local stack, from the environment. What Triton's models and the front end read is in theirs."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from llm_pipeline.protocol.executor_names import ExecutorName
from llm_pipeline.runtime.program_settings import ProgramSettings

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent


class StackSettings(ProgramSettings):
    """Ports, names and folders of one stack. Two stacks run side by side when all four ports differ."""

    host: str = Field("127.0.0.1", description="Address that the front end listens on")
    port: int = Field(9000, ge=1, le=65535, description="Port of the front end")
    frontend_workers: int = Field(
        1, ge=1, le=64, description="Processes of the front end; limits and metrics are those of all together"
    )
    triton_http_port: int = Field(8000, ge=1, le=65535, description="Port of Triton's HTTP service, on loopback")
    triton_grpc_port: int = Field(8001, ge=1, le=65535, description="Port of Triton's gRPC service, on loopback")
    triton_metrics_port: int = Field(8002, ge=1, le=65535, description="Port of Triton's own metrics, on loopback")
    api_key: str | None = Field(
        None, description="The key that clients send; without one, a key is made and kept in RUN_DIR/api-key"
    )
    api_keys_file: Path | None = Field(None, description="JSON file of hashed keys, in place of API_KEY")
    deployment: Path | None = Field(
        None,
        description="TOML file of several models (docs/models.md), in place of MODEL_NAME, ENGINE_DIR and the like",
    )
    model_name: str = Field("smollm2-135m-instruct", description="Name under which the model is served")
    executor: ExecutorName = Field(
        "cpu", description="What makes the tokens: `cpu`, `tensorrt_llm` or `scripted`"
    )
    cpu_kv_cache_gib: float = Field(1.0, gt=0, description="cpu: size of the KV cache in GiB")
    cpu_f32_copy_mib: int = Field(
        1536,
        ge=0,
        description="cpu: a copy of fp16 weights in f32 makes steps of many tokens faster; kept if it takes at most so "
        "many MiB (8 bytes for each weight)",
    )
    engine_dir: Path | None = Field(None, description="Engine directory; without one, the default engine is built")
    run_dir: Path = Field(
        REPOSITORY_ROOT / ".run", description="Where engines, logs and the made key are kept (.run in the repository)"
    )
    triton_hang_timeout_s: float = Field(
        10.0, ge=2, description="A Triton that runs and does not answer for so long is started again, in s"
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, description="Seconds that running requests have to finish after SIGTERM before they are stopped"
    )
    start_timeout_s: float = Field(240.0, gt=0, description="How long a start may take before it is given up, in s")

    @property
    def ports(self) -> dict[str, int]:
        """Each port by the name of its setting."""
        return {
            "PORT": self.port,
            "TRITON_HTTP_PORT": self.triton_http_port,
            "TRITON_GRPC_PORT": self.triton_grpc_port,
            "TRITON_METRICS_PORT": self.triton_metrics_port,
        }
