"""Settings of the Triton side, read once per backend process from its environment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class PipelineSettings(BaseSettings):
    """What preprocess, decode and postprocess need to know. A bad value stops the start with its name."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    engine_dir: Path = Field(description="Engine directory made by build_engine")
    executor: Literal["cpu", "scripted"] = Field(
        "cpu", description="What makes the tokens: the embedded CPU engine, or scripted tokens for load tests"
    )
    default_max_tokens: int = Field(16, ge=0, description="max_tokens of requests that give none; 0 fills the context")
    max_queued_requests: int = Field(
        1024, ge=0, description="Requests that may wait in decode before more are refused with 429"
    )
    coalesce: bool = Field(
        True, description="Send all tokens that have gathered for a request at once; off: one response per token"
    )

    scripted_steps_per_s: float = Field(
        200.0, ge=0, description="scripted: tokens per second and stream; 0 is as fast as it goes"
    )
    scripted_max_active: int = Field(512, ge=1, description="scripted: requests served at once; more wait")
    scripted_file: Path | None = Field(None, description="scripted: JSON file of scripts to replay")

    cpu_kv_cache_gib: float = Field(1.0, gt=0, description="cpu: size of the KV cache in GiB")
    cpu_max_batched_tokens: int = Field(
        256, ge=1, description="cpu: tokens per engine step; smaller smooths latency, larger prefills faster"
    )
    cpu_max_active: int = Field(64, ge=1, description="cpu: requests decoded at once; more wait")
    cpu_threads: int = Field(0, ge=0, description="cpu: inference threads; 0 is one per core")
